"""A pydantic error becomes one line that names the place, and for an unknown key the nearest valid one."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from features.values import Value, describe


class Circle(Value):
    kind: Literal["circle"] = "circle"
    radius: float


class Square(Value):
    kind: Literal["square"] = "square"
    width: float


class Drawing(Value):
    title: str = ""
    shapes: tuple[Annotated[Circle | Square, Field(discriminator="kind")], ...] = ()
    by_name: dict[str, Square] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _named(self) -> "Drawing":
        if self.title == "bad":
            raise ValueError("that title is taken")
        return self


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"titel": "x"}, "titel: unknown key 'titel', did you mean 'title'? (valid: by_name, shapes, title)"),
        ({"zzz": 1}, "zzz: unknown key 'zzz' (valid: by_name, shapes, title)"),
        (
            {"shapes": [{"kind": "square", "width": 1, "widht": 2}]},
            "shapes.0.square.widht: unknown key 'widht', did you mean 'width'? (valid: kind, radius, width)",
        ),
        (
            {"by_name": {"a": {"width": 1, "widht": 2}}},
            "by_name.a.widht: unknown key 'widht', did you mean 'width'? (valid: kind, width)",
        ),
        ({"title": "bad"}, "that title is taken"),
        (
            {"shapes": [{"kind": "circle", "radius": float("nan")}]},
            "shapes.0.circle.radius: Input should be a finite number, got nan",
        ),
        ({"title": ["x" * 99]}, f"title: Input should be a valid string, got ['{'x' * 58}..."),
    ],
)  # fmt: skip
def test_errors_become_one_line(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Drawing.model_validate(values)
    assert describe(raised.value, Drawing) == line
