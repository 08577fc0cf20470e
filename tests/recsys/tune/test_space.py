from pathlib import Path

import pytest

from recsys.config import ConfigError, parse_override
from recsys.tune.space import Choice, Range, as_override, parse_space


def test_space_is_read_from_files_and_single_texts(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        "optimizer.dense.lr = { low = 1e-4, high = 1e-2, log = true }\n[model]\nhidden = { choices = [[8], [4, 4]] }"
    )
    space = parse_space([str(file), "tables.ids.embedding_dim={low = 4, high = 8}"])
    assert list(space) == ["model.hidden", "optimizer.dense.lr", "tables.ids.embedding_dim"]
    assert space["optimizer.dense.lr"] == Range(low=1e-4, high=1e-2, log=True)
    assert space["model.hidden"] == Choice(choices=([8], [4, 4]))
    dim = space["tables.ids.embedding_dim"]
    assert isinstance(dim, Range)
    assert dim.whole


@pytest.mark.parametrize("value", [3, 0.5, 1e-05, True, "silu", [64, 32], [[1, 2]]])
def test_override_of_a_setting_reads_back_as_the_setting(value: object) -> None:
    assert parse_override(as_override("a.b", value)) == {"a": {"b": value}}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.b={low=2, high=1}", "low must be below high"),
        ("a.b={low=0, high=1, log=true}", "log takes a low above 0"),
        ("a.b={low=1, high=2, setp=1}", "unknown key 'setp', did you mean 'step'"),
        ("a.b={choices=[1]}", "choices must be two or more"),
        ("a.b=3", "a fixed value is an override"),
        ("data.split.seed={low=1, high=2}", "trials must share data"),
        ("missing.toml", "there is no space file missing.toml"),
    ],
)
def test_space_refuses(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_space([text])


def test_empty_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="the space is empty"):
        parse_space([])
