from pathlib import Path

import pytest

from recsys.config import ConfigError
from recsys.tune.trial import Trial


def test_trial_reads_back_as_written(tmp_path: Path) -> None:
    trial = Trial(number=3, status="pruned", settings={"a.b": [1, 2]}, value=0.5, values=[0.4, 0.5], seconds=1.5)
    trial.save(tmp_path / "t.json")
    assert Trial.load(tmp_path / "t.json") == trial


@pytest.mark.parametrize("text", ["{", "[]", '{"number": 1}'])
def test_trial_that_is_damaged_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.json is damaged"):
        Trial.load(tmp_path / "t.json")
