"""What a run config says about its data: `DataConfig` and `SplitConfig`. Values only; no file is looked at here."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from features.values import Value

DEFAULT_TEST = 0.1


class SplitConfig(Value):
    """How events are split.

    validation, test: below 1 shares of the examples (of each user's, for "last"; validation of each user's train
    examples, for "published"; of the users, and only about that many, for "user"); for "last", from 1 on, numbers of
    examples per user. At least one example of each user stays in train, but for "user". test is .1 where nothing is
    said, and is not for "published". seed: of random choices. column: the raw column that holds `train`, `validation`
    or `test`, for "published" (default: as the source says).
    "day": each UTC day by itself, trained on whole and tested on by the model of the day before (`recsys daily`).
    """

    kind: Literal["published", "order", "time", "last", "random", "user", "day"]
    validation: float = Field(default=0.1, ge=0)
    test: float | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0)
    column: str = ""

    @model_validator(mode="before")
    @classmethod
    def _a_day_is_whole(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("kind") != "day":
            return values
        if any(values.get(name) for name in ("validation", "test", "seed")):
            raise ValueError("split.kind 'day' takes no shares and no seed: all of a day is train, the next day tests")
        return values | {"validation": 0.0, "test": 0.0}

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        if self.kind == "published" and self.test is not None:
            raise ValueError("split.test is not for kind 'published', whose test part is given")
        if self.kind != "published" and self.column:
            raise ValueError(f"split.column is for kind 'published', not for {self.kind!r}")
        if self.kind in ("order", "time", "last") and self.seed:
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


class NegativesConfig(Value):
    """Negatives drawn for a log that holds positives alone (see `negatives`).

    kind: "uniform" over the items of the log, or "popularity", in proportion to an item's positive train examples.
    per_positive: how many, of different items, beside each positive example. split: a negative goes where its positive
    goes ("with_positive"), or each row is split on its own ("own", for random splits: what published sets do whose
    negatives were drawn before they were split).
    """

    kind: Literal["uniform", "popularity"] = "uniform"
    per_positive: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    split: Literal["with_positive", "own"] = "with_positive"

    @model_validator(mode="after")
    def _knows_train(self) -> Self:
        if self.kind == "popularity" and self.split == "own":
            raise ValueError("negatives.kind 'popularity' counts train examples, which split 'own' does not know yet")
        return self


class DownsampleConfig(Value):
    """Of the negative train examples (first label at most 0) each is kept with probability `rate`.

    Which ones follows from row number and seed. Positives, validation and test stay whole. Odds learned on such data
    are 1 / rate too high: the logit of the whole log is the model's + log(rate) (He et al. 2014, in another form).
    """

    rate: float = Field(gt=0, lt=1)
    seed: int = Field(default=0, ge=0)


class DataConfig(Value):
    """One dataset: where its raw files are, what they mean, and how they become examples.

    name: of the prepared folder. source: a key of `sources.SOURCES` or `package.module:Name`. path: of the raw data,
    relative to the folder of datasets, or a URI, or a world's name. files, columns, options: see `SourceRequest`.
    schema: the features, a TOML file relative to the config file. bad_rows, duplicates: see `LogRules`. examples:
    "positive" keeps only events whose first label is above 0 (all, where there is no label): implicit feedback;
    "all" keeps every event. negatives: drawn beside the examples. downsample: which negatives train.
    min_events: users with fewer events in the log, those that a label drops counted, give no examples.
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
    negatives: NegativesConfig | None = Field(default=None, exclude_if=lambda given: given is None)
    downsample: DownsampleConfig | None = Field(default=None, exclude_if=lambda given: given is None)
    min_events: int = Field(default=0, ge=0, exclude_if=lambda number: number == 0)

    @model_validator(mode="after")
    def _negatives_have_effect(self) -> Self:
        if self.negatives is None:
            return self
        if self.downsample is not None:
            raise ValueError("data.downsample would thin the negatives that are drawn; lower per_positive instead")
        if self.negatives.split == "own" and self.split.kind != "random":
            raise ValueError(f"negatives.split 'own' is for split.kind 'random', not for {self.split.kind!r}")
        return self

    @property
    def positive(self) -> bool:
        """Whether only events with a positive first label are examples."""
        return self.examples == "positive"

    def meaning(self) -> dict[str, Any]:
        """All that decides what the prepared data hold, but not where the raw files and the schema are."""
        return self.model_dump(mode="json", exclude={"path", "files", "schema_path"})
