"""What a schema says of one label: `LabelSpec`. How the numbers are read and judged: `labels`, `log_columns`."""

from typing import Any, Self

from pydantic import model_validator

from features.values import Value


class LabelSpec(Value):
    """One label: its raw column (default: the name), and the values counted as positive and those dropped.

    positive: raw values that become 1; all others become 0. positive_from: raw values >= this become 1. With neither,
    the numbers are used as they are. dropped: rows with these raw values are no examples; they
    stay events of ordered histories, and are otherwise left out.
    """

    name: str
    column: str = ""
    positive: tuple[float, ...] = ()
    positive_from: float | None = None
    dropped: tuple[float, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _default_column(cls, values: Any) -> Any:
        return values | {"column": values.get("column") or values.get("name")} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.positive and self.positive_from is not None:
            raise ValueError(f"label {self.name!r} takes either positive or positive_from")
        if both := sorted({*self.positive} & {*self.dropped}):
            raise ValueError(f"label {self.name!r}: {both} stand in positive and in dropped")
        return self
