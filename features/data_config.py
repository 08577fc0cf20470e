"""What a run config says about its data: `DataConfig` and `SplitConfig`. Values only; no file is looked at here."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from features.values import Value

DEFAULT_TEST = 0.1


class SplitConfig(Value):
    """How events are split.

    validation, test: below 1 shares of the examples (of each user's, for "last"; validation of each user's train
    examples, for "published"); for "last", from 1 on, numbers of examples per user. At least one example of each user
    stays in train. test is .1 where nothing is said, and is not for "published". seed: of random choices. column: the
    raw column that holds `train`, `validation` or `test`, for "published" (default: as the source says).
    """

    kind: Literal["published", "time", "last", "random"]
    validation: float = Field(default=0.1, ge=0)
    test: float | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0)
    column: str = ""

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        if self.kind == "published" and self.test is not None:
            raise ValueError("split.test is not for kind 'published', whose test part is given")
        if self.kind != "published" and self.column:
            raise ValueError(f"split.column is for kind 'published', not for {self.kind!r}")
        if self.kind in ("time", "last") and self.seed:
            raise ValueError(f"split.seed has no effect on kind {self.kind!r}")
        shares = {"validation": self.validation, "test": self.test_size}
        for name, share in shares.items():
            if share >= 1 and (self.kind != "last" or share != int(share)):
                accepted = "a share below 1, or a whole number" if self.kind == "last" else "a share below 1"
                raise ValueError(f"split.{name} is {share:g}, accepted is {accepted}")
        if sum(share for share in shares.values() if share < 1) >= 1:
            raise ValueError(
                f"split.validation + split.test is {sum(shares.values()):g}, which leaves nothing to train on"
            )
        return self

    @property
    def test_size(self) -> float:
        """The share or number of test examples; 0 where the source gives them."""
        if self.kind == "published":
            return 0.0
        return DEFAULT_TEST if self.test is None else self.test


class DataConfig(Value):
    """One dataset: where its raw files are, what they mean, and how they become examples.

    name: of the prepared folder. source: a key of `sources.SOURCES` or `package.module:Name`. path: of the raw data,
    relative to the folder of datasets, or a URI, or a world's name. files, columns, options: see `SourceRequest`.
    schema: the features, a TOML file relative to the config file. bad_rows, duplicates: see `LogRules`. examples:
    "positive" keeps only events whose first label is above 0 (all, where there is no label): implicit feedback;
    "all" keeps every event.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True,
        serialize_by_alias=True,
    )  # fmt: skip

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    source: str
    path: str
    files: Mapping[str, str] = Field(default_factory=dict)
    schema_path: str = Field(alias="schema")
    columns: Mapping[str, str | Mapping[str, str]] = Field(default_factory=dict)
    bad_rows: Literal["fail", "quarantine"] = "fail"
    duplicates: Literal["keep", "refuse"] = "keep"
    split: SplitConfig
    examples: Literal["positive", "all"] = "all"
    options: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def positive(self) -> bool:
        """Whether only events with a positive first label are examples."""
        return self.examples == "positive"

    def meaning(self) -> dict[str, Any]:
        """All that decides what the prepared data hold, but not where the raw files and the schema are."""
        return self.model_dump(mode="json", exclude={"path", "files", "schema_path"})
