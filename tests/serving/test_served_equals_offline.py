"""What a server answers over gRPC is what evaluation computed offline, for runs trained from raw logs and exported.

Lists: the evaluator's own scores, with what the user has seen masked, and filters applied by plain Python. Click
scores: those of the test report, for requests that are read off the raw log, histories too. The world "small" by
default; `slow` takes the world "demo", 1,000 users and 10,000 rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from features.batch import Batch, Jagged
from features.entities import EntityTable
from features.worlds import generate
from recsys.bundle import BundleStore
from recsys.cli.bundles import export_runs
from recsys.cli.data import prepared_of
from recsys.config import load_config
from recsys.models.interface import ClosedForm, Ranker, Recommender, Retriever
from recsys.run import Run
from serving.client import Candidates, Client
from serving.pipeline import Pipeline
from serving.queries import FallbackReason
from serving.server import Settings, running
from tests.recsys.small_project import CTR, RETRIEVER, write_project

K = 20
MODELS = {
    "twotower": RETRIEVER,
    "mf": RETRIEVER.replace('"twotower"', '"mf"').replace('features = ["user", "history", "item", "category"]\n', ""),
    "p3": RETRIEVER.partition("[model]")[0] + '[model]\nname = "p3"\n',
    "popularity": RETRIEVER.partition("[model]")[0] + '[model]\nname = "popularity"\n',
    "dcn": CTR,
}
Row = Mapping[str, Any]


@dataclass
class World:
    """Runs trained on a world, each exported alone and served; `users` and `rows` are how many are compared."""

    name: str
    folder: Path
    users: int
    rows: int
    open: ExitStack
    runs: dict[str, Run] = field(default_factory=dict)
    clients: dict[str, Client] = field(default_factory=dict)

    def run(self, model: str) -> Run:
        """The run of a model, trained when it is first asked for."""
        if model not in self.runs:
            path = self.folder / f"{model}.toml"
            path.write_text(MODELS[model].replace('path = "small"', f'path = "{self.name}"'))
            config = load_config(path)
            prepared = prepared_of(config, self.folder, None, self.folder / "prepared")
            self.runs[model] = Run.create(config, self.folder / "runs" / model, prepared)
            self.runs[model].train()
        return self.runs[model]

    def client(self, model: str) -> Client:
        """A client of a server of the run's bundle."""
        if model not in self.clients:
            store = str(self.folder / "stores" / model)
            export_runs([self.run(model)], store, "stable")
            address = self.open.enter_context(
                running(lambda: Pipeline.load(BundleStore(store).open()), Settings(port=0))
            )
            self.clients[model] = self.open.enter_context(Client(address, timeout_s=60.0))
        return self.clients[model]

    def items(self, model: str) -> EntityTable:
        """The catalogue."""
        table = self.run(model).prepared.items
        assert table is not None
        return table

    def user_ids(self, model: str) -> list[str]:
        """Raw ids of the users that are compared, every so many of the catalogue."""
        table = self.run(model).prepared.users
        assert table is not None
        places = np.linspace(0, len(table) - 1, min(self.users, len(table))).astype(np.int64)
        return [str(raw) for raw in table.raw(places.tolist())]

    @cached_property
    def log(self) -> pd.DataFrame:
        """The raw events in time order, each with the user's clicks strictly before its second."""
        events = generate(self.name).events.to_pandas().sort_values("timestamp", kind="stable")
        clicks = events[events.click == 1]
        clicked = {user: (part.timestamp.to_numpy(), part.item.to_numpy()) for user, part in clicks.groupby("user")}
        none = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        pasts = []
        for user, now in zip(events.user, events.timestamp, strict=True):
            times, items = clicked.get(user, none)
            pasts.append(items[: np.searchsorted(times, now)])
        return events.assign(past=pasts)


@pytest.fixture(scope="module", params=["small", pytest.param("demo", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = write_project(tmp_path_factory.mktemp(request.param))
    users, rows = (60, 780) if request.param == "small" else (1_000, 10_000)
    with ExitStack() as opened:
        yield World(name=request.param, folder=folder, users=users, rows=rows, open=opened)


# --- lists ---


def offline_scores(run: Run, users: Sequence[str], exclude_seen: bool = True) -> Tensor:
    """The evaluator's scores [B, n], what the users have seen masked."""
    model, view = run.model(), run.seen_before("test")
    assert isinstance(model, Recommender)
    assert run.prepared.users is not None
    positions = run.prepared.users.positions(list(users))
    scores = model.scorer(view)(positions).clone()
    if exclude_seen:
        scores[torch.from_numpy(view.interactions()[positions.numpy()].toarray() > 0)] = float("-inf")
    return scores


def assert_is_the_list(answer: Candidates, scores: Tensor, items: EntityTable, k: int = K) -> None:
    """The k best of scores [n], -inf left out: each rank's score to 1e-6 (items closer than that may swap)."""
    positions = items.positions(answer.items)
    best = scores.sort(descending=True).values[:k]
    best = best[best > float("-inf")]
    assert len(positions.unique()) == len(answer) == len(best)
    assert_close(scores[positions], best, rtol=0, atol=1e-6)
    assert_close(torch.from_numpy(answer.scores), scores[positions], rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["twotower", "mf", "p3", "popularity"])
def test_served_lists_are_the_offline_lists(world: World, model: str) -> None:
    run, client, items = world.run(model), world.client(model), world.items(model)
    users = world.user_ids(model)
    for user, scores in zip(users, offline_scores(run, users), strict=True):
        answer = client.retrieve(user=user, k=K)
        assert answer.user_known
        if answer.fallback is not None:
            assert_has_no_history(run, user, answer)
        else:
            assert_is_the_list(answer, scores, items)


def assert_has_no_history(run: Run, user: str, answer: Candidates) -> None:
    """The one case in which a fallback answers for a known user: P3 scores a history, and there is none."""
    assert run.prepared.users is not None
    assert run.config.model.name == "p3"
    assert answer.fallback is not None
    assert answer.fallback.reason == FallbackReason.NOTHING_USABLE
    (position,) = run.prepared.users.positions([user]).tolist()
    assert run.seen_before("test").interactions()[position].nnz == 0


@pytest.mark.parametrize("model", ["twotower", "mf", "p3", "popularity"])
def test_served_lists_of_everything_are_the_offline_ones(world: World, model: str) -> None:
    """The whole catalogue, seen items too, and without some that the request excludes."""
    run, client, items = world.run(model), world.client(model), world.items(model)
    users = known_users(run, 5)
    for user, scores in zip(users, offline_scores(run, users, exclude_seen=False), strict=True):
        assert_is_the_list(client.retrieve(user=user, k=10_000, exclude_seen=False), scores, items, k=10_000)
        excluded = scores.topk(7).indices
        answer = client.retrieve(user=user, k=K, exclude_seen=False, excluded=items.raw(excluded))
        assert_is_the_list(answer, scores.index_fill(0, excluded, float("-inf")), items)


def known_users(run: Run, number: int) -> list[str]:
    """Users that have something in train or validation."""
    assert run.prepared.users is not None
    having = np.flatnonzero(np.diff(run.seen_before("test").interactions().indptr))
    return [str(raw) for raw in run.prepared.users.raw(having[:: max(1, len(having) // number)][:number].tolist())]


# --- filters ---


def filters_of(items: pd.DataFrame) -> dict[str, tuple[dict[str, Any], Callable[[Row], bool]]]:
    """Predicates, each with the same in Python."""
    category, other = items.category.value_counts().index[:2]
    brands = sorted(items.brand.dropna().unique())[:5]
    low, middle, high = items.price.quantile([0.25, 0.5, 0.75])
    late = int(items.launched.quantile(0.8))
    equal = {"kind": "equal", "attribute": "category", "value": category}
    another = {"kind": "equal", "attribute": "category", "value": other}
    cheap = {"kind": "range", "attribute": "price", "high": float(middle)}
    between = {"kind": "range", "attribute": "price", "low": float(low), "high": float(high)}
    new = {"kind": "range", "attribute": "launched", "low": late}
    of_brands = {"kind": "in", "attribute": "brand", "values": brands}
    not_equal = {"kind": "not", "of": equal}
    both = {"kind": "and", "of": [equal, cheap]}
    nested = {"kind": "or", "of": [both, {"kind": "and", "of": [not_equal, new]}]}
    return {
        "equal": (equal, lambda row: row["category"] == category),
        "in": (of_brands, lambda row: row["brand"] in brands),
        "range": (between, lambda row: low <= row["price"] <= high),
        "not": (not_equal, lambda row: row["category"] != category),
        "and": (both, lambda row: row["category"] == category and row["price"] <= middle),
        "or": ({"kind": "or", "of": [another, new]}, lambda row: row["category"] == other or row["launched"] >= late),
        "nested": (
            nested,
            lambda row: row["price"] <= middle if row["category"] == category else row["launched"] >= late,
        ),
        "nothing": ({"kind": "and", "of": [equal, another]}, lambda row: False),
    }  # fmt: skip


@pytest.mark.parametrize("model", ["twotower", "mf", "p3", "popularity"])
def test_served_lists_under_filters_are_the_offline_ones(world: World, model: str) -> None:
    run, client, items = world.run(model), world.client(model), world.items(model)
    attributes = items.attributes.to_pandas()
    users = known_users(run, 8)
    every = offline_scores(run, users)
    for name, (predicate, holds) in filters_of(attributes).items():
        allowed = torch.tensor([holds(row) for row in attributes.to_dict("records")])
        assert bool(allowed.any()) == (name != "nothing")
        assert not allowed.all()
        for user, scores in zip(users, every, strict=True):
            answer = client.retrieve(user=user, k=K, filter=predicate)
            assert_is_the_list(answer, scores.masked_fill(~allowed, float("-inf")), items)


# --- cold items, new users ---


def cold_items(world: World, model: str) -> Tensor:
    """Positions of the items that no event shows."""
    shown = set(world.log.item)
    cold = [position for position, raw in enumerate(world.items(model).raw_ids.tolist()) if raw not in shown]
    assert len(cold) >= 5
    return torch.tensor(cold)


def test_a_cold_item_is_retrieved_by_its_attributes(world: World) -> None:
    """It has no row of its own, so that cold items of a category are one vector, and those of two are two."""
    run, client, items = world.run("twotower"), world.client("twotower"), world.items("twotower")
    cold = cold_items(world, "twotower")
    assert set(items.gather(cold).ids("item").tolist()) == {0}
    names = items.attributes.to_pandas().category[cold.numpy()]
    users = known_users(run, 5)
    for user, scores in zip(users, offline_scores(run, users), strict=True):
        only = {"kind": "in", "attribute": "item", "values": items.raw(cold).tolist()}
        answer = client.retrieve(user=user, k=10_000, filter=only)
        assert sorted(answer.items) == sorted(items.raw(cold))
        kept = torch.zeros(len(items), dtype=torch.bool).index_fill(0, cold, True)
        assert_is_the_list(answer, scores.masked_fill(~kept, float("-inf")), items, k=10_000)
        by_category = pd.Series(scores[cold].numpy()).groupby(names.to_numpy())
        assert by_category.std().fillna(0).max() < 1e-6
        assert by_category.mean().nunique() == names.nunique()


def test_a_new_user_with_a_history_gets_the_two_towers_list(world: World) -> None:
    """As offline with the unknown user's row and the history's rows, of which the oldest are not read."""
    run, client, items = world.run("twotower"), world.client("twotower"), world.items("twotower")
    model, view = run.model(), run.seen_before("test")
    assert isinstance(model, Retriever)
    for length in (1, 3, 60):
        history = torch.arange(length) % len(items)
        scores = model.item_matrix(view) @ model.user_vectors(new_user(run, history))[0, 0]
        answer = client.retrieve(history=items.raw(history).tolist(), k=K)
        assert not answer.user_known
        assert answer.fallback is None
        assert_is_the_list(answer, scores.index_fill(0, history, float("-inf")), items)
        assert answer.unread_history_ids == max(0, length - 50)


def new_user(run: Run, history: Tensor) -> Batch:
    """One unknown user with the last 50 items of a history."""
    prepared = run.prepared
    assert prepared.users is not None
    assert prepared.items is not None
    read = prepared.items.gather(history[-50:])
    offsets = torch.tensor([0, len(read)])
    lists = {"history": read.ids("item"), "history_category": read.ids("category")}
    cut = {name: Jagged(values=rows, offsets=offsets) for name, rows in lists.items()}
    return Batch(features=dict(prepared.users.gather(torch.tensor([-1])).features) | cut)


def test_a_new_user_with_a_history_gets_p3s_list(world: World) -> None:
    run, client, items = world.run("p3"), world.client("p3"), world.items("p3")
    model, known = run.model(), run.seen_before("test").interactions()
    assert isinstance(model, ClosedForm)
    for row in known[np.diff(known.indptr) > 2][:5]:
        history = torch.from_numpy(row.indices.astype(np.int64))
        answer = client.retrieve(user="nobody", history=items.raw(history).tolist(), k=K)
        assert not answer.user_known
        assert_is_the_list(answer, model.history_scores(row)[0].index_fill(0, history, float("-inf")), items)


@pytest.mark.parametrize("model", ["twotower", "mf", "p3", "popularity"])
def test_an_unknown_user_gets_the_fallback_and_its_reason(world: World, model: str) -> None:
    counts = np.asarray(world.run(model).seen_before("test").interactions().sum(axis=0)).ravel()
    scores = torch.from_numpy(counts).float()
    answer = world.client(model).retrieve(user="nobody", k=K)
    assert_is_the_list(answer, scores, world.items(model))
    assert answer.fallback is not None
    assert answer.fallback.reason == FallbackReason.UNKNOWN_USER
    nothing = world.client(model).retrieve(k=K)
    assert nothing.fallback is not None
    assert nothing.fallback.reason == FallbackReason.NO_SUBJECT


def test_a_history_is_nothing_to_matrix_factorisation(world: World) -> None:
    history = world.items("mf").raw_ids[:3].tolist()
    answer = world.client("mf").retrieve(history=history, k=K)
    assert answer.fallback is not None
    assert answer.fallback.reason == FallbackReason.NOTHING_USABLE
    assert not set(history) & set(answer.items.tolist())


# --- click scores ---


def test_served_scores_are_those_of_the_test_report(world: World) -> None:
    """Requests with a row for each event of the raw log: user, item, context, and the clicks before it, as columns."""
    rows = scored_rows(world)
    client, categories = world.client("dcn"), world.items("dcn").attributes.to_pandas().set_index("item").category
    served = []
    for start in range(0, len(rows), 1_000):
        part = rows[start : start + 1_000]
        past = [items[-50:].tolist() for items in part.past]
        columns = {name: part[name].tolist() for name in ("user", "item", "device", "hour")}
        columns |= {"history": past, "history_category": [categories[items].tolist() for items in past]}
        served.append(client.score(columns=columns).scores[:, 0])
    assert_close(np.concatenate(served).tolist(), rows.offline.tolist(), rtol=0, atol=1e-5)


def test_scores_of_a_user_with_the_history_of_the_moment_are_those_of_the_report(world: World) -> None:
    """The same by requests as a shop sends them: a user, candidates, the context, and all clicks until now."""
    rows, client = scored_rows(world), world.client("dcn")
    moments = rows.groupby(["user", "device", "hour", rows.past.map(len)], sort=False)
    assert len(moments) > 50
    for (user, device, hour, _), part in list(moments)[: world.users]:
        history = part.past.iloc[0].tolist()
        answer = client.score(
            user=user, items=part.item.tolist(), columns={"device": [device], "hour": [hour]}, history=history
        )
        assert answer.user_known
        assert answer.unread_history_ids == max(0, len(history) - 50)
        assert_close(answer.scores[:, 0].tolist(), part.offline.tolist(), rtol=0, atol=1e-5)


def test_scores_without_a_history_are_those_of_all_that_is_known(world: World) -> None:
    """A request without a history has the bundle's: the user's clicks of train and validation."""
    run, client = world.run("dcn"), world.client("dcn")
    prepared, model = run.prepared, run.model()
    assert isinstance(model, Ranker)
    assert prepared.users is not None
    rows = scored_rows(world)[:: max(1, world.rows // 200)]
    view = run.seen_before("test")
    positions = prepared.users.positions(rows.user.tolist()), world.items("dcn").positions(rows.item.tolist())
    context = prepared.encoder.encode(pa.Table.from_pandas(rows[["device", "hour"]]), ["device", "hour"])
    features = dict(view.user_batch(positions[0]).features) | dict(view.item_batch(positions[1]).features) | context
    with torch.no_grad():
        offline = model.logits(Batch(features=features)).sigmoid()
    columns = {name: rows[name].tolist() for name in ("user", "item", "device", "hour")}
    assert_close(torch.from_numpy(client.score(columns=columns).scores[:, 0]), offline, rtol=0, atol=1e-5)


def scored_rows(world: World) -> pd.DataFrame:
    """The first `rows` events of the test split as the raw log has them, with the report's probability as `offline`.

    The split is by time, and examples stand in the order of the log.
    """
    run = world.run("dcn")
    report = run.evaluate("test")
    assert run.prepared.users is not None
    rows = world.log.tail(report.counts["rows"])
    examples = pd.concat([pq.read_table(file).to_pandas() for file in run.prepared.files("test")])
    assert rows.user.tolist() == run.prepared.users.raw(examples.user.to_list()).tolist()
    assert rows.item.tolist() == world.items("dcn").raw(examples.item.to_list()).tolist()
    assert rows.click.tolist() == report.arrays["labels"].tolist()
    scored = rows.assign(offline=report.arrays["logits"].sigmoid().numpy())[: world.rows]
    assert len(scored) == world.rows
    return scored
