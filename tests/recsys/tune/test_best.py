from pathlib import Path

from recsys.config import load_config
from recsys.tune.best import config_text, to_toml
from tests.recsys.small_project import write_project


def test_config_text_is_the_config_with_the_overrides(tmp_path: Path) -> None:
    config = write_project(tmp_path / "project") / "ctr.toml"
    overrides = ["optimizer.dense.lr=0.02", "model.hidden=[8, 4]"]
    written = tmp_path / "tune" / "best.toml"
    written.parent.mkdir()
    written.write_text(config_text(config, overrides, written, ["a comment"]))
    expected, found = load_config(config, overrides), load_config(written)
    assert (written.parent / found.data.schema_path).resolve() == (config.parent / "demo.toml").resolve()
    data = found.data.model_copy(update={"schema_path": expected.data.schema_path})
    assert found.model_copy(update={"data": data, "name": expected.name}) == expected


def test_toml_of_nested_values_reads_back() -> None:
    import tomllib

    values = {"a": 1, "b c": 'ü"\n', "t": {"x": True, "deep": {"y": [1.5, {"k": [1]}]}, "none": {}}}
    assert tomllib.loads("\n".join(to_toml(values))) == values
