"""DIN and DARE over histories: what Score answers over gRPC, and what the exported program computes, is what evaluation
computed offline.

A request names the user's clicks newest first, with those that are still to come, and the example's time. The world
"small" by default; `slow` takes the world "demo" and 10,000 of its test examples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from features.worlds import generate
from recsys.bundle import BundleStore
from recsys.cli.bundles import export_runs
from recsys.cli.data import prepared_of
from recsys.components.program import PROGRAM, tensors_of
from recsys.config import load_config
from recsys.models.interface import Ranker
from recsys.run import Run
from serving.client import Client
from serving.pipeline import Pipeline
from serving.server import Settings, running

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SETTINGS = ["training.max_epochs=1", "training.batch_size=500"]


@dataclass(frozen=True)
class Exported:
    """A run in a store, with a program; `world` is what it was trained on, `rows` how many examples are compared."""

    run: Run
    store: BundleStore
    world: str
    rows: int

    @property
    def ranker(self) -> Ranker:
        """The run's model."""
        model = self.run.model()
        assert isinstance(model, Ranker)
        return model


@pytest.fixture(scope="module", params=["small", pytest.param("demo", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["demo_din", "demo_dare"])
def exported(request: pytest.FixtureRequest, world: str, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    config = load_config(CONFIGS / f"{request.param}.toml", [*SETTINGS, f"data.path={world}"])
    run = Run.create(config, folder / "run", prepared_of(config, CONFIGS, None, folder / "prepared"))
    run.train()
    export_runs([run], str(folder / "store"), "stable", program=True)
    return Exported(run=run, store=BundleStore(str(folder / "store")), world=world, rows=10_000)


@pytest.fixture(scope="module")
def client(exported: Exported) -> Iterator[Client]:
    with (
        running(lambda: Pipeline.load(exported.store.open()), Settings(port=0)) as address,
        Client(address, timeout_s=60.0) as opened,
    ):
        yield opened


def offline_scores(exported: Exported) -> Tensor:
    """Scores of the test examples, in the order of the log."""
    loader = exported.run.prepared.view("test").loader(512, seed=0, shuffle=False)
    with torch.no_grad():
        return torch.cat([exported.ranker.logits(batch).sigmoid() for batch, _ in loader.epoch(0)])


def test_served_scores_are_the_offline_ones(exported: Exported, client: Client) -> None:
    expected = offline_scores(exported)
    events = generate(exported.world).events.to_pandas()
    test = events[events.timestamp >= np.sort(events.timestamp)[-len(expected)]]
    clicks = {user: part for user, part in events[events.click == 1].groupby("user")}  # noqa: C416
    assert len(test) == len(expected)
    places = np.linspace(0, len(test) - 1, min(exported.rows, len(test))).astype(int)
    served = [asked(client, row, clicks.get(row.user)) for row in test.iloc[places].itertuples()]
    assert_close(torch.tensor(served), expected[places], rtol=0, atol=1e-5)
    assert expected.std() > 0.01


def asked(client: Client, row: object, clicks: pd.DataFrame | None) -> float:
    """The score of one impression, its user's clicks newest first."""
    past = None if clicks is None else clicks.sort_values("timestamp", ascending=False, kind="stable")
    answer = client.score(
        user=row.user,  # type: ignore[attr-defined]
        items=[row.item],  # type: ignore[attr-defined]
        history=[] if past is None else past.item.tolist(),
        history_times=[] if past is None else past.timestamp.tolist(),
        time=row.timestamp,  # type: ignore[attr-defined]
        columns={"device": [row.device], "hour": [row.hour]},  # type: ignore[attr-defined]
    )
    return float(np.asarray(answer.scores).ravel()[0])


def test_the_program_computes_the_offline_scores(exported: Exported) -> None:
    bundle = exported.store.open()
    program = torch.export.load(bundle.path("program") / PROGRAM).module()
    loader = exported.run.prepared.view("test").loader(512, seed=0, shuffle=False)
    with torch.no_grad():
        found = [program(tensors_of(batch, exported.ranker)) for batch, _ in loader.epoch(0) if len(batch) > 1]
    computed = torch.cat(found)
    assert len(computed) >= len(offline_scores(exported)) - 1
    assert_close(computed, offline_scores(exported)[: len(computed)], rtol=0, atol=1e-5)
