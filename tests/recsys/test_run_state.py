"""What a run keeps of itself is read back, or refused by the name of the file."""

from pathlib import Path

import pytest

from features import storage
from recsys.config import ConfigError
from recsys.run_state import FINISHED, RunState, flattened, read_config, read_state


def test_state_round_trips(tmp_path: Path) -> None:
    state = RunState(prepared="there", data_hash="abc", stage=FINISHED, best_epoch=3, sizes={"training": 12})
    storage.write_json(tmp_path / "run.json", vars(state))
    assert read_state(tmp_path / "run.json") == state


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is damaged"),
        ("[]", "holds no JSON object"),
        ("{}", "another version"),
        ('{"stage": "select"}', "another version"),
    ],
)
def test_damaged_state_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"run\.json.*{says}"):
        read_state(tmp_path / "run.json")


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        read_config(tmp_path / "config.json")


def test_flattened_names_every_setting() -> None:
    assert flattened({"a": 1, "b": {"c": {"d": 2}, "e": {}}}) == {"a": 1, "b.c.d": 2, "b.e": {}}
