"""A first schema, guessed from a table: TOML text with every doubt as a comment, to be edited by hand.

Guesses come from names (user, item, time, label, weight) and from the values read: type, distinct values, range,
missing share. It is a start, not a truth: what a number means only its owner knows.
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.raw_ids import as_array
from features.samples import NUMBER, Sample, read_sample

SAMPLE_ROWS = 200_000
TABLE = "ids"
MAX_CATEGORIES = 50

_PARTS = ("user", "item", "time", "label", "weight", "feature", "left")
_SINGLE = ("user", "item", "weight")
_EPOCHS = tuple((start * unit, end * unit) for start, end in [(6e8, 4.2e9)] for unit in (1, 1e3, 1e6, 1e9))

_ROLES = {
    "user": "user|customer|visitor|member|account|session|client|uid|reviewer|person",
    "item": "item|product|movie|article|news|ad|video|song|track|book|sku|content|iid|asin|artist|game|place|document",
}
_TIME = "timestamp|time|date|datetime|ts|event_?time|created(_at)?|unix_?time"
_LABEL = "label|is_click|click(ed)?|rating|stars|conversion|converted|purchased?|target|liked?|bought|y"
_WEIGHT = "(sample_?)?weight"
_ID_ENDING = r"(^|_)(id|ids|key|code|type|category|cat|zip|zipcode|hash)$"
_SCORED = r"^[^|:]+:[-+.0-9eE]+(\|[^|:]+:[-+.0-9eE]+)*$"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One column as read. name: its feature's name; num_distinct: of values, or of a list's elements."""

    name: str
    column: str
    values: pa.Array
    num_distinct: int
    low: Any
    high: Any

    @property
    def num_missing(self) -> int:
        """Rows without a value."""
        return int(self.values.null_count)

    @property
    def is_integer(self) -> bool:
        """Whether all values are whole numbers of an integer type."""
        return bool(pa.types.is_integer(self.values.type))

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers of any type."""
        kind = self.values.type
        return bool(self.is_integer or pa.types.is_floating(kind) or pa.types.is_decimal(kind))

    @property
    def is_text(self) -> bool:
        """Whether it holds strings."""
        return _is_text(self.values.type)

    @property
    def is_time(self) -> bool:
        """Whether it holds dates or times."""
        return bool(pa.types.is_temporal(self.values.type))

    @property
    def is_list(self) -> bool:
        """Whether it holds Arrow lists."""
        return _is_list(self.values.type)

    @property
    def num_present(self) -> int:
        """Rows with a value."""
        return len(self.values) - self.num_missing

    def named(self, pattern: str) -> bool:
        """Whether its name is one of the pattern's, an id ending aside."""
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.name).lower().replace("-", "_")
        return re.fullmatch(f"({pattern})(_?(id|key|index|idx|no))?", words) is not None

    def facts(self) -> str:
        """Distinct values, range and missing values in words."""
        distinct = f"{self.num_distinct:,} distinct" + (" in its lists" if self.is_list else "")
        span = "" if self.low is None or self.is_text else f", {_shown(self.low)} to {_shown(self.high)}"
        missing = f", {self.num_missing:,} missing" if self.num_missing else ""
        return distinct + span + missing


def infer(source: Path | str | pa.Table, *, max_rows: int = SAMPLE_ROWS) -> str:
    """TOML of a first schema for a CSV, TSV or Parquet file (path or URI, text also .gz), or for an Arrow table.

    At most max_rows rows are read, and the text says which. It parses with `parse_schema`. Raises ValueError naming
    the file for one that has no columns or rows, or cannot be read.
    """
    sample = read_sample(source, max_rows)
    names = feature_names(sample.table.column_names)
    columns = zip(names, sample.table.column_names, sample.table.columns, strict=True)
    parts = _parts([_profile(name, column, values) for name, column, values in columns])
    return "\n".join(_lines(sample, parts)) + "\n"


def feature_names(columns: list[str]) -> list[str]:
    """A distinct valid feature name for each column: "Movie Id:token" -> "Movie_Id"; "" becomes "column"."""
    names: list[str] = []
    for column in columns:
        plain = re.sub(r":(token|float)(_seq)?$", "", column)
        start = re.sub(r"[^\w-]+", "_", plain).strip("_-") or "column"
        numbered = (f"{start}_{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([start], numbered) if name not in names))
    return names


def _profile(name: str, column: str, values: pa.ChunkedArray) -> Profile:
    array = as_array(values, f"column {column!r}")
    plain = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    if pa.types.is_floating(plain.type):
        plain = pc.if_else(pc.is_finite(plain), plain, pa.scalar(None, plain.type))
    flat = plain.flatten() if _is_list(plain.type) else plain
    flat = flat.field(0) if pa.types.is_struct(flat.type) and flat.type.num_fields else flat
    countable = not pa.types.is_nested(flat.type) and not pa.types.is_null(flat.type)
    ordered = countable and len(flat) > flat.null_count and not _is_list(plain.type)
    span = pc.min_max(plain).as_py() if ordered else {"min": None, "max": None}
    num_distinct = pc.count_distinct(flat).as_py() if countable else 0
    return Profile(name=name, column=column, values=plain, num_distinct=num_distinct, low=span["min"], high=span["max"])


def _parts(profiles: list[Profile]) -> dict[str, list[Profile]]:
    """Every column in one part; of users, items, times and weights only the first counts."""
    parts: dict[str, list[Profile]] = {part: [] for part in _PARTS}
    for profile in profiles:
        part = _part_of(profile)
        parts["feature" if part in _SINGLE and parts[part] else part].append(profile)
    return parts


def _part_of(profile: Profile) -> str:
    if _reason_to_leave(profile):
        return "left"
    for role, names in _ROLES.items():
        if profile.named(names) and (profile.is_integer or profile.is_text or _is_whole(profile)):
            return role
    if profile.is_time or (profile.is_number and profile.named(_TIME)):
        return "time"
    if (profile.is_number or pa.types.is_boolean(profile.values.type)) and profile.named(_LABEL):
        return "label"
    return "weight" if profile.is_number and profile.named(_WEIGHT) and profile.low >= 0 else "feature"


def _reason_to_leave(profile: Profile) -> str:
    kind = profile.values.type
    if not profile.column:
        return "it has no name"
    if profile.num_missing == len(profile.values):
        return "it holds no values"
    if _is_list(kind):
        elements = kind.value_type
        scored = pa.types.is_struct(elements) and sorted(field.name for field in elements) == ["id", "score"]
        ids = pa.types.is_integer(elements) or _is_text(elements) or scored
        return "" if ids else f"no feature holds {_text(str(kind))}"
    if profile.num_distinct == 1:
        return f"it holds one value only, {_shown(profile.values.drop_null()[0].as_py())}"
    if profile.is_text and len(profile.values) > MAX_CATEGORIES and profile.num_distinct > 0.9 * profile.num_present:
        names_something = re.search(_ID_ENDING, profile.name.lower()) or any(map(profile.named, _ROLES.values()))
        return "" if names_something else "nearly every value differs: free text, or a key of the row"
    readable = profile.is_number or profile.is_text or profile.is_time or pa.types.is_boolean(kind)
    return "" if readable else f"no feature holds {_text(str(kind))}"


def _lines(sample: Sample, parts: dict[str, list[Profile]]) -> Iterator[str]:
    yield f"# A first schema, guessed from {sample.which}; what is counted below is counted in these."
    yield '# Lines that begin with "# ?" are doubts: decide, edit, delete them.'
    if all(re.fullmatch(NUMBER, column) for column in sample.table.column_names):
        yield "# ? every column is named by a number: has the file no header line?"
    yield f"name = {_text(sample.name)}"
    yield from _role_lines(parts)
    for profile in parts["left"]:
        yield f"# ? column {_text(profile.column)} is left out: {_reason_to_leave(profile)}"
    for profile in parts["time"][1:]:
        yield f"# ? column {_text(profile.column)} is left out: one column is the time already"
    for profile in parts["user"] + parts["item"] + parts["feature"]:
        yield from ("", *_feature_lines(profile, parts))
    for profile in parts["label"]:
        yield from ("", *_label_lines(profile))
    yield from _sequence_lines(parts)


def _role_lines(parts: dict[str, list[Profile]]) -> Iterator[str]:
    for role in _ROLES:
        if parts[role]:
            yield f"{role} = {_text(parts[role][0].name)}"
        else:
            yield f'# ? no column looks like the {role}: {role} = "..." (retrieval and sequences need it)'
    if parts["time"]:
        time = parts["time"][0]
        yield f"timestamp = {_text(time.column)}  # {time.facts()}"
        if not time.is_time and not any(low <= float(time.low) and float(time.high) <= high for low, high in _EPOCHS):
            yield "# ? those are no times since 1970; a column that only orders events will do"
    else:
        yield '# ? no column looks like the time: timestamp = "..." (without one, a history has no order)'
    if parts["weight"]:
        yield f"weight = {_text(parts['weight'][0].column)}"
    if not parts["label"]:
        yield "# ? no column looks like a label; without one every row counts as a positive event"


def _feature_lines(profile: Profile, parts: dict[str, list[Profile]]) -> Iterator[str]:
    yield f"[features.{_key(profile.name)}]  # {profile.facts()}"
    if profile.column != profile.name:
        yield f"column = {_text(profile.column)}"
    if profile in parts["user"] + parts["item"]:
        yield f"table = {_text(TABLE)}"
        return
    for role in _ROLES:
        if parts[role] and _constant_within(profile, parts[role][0]):
            yield f'# ? one value per {role} in these rows: entity = "{role}" if a table of {role}s holds it'
    if profile.is_list or profile.is_text:
        yield from _text_or_list_lines(profile)
    elif _looks_like_id(profile):
        yield f"table = {_text(TABLE)}"
        if profile.is_number and not re.search(_ID_ENDING, profile.name.lower()):
            yield '# ? few distinct numbers: ids. If their size matters: kind = "dense", without table'
    else:
        yield from _dense_lines(profile)


def _text_or_list_lines(profile: Profile) -> Iterator[str]:
    element = profile.values.type.value_type if profile.is_list else None
    present = profile.values.drop_null()
    share = {mark: _share(pc.match_substring(present, mark)) for mark in "|;, "} if profile.is_text else {}
    if profile.is_list:
        yield f'kind = "{"id_score_list" if pa.types.is_struct(element) else "id_list"}"'
    elif share["|"] >= 0.1:
        scored = _share(pc.match_substring_regex(present, _SCORED)) == 1
        yield f'kind = "{"id_score_list" if scored else "id_list"}"'
        yield f"# ? {share['|']:.0%} of the values hold '|', so each is read as a list of ids joined by it"
    elif max(share.values()) >= 0.5:
        mark = max((mark for mark in share if mark != "|"), key=lambda mark: share[mark])
        yield f'# ? {share[mark]:.0%} of the values hold "{mark}"; if lists: kind = "id_list", separator = "{mark}"'
    yield f"table = {_text(TABLE)}"
    if profile.named(_LABEL):
        yield "# ? it is named like a label, but labels are numbers: 0 and 1, say"
    numeric = _share(pc.match_substring_regex(present, NUMBER)) if profile.is_text else 0.0
    if 0.9 <= numeric < 1:
        odd = present.filter(pc.invert(pc.match_substring_regex(present, NUMBER)))[0].as_py()
        yield f"# ? {numeric:.1%} of the values are numbers, others are not, such as {_shown(odd)}"


def _dense_lines(profile: Profile) -> Iterator[str]:
    yield 'kind = "dense"'
    wide = profile.low >= 0 and profile.high >= 1000
    transforms = ['{ kind = "log1p" }'] * wide + ['{ kind = "standardise" }']
    yield f"transforms = [{', '.join(transforms)}]"
    if profile.num_missing:
        median = pc.quantile(profile.values.cast(pa.float64(), safe=False), 0.5)[0].as_py()
        yield f"missing = {float(f'{median:.6g}')!r}"
        yield "# ? the median stands for missing values"
    if profile.is_integer:
        yield f'# ? many distinct numbers: a quantity. If ids: kind = "id", table = {_text(TABLE)}, no transforms'


def _label_lines(profile: Profile) -> Iterator[str]:
    yield f"[labels.{_key(profile.name)}]  # {profile.facts()}"
    if profile.column != profile.name:
        yield f"column = {_text(profile.column)}"
    if (profile.low, profile.high) != (0, 1):
        threshold = float(profile.low) + 0.75 * (float(profile.high) - float(profile.low))
        yield f"positive_from = {float(f'{threshold:.4g}')!r}"
        yield "# ? the values are not 0 and 1: from where on is a row positive? (dropped = [...] leaves values out)"
    if profile.num_missing:
        yield f"# ? {profile.num_missing:,} values are missing; such rows are refused or quarantined"


def _sequence_lines(parts: dict[str, list[Profile]]) -> Iterator[str]:
    if not (parts["user"] and parts["item"]):
        return
    yield from ("", "# ? A user's past events as an input:", "# [sequences.past]")
    yield f"# of = {{ history = {_text(parts['item'][0].name)} }}"
    yield "# max_length = 50"
    if not parts["time"]:
        yield "# ordered = false"


def _looks_like_id(profile: Profile) -> bool:
    whole = profile.is_integer or pa.types.is_boolean(profile.values.type) or _is_whole(profile)
    named = re.search(_ID_ENDING, profile.name.lower()) is not None
    return whole and (named or profile.num_distinct <= MAX_CATEGORIES)


def _is_whole(profile: Profile) -> bool:
    """Whether floats are all whole numbers, as integers with gaps become in pandas."""
    if not pa.types.is_floating(profile.values.type):
        return False
    values = profile.values.drop_null()
    finite = pc.all(pc.is_finite(values)).as_py()
    return bool(finite and profile.num_missing and pc.all(pc.equal(pc.floor(values), values)).as_py())


def _constant_within(profile: Profile, role: Profile) -> bool:
    """Whether each user (or item) has one value in the rows read, and enough of them come more than once to tell."""
    if profile.is_list:
        return False
    table = pa.table({"role": role.values, "value": profile.values}).filter(pc.field("role").is_valid())
    pairs = table.group_by(["role", "value"]).aggregate([]).num_rows
    return bool(pairs == role.num_distinct and table.num_rows >= 2 * pairs)


def _share(matches: pa.Array) -> float:
    return float(pc.mean(matches.cast(pa.int8())).as_py() or 0.0)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    """A TOML basic string: that of JSON, but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _shown(value: Any) -> str:
    """A value in a comment, on one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return _text(text if len(text) <= 40 else text[:37] + "...") if isinstance(value, str) else text
