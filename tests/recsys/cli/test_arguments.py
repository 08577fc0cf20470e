"""What several commands take."""

from recsys.cli.arguments import parse_settings


def test_settings_are_toml_values_or_texts() -> None:
    assert parse_settings(["a=1", 'b="x"', "c=x", "d=[1, 2]"]) == {"a": 1, "b": "x", "c": "x", "d": [1, 2]}
    assert parse_settings(None) == {}
