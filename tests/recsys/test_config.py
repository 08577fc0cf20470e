from pathlib import Path

import pytest

from recsys.config import ConfigError, RunConfig, import_name, load_config

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.toml"))
MINIMAL = """
[data]
name = "clicks"
source = "csv"
path = "clicks.csv"
schema = "schema.toml"
split = { kind = "random" }

[model]
name = "dcn"

[tables.ids]
method = "dense"
embedding_dim = 8
"""


def written(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_config_round_trips(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, MINIMAL))
    again = RunConfig.from_json(config.to_json())
    assert again == config
    assert again.content_hash == config.content_hash
    assert config.name == "run"
    assert config.tables.specs["ids"].options == {"embedding_dim": 8}


def test_config_hash_ignores_the_name_alone(tmp_path: Path) -> None:
    one = load_config(written(tmp_path, MINIMAL))
    assert load_config(written(tmp_path, MINIMAL, "other.toml")).content_hash == one.content_hash
    assert load_config(tmp_path / "run.toml", ["seed=2"]).content_hash != one.content_hash


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[training]\nbatch_sise = 3", "did you mean 'batch_size'"),
        ("[traning]\nbatch_size = 3", "did you mean 'training'"),
        ("[training]\nbatch_size = 0", "training.batch_size"),
        ("[optimizer.tables]\nname = 'adamm'", "'rowwise_adagrad' or 'adam'"),
        ("[model", "is not TOML"),
    ],
)
def test_config_faults_name_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=".*".join(says.split())) as caught:
        load_config(written(tmp_path, MINIMAL + "\n" + text))
    assert "run.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_config_overrides_win_and_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    config = load_config(path, ["training.batch_size=7", "model.hidden=[3, 4]", "data.name=other"])
    assert config.training.batch_size == 7
    assert config.model.options == {"hidden": [3, 4]}
    assert config.data.name == "other"
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        load_config(path, ["training.batch_sze=7"])
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(path, ["training"])


def test_config_base_is_one_level_deep(tmp_path: Path) -> None:
    written(tmp_path, MINIMAL, "base.toml")
    child = written(tmp_path, 'base = "base.toml"\n[tables.ids]\nembedding_dim = 4', "child.toml")
    assert load_config(child).tables.specs["ids"].options == {"embedding_dim": 4}
    written(tmp_path, 'base = "child.toml"', "grandchild.toml")
    with pytest.raises(ConfigError, match="one level"):
        load_config(tmp_path / "grandchild.toml")


def test_config_sharding_without_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sharding has no effect"):
        load_config(written(tmp_path, MINIMAL), ["tables.sharding=row_wise"])


def test_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        load_config(tmp_path / "nothing.toml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_load(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert path.read_text().startswith("#"), "a config starts with its header comment"


def test_config_files_are_all_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert {f"gowalla_{model}" for model in ("popularity", "itemknn", "p3", "mf", "twotower")} <= names
    assert {"demo", "demo_ctr", "amazonbeauty_mf", "amazonbeauty_p3"} <= names
    assert {f"movielens1m_{model}" for model in ("lr", "dcn", "dcn_unified")} <= names


def test_import_name_asks_for_permission() -> None:
    assert import_name("pathlib:Path") is Path
    with pytest.raises(ConfigError, match="not allowed"):
        import_name("pathlib:Path", allowed=["mypkg"])
    for wrong in ("nothing", "no.such.module:Name", "pathlib:Nothing"):
        with pytest.raises(ConfigError):
            import_name(wrong)
