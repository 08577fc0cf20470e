"""Readers of published formats: each gives events, and perhaps users and items, as tables of the working database.

A source reads; it does not judge values: text stays text, and `logs` casts, checks and counts. `SOURCES` maps the
`source` of a data config to its class; `package.module:Name` is a class of the user's with the methods of `Source`.

    parquet    files with types                        adjacency  `user item item ...` a line (NGCF, LightGCN, KGAT)
    csv, tsv   text with a header, or named columns    movielens  ratings, users, movies
    world      embedded demo data                      criteo     label, I1-I13, C1-C26 (Display Advertising Challenge)
    frappe     `user-context...,item-cost` a line      taobao     user, item, category, behaviour, time a line
    amazon     reviews and metadata, one a line        alimama_dmr  267 fields a line: histories, profile, ad, label

Several of them read files in the roles `train`, `validation`, `test`: their names are then the published split.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import ibis
import numpy as np
import pyarrow as pa

from features.database import Database
from features.json_lines import json_table
from features.source_files import (
    EVENT_ROLES,
    FILE,
    ROW,
    Delimited,
    InputFile,
    Inputs,
    SourceTable,
    adjacency_table,
    delimited_table,
    join_columns,
    missing_column,
    parquet_table,
    split_columns,
)  # fmt: skip
from features.storage import is_uri
from features.worlds import WORLDS, open_world

Columns = Mapping[str, str | Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What a data config says about its raw data.

    path: a folder, a file, a glob, a URI, or the name of a world. root: the folder that a relative path is in. files:
    role -> path or glob within `path`; roles are `events` or any of `train`, `validation`, `test`, and `users`,
    `items`. columns: the name that the schema uses -> the name in the files; for one table only, under its role:
    {"users": {"user_id": "id"}}. options: of the source.
    """

    path: str
    root: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SourceTables:
    """What a source gives; `users` and `items` may be absent."""

    events: SourceTable
    users: SourceTable | None = None
    items: SourceTable | None = None

    def by_role(self) -> dict[str, SourceTable]:
        """The tables that are there, events first."""
        named = {"events": self.events, "users": self.users, "items": self.items}
        return {role: table for role, table in named.items() if table is not None}


class Source(Protocol):
    """A reader, made from a `SourceRequest`. Raises ValueError naming the option or file that is wrong."""

    def fingerprints(self) -> dict[str, str]:
        """What the content depends on: a label -> a content hash."""
        ...

    def read(self, database: Database) -> SourceTables:
        """Make the tables in the database, under the schema's column names (see `named`)."""
        ...


class FileSource:
    """What readers of files share. `defaults`: role -> the names looked for when the config gives none."""

    defaults: Mapping[str, Sequence[str]] = {"events": ("",)}
    options: frozenset[str] = frozenset()

    def __init__(self, request: SourceRequest) -> None:
        refuse_options(request.options, self.options)
        self.request = request
        path = request.path if is_uri(request.path) else str(Path(escape(str(request.root or ""))) / request.path)
        self.inputs = Inputs(path, request.files, self.defaults)

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every file."""
        return self.inputs.fingerprints()

    def read(self, database: Database) -> SourceTables:
        """Events, and users and items where there are files of them."""
        roles = {"events": EVENT_ROLES, "users": ("users",), "items": ("items",)}
        files = {role: found for role, names in roles.items() if (found := self.inputs.of(*names))}
        tables = {role: self.table(database, role, found) for role, found in files.items()}
        return named(tables, self.request.columns)

    def table(self, database: Database, role: str, files: Sequence[InputFile]) -> SourceTable:
        """Read the files of one role ("events", "users" or "items") as one table: Parquet, unless overridden."""
        return parquet_table(database, role, files)


class ParquetSource(FileSource):
    """Parquet files; several are one table, their columns go by name."""


class DelimitedSource(FileSource):
    """CSV files, plain or gzipped; every value is read as text, an empty one as missing.

    options: `delimiter`, `quote` ("" = none), `encoding` (utf-8, utf-16, latin-1), `missing` (texts that stand for a
    missing value, the empty one unless said), `names` (the columns of events files that have no header line).
    """

    delimiter = ","
    options = frozenset({"delimiter", "quote", "encoding", "missing", "names"})

    def table(self, database: Database, role: str, files: Sequence[InputFile]) -> SourceTable:
        """Text columns."""
        given = {"delimiter": self.delimiter, "missing": ("",)} | dict(self.request.options)
        names = tuple(given.pop("names", ()))
        form = Delimited(**given, names=names if role == "events" else ())
        return delimited_table(database, role, files, form)


class TabSource(DelimitedSource):
    """TSV files: as CSV, with tabs."""

    delimiter = "\t"


class MovieLensSource(FileSource):
    """MovieLens: `ratings.dat`, `users.dat`, `movies.dat` (`::` between fields, latin-1), plain or gzipped.

    Ratings may instead be the derived Parquet file, where rating 0 and timestamp 0 mean unknown: they become missing.
    """

    defaults: Mapping[str, Sequence[str]] = {
        "events": ("ratings.dat", "ratings.dat.gz", "ratings.parquet"),
        "users": ("users.dat", "users.dat.gz"),
        "items": ("movies.dat", "movies.dat.gz"),
    }
    names: Mapping[str, tuple[str, ...]] = {
        "events": ("user_id", "movie_id", "rating", "timestamp"),
        "users": ("user_id", "gender", "age", "occupation", "zip"),
        "items": ("movie_id", "title", "genres"),
    }

    def table(self, database: Database, role: str, files: Sequence[InputFile]) -> SourceTable:
        """Text columns from .dat, typed ones from Parquet."""
        if any(file.path.suffix != ".parquet" for file in files):
            form = Delimited(delimiter="::", quote="", encoding="latin-1", names=self.names[role])
            return delimited_table(database, role, files, form)
        table = parquet_table(database, role, files)
        unknown = {name: table.rows[name].nullif(0) for name in ("rating", "timestamp") if name in table.columns}
        return replace(table, rows=table.rows.mutate(**unknown))


class CriteoSource(DelimitedSource):
    """Criteo's click logs: tabs, no header; `label`, the integers `I1` to `I13`, the hashed texts `C1` to `C26`."""

    options = frozenset()
    names = ("label", *(f"I{number}" for number in range(1, 14)), *(f"C{number}" for number in range(1, 27)))

    def table(self, database: Database, role: str, files: Sequence[InputFile]) -> SourceTable:
        """Text columns; an empty value is missing."""
        return delimited_table(database, role, files, Delimited(delimiter="\t", quote="", names=self.names))


class FrappeSource(FileSource):
    """Frappe's app usage logs as CFM's code has them: `user-daytime-...-city,item-cost` a line, numbers throughout."""

    joined: Mapping[str, tuple[str, ...]] = {
        "context": ("user", "daytime", "weekday", "isweekend", "homework", "weather", "country", "city"),
        "target": ("item", "cost"),
    }

    def table(self, database: Database, role: str, files: Sequence[InputFile]) -> SourceTable:
        """Text columns; those of a line that has too few are missing, those that it has too many are malformed."""
        table = delimited_table(database, role, files, Delimited(delimiter=",", quote="", names=tuple(self.joined)))
        return split_columns(database, table, self.joined, "-")


class TaobaoSource(FileSource):
    """Taobao's UserBehavior.csv, without a header: `user`, `item`, `category`, `behaviour` (pv, cart, fav, buy), `time`
    in seconds.
    """

    defaults: Mapping[str, Sequence[str]] = {"events": ("UserBehavior.csv", "UserBehavior.csv.gz", "")}
    names = ("user", "item", "category", "behaviour", "time")

    def table(self, database: Database, role: str, files: Sequence[InputFile]) -> SourceTable:
        """Text columns."""
        return delimited_table(database, role, files, Delimited(delimiter=",", quote="", names=self.names))


class AmazonSource(FileSource):
    """Amazon reviews (McAuley) of 2014 and 2018, and the metadata of their products as items, one record a line.

    The columns are the published fields, of both years; those of reviews are events. `last_category` is what DIN calls
    a product's category: the last name of its last path. Anything nested is JSON text (see `json_lines`).
    """

    defaults: Mapping[str, Sequence[str]] = {
        "events": ("reviews*.json", "reviews*.json.gz", "*_5.json", "*_5.json.gz"),
        "items": ("meta*.json", "meta*.json.gz"),
    }
    fields: Mapping[str, tuple[str, ...]] = {
        "events": (
            "reviewerID", "asin", "reviewerName", "helpful", "vote", "verified", "style", "reviewText", "overall",
            "summary", "unixReviewTime", "reviewTime", "image",
        ),
        "items": (
            "asin", "title", "brand", "price", "description", "feature", "categories", "category", "main_cat", "rank",
            "salesRank", "related", "also_buy", "also_view", "similar_item", "imUrl", "image", "date", "details",
        ),
    }  # fmt: skip

    def table(self, database: Database, role: str, files: Sequence[InputFile]) -> SourceTable:
        """Text columns."""
        if role not in self.fields:
            raise ValueError(f"source 'amazon' reads no table of {role}; remove data.files.{role}")
        derived = {"last_category": _last_category} if role == "items" else {}
        return json_table(database, role, files, self.fields[role], derived)


def _last_category(product: Mapping[str, Any]) -> Any:
    paths = product.get("categories") or [product.get("category") or []]
    return paths[-1][-1] if paths[-1] else None


class AlimamaSource(FileSource):
    """Alimama's display ads as the code of DMR (Lyu et al. 2020) has them: 267 numbers a line.

    Five times 50: `btag_his`, `cate_his`, `brand_his` (behaviour, category and brand of past events), `mask`,
    `match_mask`; then the user's profile, the ad, and the label `clk`. A place whose mask is 0 is padding: the
    histories hold the others, joined by `|`, in the order of the file; the masks hold all 50.
    """

    LENGTH = 50
    histories = ("btag_his", "cate_his", "brand_his")
    masks = ("mask", "match_mask")
    names = (
        "user", "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level",
        "occupation", "new_user_class_level", "adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price",
        "pid", "clk",
    )  # fmt: skip

    def table(self, database: Database, role: str, files: Sequence[InputFile]) -> SourceTable:
        """Text columns; NULL, as nothing, is missing."""
        groups = {name: [f"{name}{place}" for place in range(self.LENGTH)] for name in (*self.histories, *self.masks)}
        names = (*(name for group in groups.values() for name in group), *self.names)
        form = Delimited(delimiter=",", quote="", names=names, missing=("", "NULL"))
        table = delimited_table(database, role, files, form)
        places = {name: groups[name] for name in self.histories}
        cut = join_columns(table, places, used=groups["mask"])
        return join_columns(cut, {name: groups[name] for name in self.masks}, used=())


class AdjacencySource(FileSource):
    """One line per user, `user item item ...`, in a train and a test file, plain or gzipped; columns user and item."""

    defaults: Mapping[str, Sequence[str]] = {
        "train": ("train.txt", "train.txt.gz"),
        "validation": ("validation.txt", "validation.txt.gz"),
        "test": ("test.txt", "test.txt.gz"),
    }

    def table(self, database: Database, role: str, files: Sequence[InputFile]) -> SourceTable:
        """Integer columns."""
        if role != "events":
            raise ValueError(f"source 'adjacency' reads no table of {role}; remove data.files.{role}")
        return adjacency_table(database, files)


class WorldSource:
    """The embedded demo data: `path` names one of `worlds.WORLDS`; option `seed` makes another world of that kind."""

    def __init__(self, request: SourceRequest) -> None:
        refuse_options(request.options, frozenset({"seed"}))
        if request.files:
            raise ValueError("source 'world' reads no files; remove data.files")
        if request.path not in WORLDS:
            raise ValueError(f"data.path: there is no world {request.path!r}; there are {', '.join(WORLDS)}")
        self.request = request

    def fingerprints(self) -> dict[str, str]:
        """The content hash of the generated data: the pinned one, or with a seed of its own that of what it makes."""
        path, seed = self.request.path, self.request.options.get("seed")
        return {"world": WORLDS[path].content_hash if seed is None else open_world(path, seed).content_hash}

    def read(self, database: Database) -> SourceTables:
        """Events, perhaps users and items, as generated; a row's number is its place among those of its table."""
        world = open_world(self.request.path, self.request.options.get("seed"))
        tables = {role: self._stored(database, role, reader) for role, reader in world.readers().items()}
        return named(tables, self.request.columns)

    def _stored(self, database: Database, role: str, reader: pa.RecordBatchReader) -> SourceTable:
        rows = database.store_arrow(f"raw_{role}", _numbered(reader)).mutate(ibis.literal(0, "int32").name(FILE))
        return SourceTable(rows=rows, names=(f"world {self.request.path}",))


def _numbered(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The same batches with the column `ROW`, which counts from 1."""
    field = pa.field(ROW, pa.int64())

    def batches() -> Iterator[pa.RecordBatch]:
        first = 1
        for batch in reader:
            yield batch.append_column(field, pa.array(np.arange(first, first + len(batch))))
            first += len(batch)

    return pa.RecordBatchReader.from_batches(reader.schema.append(field), batches())


SOURCES: Mapping[str, Any] = {
    "parquet": ParquetSource,
    "csv": DelimitedSource,
    "tsv": TabSource,
    "movielens": MovieLensSource,
    "adjacency": AdjacencySource,
    "criteo": CriteoSource,
    "frappe": FrappeSource,
    "taobao": TaobaoSource,
    "amazon": AmazonSource,
    "alimama_dmr": AlimamaSource,
    "world": WorldSource,
}


def make_source(name: str, request: SourceRequest) -> Source:
    """The reader of that name in `SOURCES`, or the user's class; ValueError naming what is wrong."""
    source: Source = _source_class(name)(request)
    return source


def _source_class(name: str) -> Any:
    if name in SOURCES:
        return SOURCES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = get_close_matches(name, SOURCES, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown source {name!r}{hint} (there are {', '.join(SOURCES)}, and package.module:Name)")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"source {name!r} cannot be imported: {error}") from error


def refuse_options(options: Mapping[str, Any], accepted: frozenset[str]) -> None:
    """Raise ValueError for a key of `data.options` that the source does not have."""
    for key in options:
        if key not in accepted:
            raise ValueError(f"data.options: unknown key {key!r} (accepted: {', '.join(sorted(accepted)) or 'none'})")


def named(tables: Mapping[str, SourceTable], columns: Columns) -> SourceTables:
    """The tables, by role, under the schema's column names.

    A name given under a role is of that table, any other of every table that has it. A column that would share a new
    name is left out. Raises ValueError naming a column that is nowhere.
    """
    for new, old in columns.items():
        if isinstance(old, str) and not any(old in table.columns for table in tables.values()):
            raise missing_column(old, f"data.columns.{new}", "events", tables["events"])
        if not isinstance(old, str) and new not in tables:
            raise ValueError(f"data.columns.{new}: there is no table of {new}; there are {', '.join(tables)}")
    return SourceTables(**{role: _renamed(table, role, columns) for role, table in tables.items()})


def _renamed(table: SourceTable, role: str, columns: Columns) -> SourceTable:
    own = columns.get(role, {})
    general = {new: old for new, old in columns.items() if isinstance(old, str) and old in table.columns}
    names = general | (dict(own) if isinstance(own, Mapping) else {})
    for new, old in names.items():
        if old not in table.columns:
            raise missing_column(old, f"data.columns.{role}.{new}", role, table)
    kept = [name for name in table.rows.columns if name not in names]
    return replace(table, rows=table.rows.select(*kept, **{new: table.rows[old] for new, old in names.items()}))
