"""A frozen value object that refuses what it does not know, and the one line that says so.

Schemas and configs are made of these. Nothing in here knows a feature.
"""

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

LONGEST = 60  # characters shown of what came
SAYS_ALL = ("missing", "value_error")  # nothing came, and validators of ours, which say it themselves


class Value(BaseModel):
    """A frozen value object that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault of a pydantic error in one line, with what came; the nearest valid name for an unknown key."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "model_type":
        return f"{place}: takes keys ({', '.join(sorted(_fields_at(model, first['loc'])))}), got {first['input']!r}"
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] not in SAYS_ALL:
            came = repr(first["input"])
            message += f", got {came[:LONGEST]}{'...' * (len(came) > LONGEST)}"
        return f"{place}: {message}" if place else message
    key = str(first["loc"][-1])
    valid = sorted(_fields_at(model, first["loc"][:-1]))
    near = get_close_matches(key, valid, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return f"{place}: unknown key {key!r}{hint} (valid: {', '.join(valid)})"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Field names of the model reached by a pydantic error location; the union of members where it is a union."""
    models = [model]
    for part in path:
        if isinstance(part, int):
            continue
        annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [found for annotation in annotations for found in _models_in(annotation)] or models
    return {field.alias or name for found in models for name, field in found.model_fields.items()}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
