"""A config with some settings changed, as TOML text that `recsys train` takes."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recsys.config import merged_values


def config_text(config: Path, overrides: list[str], beside: Path, comments: list[str]) -> str:
    """The values of a config, its base and overrides as one TOML text to be written to the file `beside`.

    Its schema is named relative to that file. comments: lines above it.
    """
    values = merged_values(config, overrides)
    data = values.get("data", {})
    if "schema" in data:
        data = data | {"schema": os.path.relpath(config.parent / data["schema"], beside.parent)}
    lines = [*(f"# {comment}" for comment in comments), *to_toml(values | {"data": data})]
    return "\n".join(lines) + "\n"


def to_toml(values: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Lines of nested tables of numbers, texts, booleans, lists and tables in lists; no dates, no nulls."""
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    yield from (f"{_key(key)} = {_inline(value)}" for key, value in values.items() if key not in tables)
    for key, value in tables.items():
        inner = f"{place}.{_key(key)}" if place else _key(key)
        if not value or any(not isinstance(part, Mapping) for part in value.values()):
            yield from ("", f"[{inner}]")
        yield from to_toml(value, inner)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_inline(part)}" for key, part in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(part) for part in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)
