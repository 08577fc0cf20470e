import json
from pathlib import Path

from recsys.evaluation.bootstrap import Draws
from recsys.evaluation.compare import compare
from recsys.evaluation.ctr import rela_impr
from recsys.run import Run
from tests.recsys.cli.conftest import call


def test_compare_says_what_the_reports_say(project: Path) -> None:
    ended = call("compare", "ctr", "wide", "--json", "--draws", "100")
    assert ended.exit_code == 0
    assert ended.stdout.count("\n") == 1
    found = json.loads(ended.stdout)
    assert [model["seeds"] for model in found["models"]][1] == [1, 2, 5]
    first, *_ = found["comparisons"]
    reports = [[Run.open(path).evaluate() for path in model["runs"]] for model in found["models"]]
    expected = compare(reports[1], reports[0], "auc", Draws(seed=0, num_draws=100))
    assert (first["metric"], first["model"], first["first"]) == ("auc", "wide", "ctr")
    assert (first["value"], first["first_value"]) == (expected.a, expected.b)
    assert [first["difference"][key] for key in ("value", "low", "high")] == [
        expected.difference.value,
        expected.difference.low,
        expected.difference.high,
    ]
    assert first["beyond_interval"] == (expected.above or expected.below)
    if first["rela_impr"] is not None:
        assert first["rela_impr"]["value"] == rela_impr(first["value"], first["first_value"])


def test_lower_logloss_is_better(project: Path) -> None:
    found = json.loads(
        call("compare", "ctr-seed1", "wide-seed1", "--metric", "logloss", "--json", "--draws", "50").stdout
    )
    (pair,) = found["comparisons"]
    expected = "worse" if pair["difference"]["value"] > 0 else "better"
    assert pair["verdict"] == (expected if pair["beyond_interval"] else "within the interval")


def test_runs_without_a_report_are_evaluated_first(project: Path) -> None:
    for seed in (1, 2):
        path = Path(f"runs/wide-seed{seed}/reports/validation")
        assert not path.exists()
    ended = call("compare", "wide-seed1", "wide-seed2", "ctr-seed1", "--split", "validation", "--draws", "20")
    assert "evaluating runs/wide-seed1 on validation" in ended.stderr
    assert (
        "evaluating" not in call("compare", "wide-seed1", "wide-seed2", "--split", "validation", "--draws", "20").stderr
    )
    assert ended.stdout.count("ctr-seed1") == 2  # auc, logloss


def test_negatives_left_out_in_training_are_said(project: Path) -> None:
    call("train", "ctr.toml", "--name", "sparse", "data.downsample={rate = 0.5}")
    ended = call("compare", "ctr-seed1", "sparse", "--draws", "20")
    assert ended.exit_code == 0
    assert "sparse trained on a share of 0.5 of the negatives, ctr-seed1 on 1" in " ".join(ended.stderr.split())
    assert "calibrated_logloss" in ended.stdout
    assert "trained on a share" not in call("compare", "ctr-seed1", "ctr-seed2", "--draws", "20").stderr


def test_page_holds_the_table_and_a_plot_for_each_metric(project: Path, tmp_path: Path) -> None:
    assert call("compare", "ctr", "wide", "--draws", "20", "--html", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg xmlns") == 2
    assert "Against ctr, test split" in page


def test_what_cannot_be_compared_is_refused(project: Path) -> None:
    call("train", "ctr.toml", "--name", "later", "data.split.test=0.2")
    call("train", "popularity.toml", "--name", "short", "evaluation.k=[5]")
    for arguments, says in (
        (("ctr",), "compare takes two or more models, got 1"),
        (("ctr", "popularity"), "have no metric in common"),
        (("popularity", "short"), "have no metric in common: their evaluation.k differ"),
        (("ctr", "nothing"), "is not a run"),
        (("ctr", "wide", "--metric", "recall@20"), "reports of ranking are compared by"),
        (("ctr", "wide", "--split", "tomorrow"), "has no split 'tomorrow'"),
        (("ctr", "wide", "--draws", "3"), "num_draws must be at least 20"),
        (("ctr-seed1", "later"), "are not of the same labels: no pairs"),
    ):
        ended = call("compare", *arguments)
        assert ended.exit_code == 2, arguments
        assert says in ended.stderr
