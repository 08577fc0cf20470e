import json
import math
import shutil
from pathlib import Path

import pytest

from features import storage
from recsys.evaluation.calibrators import METHODS, Calibrator
from recsys.run import Run
from recsys.run_reports import calibrator_of
from tests.recsys.cli.conftest import call


@pytest.mark.parametrize("method", METHODS)
def test_calibrate_fits_on_validation_and_measures_on_test(project: Path, method: str) -> None:
    shutil.copytree("runs/ctr-seed1", f"runs/{method}")
    found = json.loads(call("calibrate", method, "--method", method, "--json").stdout)
    before, after = found["before"], found["after"]
    assert before["calibration"] > 1.5
    assert after["calibration"] == pytest.approx(1, abs=0.15)
    assert after["logloss"] < before["logloss"]
    assert after["calibration_error"] < before["calibration_error"] / 2
    assert after["auc"] == pytest.approx(before["auc"], abs=1e-6)
    report = Run.open(f"runs/{method}").evaluate()
    assert {name: report.metrics[f"calibrated_{name}"] for name in after} == after
    assert "calibrated" in call("evaluate", method).stdout
    served = json.loads(call("evaluate", method, "--by", "score", "--json").stdout)["segments"]["score"]
    assert sum(part["predicted"] * part["weight"] for part in served) == pytest.approx(
        after["calibration"] * sum(part["observed"] * part["weight"] for part in served), rel=1e-4
    )
    compared = call("compare", "ctr-seed1", method, "--metric", "calibrated_logloss", "--draws", "20", "--json")
    assert "not calibrated: ctr-seed1" in " ".join(compared.stderr.split())
    (pair,) = json.loads(compared.stdout)["comparisons"]
    assert pair["first_value"] == pytest.approx(before["logloss"])
    assert pair["value"] == pytest.approx(after["logloss"])
    held_out = json.loads(Path(f"runs/{method}/reports/validation/report.json").read_text())
    assert held_out["calibrated_calibration"] == pytest.approx(1, abs=0.1)


def test_calibrate_of_a_name_is_of_all_its_seeds(project: Path) -> None:
    for seed in (1, 2):
        shutil.copytree(f"runs/ctr-seed{seed}", f"runs/all-seed{seed}")
    found = json.loads(call("calibrate", "all", "--method", "platt", "--json").stdout)
    assert [run["run"] for run in found["runs"]] == ["runs/all-seed1", "runs/all-seed2"]


def test_share_of_negatives_is_corrected_with_and_without_a_fit(project: Path) -> None:
    ended = call("train", "ctr.toml", "--name", "thinned", "data.downsample={rate = 0.2}", "training.max_epochs=4")
    assert ended.exit_code == 0, ended.stderr
    run = Run.open("runs/thinned")
    assert run.prepared.negative_rate == 0.2
    report = run.evaluate()
    assert report.metrics["calibration"] > 1.5
    assert report.metrics["calibrated_calibration"] < report.metrics["calibration"] - 0.5
    assert call("calibrate", "thinned", "--method", "platt").exit_code == 0
    fitted = calibrator_of(run.folder, run.prepared)
    assert fitted is not None
    assert fitted.shifts == {"click": math.log(0.2)}
    assert run.evaluate().metrics["calibrated_calibration"] == pytest.approx(1, abs=0.2)


def test_a_calibrator_that_cannot_be_written_leaves_the_old_one(project: Path) -> None:
    shutil.copytree("runs/ctr-seed1", "runs/faults")
    assert call("calibrate", "faults", "--method", "beta").exit_code == 0
    before = Calibrator.load(Path("runs/faults")).record()
    with storage.inject() as points:
        assert call("calibrate", "faults", "--method", "beta").exit_code == 0
    place = points.index("rename:calibrator.json") + 1
    with storage.inject(place):
        ended = call("calibrate", "faults", "--method", "platt")
    assert (ended.exit_code, "calibrator.json" in ended.stderr) == (2, True), ended.stderr
    assert Calibrator.load(Path("runs/faults")).record() == before


def test_what_cannot_be_calibrated_is_refused(project: Path) -> None:
    for arguments, says in (
        (("popularity",), "popularity is a retrieval run; calibration is of click models"),
        (("ctr-seed1", "--method", "magic"), "method is 'magic', accepted is one of isotonic, platt, beta"),
        (("nothing",), "is not a run"),
    ):
        ended = call("calibrate", *arguments)
        assert ended.exit_code == 2
        assert says in ended.stderr
