"""What the features of a dataset are: `FeatureSpec`, `SequenceGroup`, `FeatureSchema`, read from one TOML file.

Everything reads this: preparing, tables, models, serving. A schema says what a column means; the statistics found in
the data (vocabularies, means) live in an `Encoder`, the numbers of a run in its config.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from features.label_spec import LabelSpec
from features.sequences import Age, Alignment, Pooling, SequenceGroup
from features.transforms import Bucketise, Clip, Log1p, Standardise, Transform
from features.values import Value, describe

__all__ = [
    "Age", "Alignment", "Bucketise", "Clip", "FeatureSchema", "FeatureSpec", "LabelSpec", "Log1p", "SequenceGroup",
    "Standardise", "Transform", "Value", "describe", "parse_schema",
]  # fmt: skip

Kind = Literal["id", "id_list", "id_score_list", "dense"]
Entity = Literal["user", "item", "event"]
ID_KINDS = ("id", "id_list", "id_score_list")


class FeatureSpec(Value):
    """One named input.

    kind: `id` one id per row, `id_list` some, `id_score_list` some with weights, `dense` one number.
    entity: whose property it is. `user` and `item` features are stored once per user or item and joined by id, when
    training and when serving; `event` features stand in each row.
    column: the raw column (default: the name). vocabulary: features that name the same one share ids, and, in a
    multiplexed table, rows and salt (default: the name). hashed: ids are 64-bit hashes, no vocabulary is kept;
    `shares` names another hashed feature whose ids, rows and salt it then uses.
    table: the key of the table specification that serves it. chunks: pieces of a multiplexed feature.
    max_length: of a longer list the last max_length values are kept, as of a history.
    unseen: an id outside the vocabulary reads row 0, kept for it (`own_row`), or is an error (`refuse`).
    missing: a null is an id of its own (`own_id`), an error (`refuse`), or the number given (dense only; a raw value,
    which then passes through the transforms). A null list is an empty list unless nulls are refused.
    min_count: rarer ids of the train split are treated as unseen.
    separator: what joins the ids of a list that stands in a text column.
    history_only: a value of past events, never of the row itself (a rating: it would be the label). It is no input of
    its own and asked of no row; a sequence repeats it.
    """

    name: str
    kind: Kind = "id"
    entity: Entity = "event"
    column: str = ""
    vocabulary: str = ""
    hashed: bool = False
    shares: str = ""
    table: str | None = None
    chunks: int = Field(default=1, ge=1)
    pooling: Pooling | None = None
    max_length: int | None = Field(default=None, ge=1)
    unseen: Literal["own_row", "refuse"] = "own_row"
    missing: Literal["own_id", "refuse"] | float = "own_id"
    min_count: int = Field(default=1, ge=1)
    separator: str = "|"
    transforms: tuple[Transform, ...] = ()
    history_only: bool = Field(default=False, exclude_if=lambda only: not only)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        kind = values.get("kind", "id")
        values["column"] = values.get("column") or values.get("name")
        if kind in ID_KINDS and not values.get("hashed"):
            values["vocabulary"] = values.get("vocabulary") or values.get("name")
        if kind in ("id_list", "id_score_list"):
            values.setdefault("pooling", "mean")
        if kind == "dense":
            values.setdefault("missing", "refuse")
        return values

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        for reason in self._faults():
            raise ValueError(f"feature {self.name!r}: {reason}")
        return self

    def _faults(self) -> Iterator[str]:
        table = "_" if self.table is None else self.table
        names = {"name": self.name, "vocabulary": self.vocabulary or "_", "shares": self.shares or "_", "table": table}
        for key, name in names.items():
            if not re.fullmatch(r"\w[\w-]*", name):
                yield f"{key} {name!r} must consist of letters, digits, '_' and '-' (`column` may be anything)"
        if self.history_only and (self.kind, self.entity) != ("id", "event"):
            yield f"history_only is for ids of events, not for kind {self.kind!r} of entity {self.entity!r}"
        yield from self._table_faults()
        yield from self._list_faults()
        yield from self._missing_faults()
        yield from self._transform_faults()

    def _table_faults(self) -> Iterator[str]:
        if self.is_id and self.table is None:
            yield f"kind {self.kind!r} needs a table"
        if not self.is_id and self.table is not None:
            yield "kind 'dense' reads no table; remove `table`"
        if not self.is_id and (self.vocabulary or self.hashed or self.chunks > 1):
            yield "vocabulary, hashed and chunks are for ids, not for kind 'dense'"
        if self.hashed and self.vocabulary:
            yield "hashed ids keep no vocabulary; remove `vocabulary` or `hashed`"
        if self.shares and not self.hashed:
            yield "`shares` is for hashed ids; other features share ids by naming the same vocabulary"
        keeps_vocabulary = self.is_id and not self.hashed and not self.bucketised
        if not keeps_vocabulary and (self.unseen != "own_row" or self.min_count > 1):
            yield "unseen and min_count are for ids with a vocabulary; hashed, bucketised and dense features have none"

    def _list_faults(self) -> Iterator[str]:
        if not self.is_list and (self.pooling is not None or self.max_length is not None):
            yield f"pooling and max_length are for lists, not for kind {self.kind!r}"
        if not self.is_list and self.separator != "|":
            yield f"separator is for lists, not for kind {self.kind!r}"
        if not self.separator or (self.kind == "id_score_list" and self.separator == ":"):
            yield f"separator {self.separator!r} cannot separate the values of kind {self.kind!r}"

    def _missing_faults(self) -> Iterator[str]:
        if self.is_id and isinstance(self.missing, float):
            yield "a number for `missing` is for kind 'dense'; ids take 'own_id' or 'refuse'"
        if not self.is_id and self.missing == "own_id":
            yield "missing = 'own_id' is for ids; dense takes 'refuse' or a number"

    def _transform_faults(self) -> Iterator[str]:
        kinds = [transform.kind for transform in self.transforms]
        if self.bucketised and (self.kind != "id" or kinds[-1] != "bucketise" or self.hashed):
            yield "bucketise is for kind 'id', not hashed, and must come last"
        if kinds and self.is_id and not self.bucketised:
            yield "transforms on an id must end in bucketise"
        if max(kinds.count("standardise"), kinds.count("bucketise")) > 1:
            yield "standardise and bucketise may each stand once"

    @property
    def is_id(self) -> bool:
        """Whether the feature reads an embedding table."""
        return self.kind in ID_KINDS

    @property
    def is_list(self) -> bool:
        """Whether a row holds a list of ids."""
        return self.kind in ("id_list", "id_score_list")

    @property
    def bucketised(self) -> bool:
        """Whether its ids are the buckets of a number; such ids need no vocabulary."""
        return any(transform.kind == "bucketise" for transform in self.transforms)

    @property
    def salt(self) -> str:
        """What separates it in a shared hash: the vocabulary; when hashed, the feature that it shares, or itself."""
        return self.vocabulary or self.shares or self.name


class FeatureSchema(Value):
    """The features, sequences and labels of a dataset.

    user and item name the `id` features that identify the two entities ("" if there is none), which belong to them
    without saying `entity`; timestamp, weight, group and probability name raw columns ("" if absent; probability is a
    world's planted truth, scored as the ceiling).
    """

    name: str
    user: str = ""
    item: str = ""
    timestamp: str = ""
    weight: str = ""
    group: str = ""
    probability: str = ""
    features: tuple[FeatureSpec, ...]
    sequences: tuple[SequenceGroup, ...] = ()
    labels: tuple[LabelSpec, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _roles_are_entities(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        roles = {values.get(role): role for role in ("user", "item") if values.get(role)}
        return values | {"features": tuple(_with_role(feature, roles) for feature in values.get("features", ()))}

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names = self._names
        for what, given in (
            ("feature", names),
            ("sequence group", self._group_names),
            ("label", [label.name for label in self.labels]),
        ):
            twice = sorted({name for name in given if given.count(name) > 1})
            if twice:
                raise ValueError(f"{what} names must be unique, {twice} stand twice")
        for role, name in (("user", self.user), ("item", self.item)):
            if name and (name not in names or self.feature(name).kind != "id" or self.feature(name).bucketised):
                raise ValueError(f"{role} = {name!r} must name a feature of kind 'id'; features are {names}")
            if name and self.feature(name).entity != role:
                raise ValueError(f"{role} = {name!r}: that feature's entity is {self.feature(name).entity!r}")
        for group in self.sequences:
            self._check_sequence(group)
        repeated = {source for group in self.sequences for source in group.of.values()}
        for feature in self.features:
            if feature.history_only and feature.name not in repeated:
                raise ValueError(f"feature {feature.name!r} is history_only, but no sequence repeats it")
        self._check_shared()
        return self

    def _check_sequence(self, group: SequenceGroup) -> None:
        if not (self.user and self.item):
            raise ValueError(f"sequence group {group.name!r} needs `user` and `item` in the schema")
        if not group.of:
            raise ValueError(f"sequence group {group.name!r} repeats no feature; give `of`")
        if group.label and group.label not in [label.name for label in self.labels]:
            raise ValueError(f"sequence group {group.name!r} names label {group.label!r}, which the schema lacks")
        for sequence, repeated in group.of.items():
            spec = self.feature(repeated)
            if spec.kind != "id" or spec.entity == "user":
                raise ValueError(f"sequence {sequence!r} repeats {repeated!r}, which must be an id of an item or event")
        if len(set(group.of.values())) < len(group.of):
            raise ValueError(f"sequence group {group.name!r} repeats a feature twice: {dict(group.of)}")

    def _check_shared(self) -> None:
        """Features that share ids must agree on what those ids are."""
        for name, specs in self.vocabularies.items():
            for key in ("unseen", "min_count"):
                values = {spec.name: getattr(spec, key) for spec in specs}
                if len(set(values.values())) > 1:
                    raise ValueError(f"features that share vocabulary {name!r} differ in {key}: {values}")
        for spec in self.features:
            sharing = [other for other in self.features if spec.bucketised and other.vocabulary == spec.vocabulary]
            if len(sharing) > 1:
                raise ValueError(f"feature {spec.name!r} is bucketised and cannot share vocabulary {spec.vocabulary!r}")
            owner = self.feature(spec.shares) if spec.shares else spec
            if spec.shares and (not owner.hashed or owner.shares):
                raise ValueError(f"feature {spec.name!r} shares {spec.shares!r}, which must be hashed, sharing nothing")
        for spec in self.features:
            chunks = {other.name: other.chunks for other in self.features if _same_rows(spec, other)}
            if len(set(chunks.values())) > 1:
                raise ValueError(f"features that share ids in table {spec.table!r} differ in chunks: {chunks}")

    @property
    def _group_names(self) -> list[str]:
        return [group.name for group in self.sequences]

    @property
    def _names(self) -> list[str]:
        return [feature.name for feature in self.features] + [name for group in self.sequences for name in group.names]

    def feature(self, name: str) -> FeatureSpec:
        """The feature of that name; a sequence's name gives an `id_list` with its source's table and vocabulary."""
        for feature in self.features:
            if feature.name == name:
                return feature
        for group in self.sequences:
            if name in group.names:
                return self._sequence_spec(group, name)
        near = get_close_matches(name, self._names, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"schema {self.name!r} has no feature {name!r}{hint} (it has {', '.join(self._names)})")

    def source(self, name: str) -> FeatureSpec:
        """The feature whose ids are read under that name: the feature itself, or the one that a sequence repeats."""
        repeated = [group.of[name] for group in self.sequences if name in group.of]
        return self.feature(repeated[0] if repeated else name)

    def _sequence_spec(self, group: SequenceGroup, name: str) -> FeatureSpec:
        if group.age is not None and group.age.name == name:
            return FeatureSpec(
                name=name, kind="id_list", entity="user", table=group.age.table, chunks=group.age.chunks,
                pooling=group.pooling, max_length=group.max_length, missing="refuse",
            )  # fmt: skip
        source = self.feature(group.of[name])
        shared = {"vocabulary": source.vocabulary} if source.vocabulary else {"hashed": True, "shares": source.salt}
        return FeatureSpec(
            name=name, kind="id_list", entity="user", table=source.table, chunks=source.chunks,
            pooling=group.pooling, max_length=group.max_length, unseen=source.unseen, **shared,
        )  # fmt: skip

    @property
    def inputs(self) -> tuple[FeatureSpec, ...]:
        """Every feature that a batch can hold: the features but those of past events alone, then the sequences."""
        own = tuple(feature for feature in self.features if not feature.history_only)
        return own + tuple(self.feature(name) for group in self.sequences for name in group.names)

    @property
    def orders_events(self) -> bool:
        """Whether its histories are cut by time."""
        return any(group.ordered for group in self.sequences)

    @property
    def ages(self) -> dict[str, Age]:
        """The ages of the sequence groups by name. A feature that names one as its vocabulary reads the same ids."""
        return {group.age.name: group.age for group in self.sequences if group.age is not None}

    def alignment(self, name: str) -> Alignment:
        """How the sequences of the named group meet the target. Raises ValueError naming the groups that there are."""
        found = [group for group in self.sequences if group.name == name]
        if not found:
            raise ValueError(f"schema {self.name!r} has no sequence group {name!r}, it has {self._group_names}")
        pairs = {source: own for own, source in found[0].of.items() if not self.feature(source).history_only}
        return Alignment(pairs=pairs, alone=tuple(own for own in found[0].names if own not in pairs.values()))

    def of_entity(self, entity: Entity) -> tuple[FeatureSpec, ...]:
        """The features (without sequences) of users, of items, or of events."""
        return tuple(feature for feature in self.features if feature.entity == entity)

    @property
    def vocabularies(self) -> dict[str, tuple[FeatureSpec, ...]]:
        """Vocabulary learned from data -> the features that read it; hashed, bucketised ones and ages have none."""
        learned = [spec for spec in self.features if spec.vocabulary not in ("", *self.ages) and not spec.bucketised]
        names = dict.fromkeys(spec.vocabulary for spec in learned)
        return {name: tuple(spec for spec in learned if spec.vocabulary == name) for name in names}

    @property
    def content_hash(self) -> str:
        """SHA-256 of the canonical JSON form, hex."""
        return sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "FeatureSchema":
        """The inverse of `to_json`."""
        try:
            return FeatureSchema.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"schema: {describe(error, FeatureSchema)}") from None

    @staticmethod
    def load(path: str | Path) -> "FeatureSchema":
        """Read a TOML schema; a wrong or unknown key raises ValueError naming file, key and the nearest valid one."""
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not TOML: {error}") from None
        return parse_schema(values, where=str(path))


def parse_schema(values: Mapping[str, Any], where: str) -> FeatureSchema:
    """A schema from TOML tables `[features.NAME]`, `[sequences.NAME]`, `[labels.NAME]` and top-level keys.

    Raises ValueError naming `where`, the table and key at fault, and the nearest valid key.
    """
    parts: dict[str, type[Value]] = {"features": FeatureSpec, "sequences": SequenceGroup, "labels": LabelSpec}
    parsed = {part: _parse_tables(values.get(part, {}), model, f"{where}: {part}") for part, model in parts.items()}
    try:
        return FeatureSchema.model_validate(dict(values) | parsed)
    except ValidationError as error:
        raise ValueError(f"{where}: {describe(error, FeatureSchema)}") from None


def _parse_tables(tables: Any, model: type[Value], where: str) -> tuple[Value, ...]:
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        raise ValueError(f"{where} must be tables, one per name: [{where.rpartition(' ')[2]}.NAME]")
    found = []
    for name, table in tables.items():
        try:
            found.append(model.model_validate(dict(table) | {"name": name}))
        except ValidationError as error:
            raise ValueError(f"{where}.{name}: {describe(error, model)}") from None
    return tuple(found)


def _with_role(feature: Any, roles: Mapping[Any, str]) -> Any:
    """The feature that identifies users or items belongs to them, whether or not it says so."""
    if isinstance(feature, FeatureSpec):
        is_role = feature.name in roles and feature.entity == "event"
        return feature.model_copy(update={"entity": roles[feature.name]}) if is_role else feature
    if isinstance(feature, dict) and feature.get("name") in roles:
        return {"entity": roles[feature["name"]]} | feature
    return feature


def _same_rows(one: FeatureSpec, other: FeatureSpec) -> bool:
    return one.is_id and other.is_id and (one.table, one.salt, one.hashed) == (other.table, other.salt, other.hashed)
