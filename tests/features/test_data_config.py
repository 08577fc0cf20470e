"""Data configs: round trip, names, and settings that would have no effect."""

from typing import Any

import pytest
from pydantic import ValidationError

from features.data_config import DataConfig, SplitConfig
from features.values import describe

DATA: dict[str, Any] = {
    "name": "shop", "source": "csv", "path": "shop", "schema": "schemas/shop.toml", "split": {"kind": "random"},
    "files": {"events": "log.csv"}, "columns": {"user": "uid", "users": {"user": "id"}},
}  # fmt: skip


def test_data_config_round_trips() -> None:
    config = DataConfig.model_validate(DATA)
    assert DataConfig.model_validate_json(config.model_dump_json()) == config
    assert config.model_dump()["schema"] == config.schema_path == "schemas/shop.toml"


@pytest.mark.parametrize("kind", ["published", "order", "time", "last", "random", "user"])
def test_split_config_round_trips(kind: str) -> None:
    config = SplitConfig.model_validate({"kind": kind})
    assert SplitConfig.model_validate_json(config.model_dump_json()) == config


def test_meaning_does_not_follow_places() -> None:
    elsewhere = DATA | {"path": "s3://bucket/shop", "files": {"events": "other.csv"}, "schema": "shop.toml"}
    config = DataConfig.model_validate(DATA)
    assert config.meaning() == DataConfig.model_validate(elsewhere).meaning()
    assert config.meaning() != DataConfig.model_validate(DATA | {"examples": "positive"}).meaning()


def test_settings_that_are_not_given_leave_the_meaning_as_it_was() -> None:
    """Prepared folders are named by it: those made before a setting existed are found again."""
    meaning = DataConfig.model_validate(DATA).meaning()
    assert not {"negatives", "downsample", "min_events"} & set(meaning)
    given = DataConfig.model_validate(DATA | {"downsample": {"rate": 0.5}}).meaning()
    assert given == meaning | {"downsample": {"rate": 0.5, "seed": 0}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pth": "x"}, "unknown key 'pth', did you mean 'path'"),
        ({"name": "../up"}, "name: .*pattern"),
        ({"split": {"kind": "rnd"}}, "split.kind: "),
        ({"split": {"kind": "random", "sed": 1}}, "unknown key 'sed', did you mean 'seed'"),
        ({"bad_rows": "ignore"}, "bad_rows: "),
        ({"negatives": {"per_positive": 0}}, "negatives.per_positive: .* greater than or equal to 1"),
        ({"negatives": {"kind": "in_batch"}}, "negatives.kind: "),
        ({"negatives": {"kind": "popularity", "split": "own"}}, "which split 'own' does not know yet"),
        ({"negatives": {"split": "own"}, "split": {"kind": "time"}}, "is for split.kind 'random', not for 'time'"),
        ({"negatives": {}, "downsample": {"rate": 0.5}}, "lower per_positive instead"),
        ({"downsample": {"rate": 1}}, "downsample.rate: .* less than 1"),
        ({"downsample": {"rate": 0}}, "downsample.rate: .* greater than 0"),
    ],
)
def test_data_config_refuses_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(DATA | change)
    with pytest.raises(ValueError, match=message):
        raise ValueError(describe(caught.value, DataConfig))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"kind": "published", "test": 0.2}, "split.test is not for kind 'published'"),
        ({"kind": "random", "column": "part"}, "split.column is for kind 'published'"),
        ({"kind": "time", "seed": 3}, "split.seed has no effect on kind 'time'"),
        ({"kind": "order", "seed": 3}, "split.seed has no effect on kind 'order'"),
        ({"kind": "random", "test": 1}, "split.test is 1, accepted is a share below 1"),
        ({"kind": "last", "test": 1.5}, "split.test is 1.5, accepted is a share below 1, or a whole number"),
        ({"kind": "random", "test": 0.5, "validation": 0.5}, "leaves nothing to train on"),
        ({"kind": "random", "validation": -0.1}, "greater than or equal to 0"),
    ],
)
def test_split_config_refuses_settings_without_sense(split: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SplitConfig.model_validate(split)


def test_split_config_test_size() -> None:
    assert SplitConfig(kind="random").test_size == 0.1
    assert SplitConfig(kind="last", test=2).test_size == 2
    assert SplitConfig(kind="published").test_size == 0


def test_split_by_day_is_all_train() -> None:
    split = SplitConfig.model_validate({"kind": "day"})
    assert (split.validation, split.test_size) == (0, 0)
    assert SplitConfig.model_validate(split.model_dump()) == split
    for name in ("validation", "test", "seed"):
        with pytest.raises(ValidationError, match="takes no shares and no seed"):
            SplitConfig.model_validate({"kind": "day", name: 1})
