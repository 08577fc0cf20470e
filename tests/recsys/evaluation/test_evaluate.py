import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from features.batch import Batch
from features.spec import FeatureSchema, parse_schema
from recsys import distributed
from recsys.evaluation import evaluate
from recsys.evaluation.calibrators import Calibrator, Platt
from recsys.evaluation.ctr import ScoredRows, auc
from recsys.evaluation.evaluate import (
    EvaluationView,
    Report,
    RowSettings,
    check_metric,
    evaluate_ranking,
    evaluate_retrieval,
    scored_rows,
)
from recsys.evaluation.row_files import GrowingColumns
from recsys.models.interface import Ranker, Recommender
from recsys.models.view import BatchLoader, DataView
from tests.recsys.two_ranks import run_on_two_ranks

SCHEMA = parse_schema(
    {
        "name": "clicks",
        "user": "user",
        "features": {"user": {"table": "ids"}, "x": {"kind": "dense"}},
        "labels": {"click": {}, "buy": {}},
    },
    where="here",
)


class Catalogue:
    """Three users, five items: user 0 has item 0, user 1 has item 1; items are held out for users 0 and 2."""

    num_items = 5

    def interactions(self) -> csr_matrix:
        return csr_matrix((np.ones(2, np.float32), ([0, 1], [0, 1])), shape=(3, 5))

    def truth(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        assert split == "test"
        return torch.tensor([0, 2]), torch.tensor([0, 1, 3]), torch.tensor([1, 0, 4])


class Falling(Recommender):
    """Scores item i with -i for everyone."""

    def scorer(self, view: DataView) -> Callable[[Tensor], Tensor]:
        return lambda users: -torch.arange(5.0).expand(len(users), -1)


def view() -> EvaluationView:
    return cast(EvaluationView, Catalogue())


def test_retrieval_is_worked_by_hand() -> None:
    report = evaluate_retrieval(Falling(), view(), split="test", ks=(1, 2), config_hash="abc")
    assert report.metrics["recall@1"] == pytest.approx((1 + 1 / 2) / 2)  # user 0: item 0 is masked, item 1 comes first
    assert report.metrics["precision@2"] == pytest.approx(1 / 2)
    assert report.counts == {"users": 2, "skipped users": 0, "items": 5}
    assert report.arrays["users"].tolist() == [0, 2]
    assert report.arrays["recall@1"].tolist() == [1.0, 0.5]
    assert (report.model, report.split, report.config_hash) == ("Falling", "test", "abc")
    chunked = evaluate_retrieval(Falling(), view(), split="test", ks=(1, 2), config_hash="abc", chunk=1)
    assert chunked.metrics == report.metrics


class Linear(Ranker):
    """Scores a row by its feature x, times 1 for the first label and -1 for the second."""

    def __init__(self, schema: FeatureSchema = SCHEMA, labels: tuple[str, ...] = ("click",)) -> None:
        nn.Module.__init__(self)
        self.schema, self.labels = schema, labels
        self.dropout = nn.Dropout(0.5)

    def logits(self, batch: Batch) -> Tensor:
        scores = self.dropout(batch.ids("x"))
        return scores if len(self.labels) == 1 else torch.stack([scores, -scores], dim=1)


class Batches:
    """Rows [r::W] of each ten, with a copy of weight 0 for a rank without rows."""

    num_batches = 0

    def __init__(
        self, num_rows: int = 47, planted: bool = True, weighted: bool = True, rank: int = 0, world_size: int = 1
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = (torch.randn(num_rows, generator=generator) * 2).round() / 2
        self.probability = (self.x + torch.randn(num_rows, generator=generator)).sigmoid()
        self.click = (torch.rand(num_rows, generator=generator) < self.probability).float()
        self.weights = torch.rand(num_rows, generator=generator) + 0.5
        self.user = torch.randint(6, (num_rows,), generator=generator)
        self.planted, self.weighted, self.rank, self.world_size = planted, weighted, rank, world_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        for index, whole in enumerate(torch.arange(len(self.x)).split(10)):
            rows = whole[self.rank :: self.world_size]
            yield self.batch(rows) if len(rows) else self.batch(whole[:1], padding=True), index + 1

    def batch(self, rows: Tensor, padding: bool = False) -> Batch:
        labels = {"click": self.click[rows], "buy": 1 - self.click[rows]}
        return Batch(
            features={"x": self.x[rows], "user": self.user[rows]},
            labels=labels | ({"probability": self.probability[rows]} if self.planted else {}),
            weights=torch.zeros(len(rows)) if padding else self.weights[rows] if self.weighted else None,
            row_ids=rows,
        )


def loader(**arguments: int) -> BatchLoader:
    return cast(BatchLoader, Batches(**arguments))  # type: ignore[arg-type]


def test_ranking_scores_every_row_and_the_planted_ceiling() -> None:
    rows = Batches()
    report = evaluate_ranking(Linear(), loader(), split="validation")
    assert report.metrics["auc"] == pytest.approx(auc(rows.click, rows.x, rows.weights), abs=1e-12)
    assert report.metrics["ceiling_auc"] == pytest.approx(auc(rows.click, rows.probability, rows.weights))
    assert report.metrics["ceiling_logloss"] < report.metrics["logloss"]
    assert report.counts == {"rows": 47, "positives": int(rows.click.sum())}
    assert torch.equal(report.arrays["clusters"], rows.user)
    assert not [
        name for name in evaluate_ranking(Linear(), loader(planted=False), split="test").metrics if "ceil" in name
    ]


def test_ranking_of_several_labels_names_each() -> None:
    report = evaluate_ranking(Linear(labels=("click", "buy")), loader(), split="test")
    assert report.metrics["auc[buy]"] == pytest.approx(report.metrics["auc"])
    assert report.metrics["logloss[buy]"] == pytest.approx(report.metrics["logloss"])


def test_evaluation_leaves_the_mode_of_the_model() -> None:
    for training in (True, False):
        model = Linear().train(training)
        evaluate_ranking(model, loader(), split="test")
        assert model.training == training


def test_rows_of_weight_zero_do_not_count() -> None:
    rows = Batches()
    rows.weights[::2] = 0
    report = evaluate_ranking(Linear(), cast(BatchLoader, rows), split="test")
    assert report.counts["rows"] == 23
    expected = auc(rows.click[1::2], rows.x[1::2], rows.weights[1::2])
    assert report.metrics["auc"] == pytest.approx(expected, abs=1e-12)


def test_rows_of_a_cluster_are_those_of_the_batch_before_those_of_the_users_vocabulary_row() -> None:
    batch = Batches(num_rows=8).batch(torch.arange(8))
    owned = replace(batch, cluster=torch.arange(8) // 2, features={**batch.features, "user": torch.zeros(8).long()})

    class Owned:
        num_batches = 1

        def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
            yield owned, 1

    loader = cast(BatchLoader, Owned())
    assert evaluate_ranking(Linear(), loader, split="test").arrays["clusters"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    by_user = evaluate_ranking(Linear(), loader, split="test", cluster="user")
    assert by_user.arrays["clusters"].tolist() == [0] * 8


def test_loader_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="the loader gave no rows to score"):
        evaluate_ranking(Linear(), loader(num_rows=0), split="test")


def check_ranks(_: str) -> None:
    rank, world_size = distributed.rank(), distributed.world_size()
    for weighted in (True, False):
        rows = Batches(num_rows=411, weighted=weighted)
        whole = evaluate_ranking(Linear(), loader(num_rows=411, weighted=weighted), split="test")  # all rows on each
        own = loader(num_rows=411, weighted=weighted, rank=rank, world_size=world_size)
        check_report(evaluate_ranking(Linear(), own, split="test"), whole, rows)


def check_report(parts: Report, whole: Report, rows: Batches) -> None:
    weights = rows.weights if rows.weighted else None
    assert parts.metrics == whole.metrics
    assert parts.counts == whole.counts
    assert ("weights" in parts.arrays) == rows.weighted
    assert parts.metrics["auc"] == pytest.approx(auc(rows.click, rows.x, weights), abs=1e-12)
    assert torch.equal(parts.arrays["labels"], rows.click)
    assert torch.equal(parts.arrays["clusters"], rows.user)


def test_ranks_return_the_report_of_all_rows() -> None:
    """41 full batches and one of a single row, which one rank has: more than are gathered at a time."""
    assert evaluate.BATCHES_AT_ONCE * 10 < 411
    run_on_two_ranks(check_ranks, "")


def test_report_of_many_rows_goes_through_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_memory = evaluate_ranking(Linear(), loader(num_rows=500), split="test")
    monkeypatch.setattr(GrowingColumns.__init__, "__defaults__", (90, None))
    in_files = evaluate_ranking(Linear(), loader(num_rows=500), split="test", settings=RowSettings(scratch=tmp_path))
    assert in_files.metrics == in_memory.metrics
    in_files.save(tmp_path / "report")
    loaded = Report.load(tmp_path / "report")
    assert all(torch.equal(loaded.arrays[name], column) for name, column in in_memory.arrays.items())


def test_report_keeps_further_labels_and_features_that_are_asked_for() -> None:
    rows = Batches()
    ranker, settings = Linear(labels=("click", "buy")), RowSettings(kept=("x", "user"))
    report = evaluate_ranking(ranker, loader(), split="test", settings=settings)
    assert torch.equal(report.arrays["feature x"], rows.x)
    assert torch.equal(report.arrays["feature user"], rows.user)
    assert torch.equal(scored_rows(report, "buy").labels, 1 - rows.click)
    assert torch.equal(scored_rows(report, "click").logits, -scored_rows(report, "buy").logits)
    with pytest.raises(ValueError, match="holds no rows: it was made without arrays"):
        scored_rows(Report.from_json(report.to_json()))


def test_calibrated_metrics_stand_beside_those_of_the_model() -> None:
    calibrator = Calibrator(curves={"click": Platt(2.0, 1.0)})
    report = evaluate_ranking(Linear(), loader(), split="test", settings=RowSettings(calibrator=calibrator))
    plain = evaluate_ranking(Linear(), loader(), split="test")
    assert plain.metrics.items() <= report.metrics.items()
    assert report.metrics["calibrated_auc"] == report.metrics["auc"]
    by_hand = ScoredRows(
        labels=plain.arrays["labels"], logits=2 * plain.arrays["logits"] + 1, weights=Batches().weights
    )
    assert report.metrics["calibrated_logloss"] == pytest.approx(by_hand.metrics()["logloss"], abs=1e-12)
    assert torch.equal(report.arrays["logits"], plain.arrays["logits"])


# --- reports ---


def a_report(arrays: Mapping[str, Tensor] | None = None, model: str = "mf") -> Report:
    return Report(
        model=model,
        split="test",
        protocol="all items ranked",
        metrics={"recall@20": 0.1686, "ndcg@20": 0.13237},
        counts={"users": 3, "items": 40981},
        config_hash="cafe",
        arrays=arrays or {},
    )


def test_report_round_trips(tmp_path: Path) -> None:
    report = a_report({"users": torch.tensor([3, 5, 8]), "recall@20": torch.tensor([0.0, 0.5, 1.0])})
    report.save(tmp_path / "reports" / "test")
    loaded = Report.load(tmp_path / "reports" / "test")
    assert loaded.summary() == report.summary()
    assert all(torch.equal(loaded.arrays[name], array) for name, array in report.arrays.items())
    assert Report.from_json(report.to_json()) == a_report()


def test_report_json_is_one_line_with_the_metrics_on_top() -> None:
    text = a_report().to_json()
    assert "\n" not in text
    assert json.loads(text)["recall@20"] == 0.1686
    assert json.loads(text)["counts"] == {"users": 3, "items": 40981}


def test_report_is_shown_to_people() -> None:
    assert str(a_report()).splitlines()[:2] == ["mf on test", "recall@20  0.1686"]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(a_report().to_rich())
    text = console.export_text()
    assert "0.1324" in text
    assert "40,981 items" in text


def test_report_to_pandas() -> None:
    frame = a_report().to_pandas()
    assert len(frame) == 1
    assert frame["ndcg@20"][0] == 0.13237
    assert frame["users"][0] == 3
    report = a_report({"users": torch.tensor([3, 5]), "recall@20": torch.tensor([0.0, 0.5])})
    assert report.arrays_to_pandas().values.tolist() == [[3, 0.0], [5, 0.5]]


def test_folder_without_a_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} does not hold a report"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text('{"recall@20": 1}')
    with pytest.raises(ValueError, match="does not hold a report"):
        Report.load(tmp_path)


# --- metrics to choose by, and rows that have none ---


def test_check_metric_accepts_what_evaluation_gives_and_a_choice_can_be_made_by() -> None:
    ranker, loader = Linear(labels=("click", "buy")), Batches()
    given = evaluate_ranking(ranker, loader, split="validation").metrics
    for metric in ("auc", "logloss", "pr_auc", "normalized_entropy", "auc[buy]", "logloss[buy]"):
        assert metric in given
        check_metric(metric, ranker, ks=())
    for metric in ("calibration", "ceiling_auc", "recall@20", "auc[click]", "gauc", ""):
        with pytest.raises(ValueError, match=f"training.metric is '{re.escape(metric)}', accepted is one of auc, log"):
            check_metric(metric, ranker, ks=(20,))
    check_metric("pr_auc", ranker, ks=(), negative_rate=0.5)
    with pytest.raises(ValueError, match=r"is 'logloss', accepted is one of auc, pr_auc, .* with data\.downsample"):
        check_metric("logloss", ranker, ks=(), negative_rate=0.5)
    retrieved = evaluate_retrieval(Falling(), view(), split="test", ks=(1, 2)).metrics
    for metric in retrieved:
        check_metric(metric, Falling(), ks=(1, 2))
    with pytest.raises(
        ValueError, match=r"training\.metric is 'recall@3', accepted is one of recall@1, recall@2, ndcg"
    ):
        check_metric("recall@3", Falling(), ks=(1, 2))


def test_evaluation_names_split_and_label_of_rows_that_cannot_be_measured() -> None:
    loader = Batches()
    loader.click = torch.ones_like(loader.click)
    with pytest.raises(ValueError, match=r"split 'validation', label 'click': auc needs rows of both classes"):
        evaluate_ranking(Linear(), loader, split="validation")
