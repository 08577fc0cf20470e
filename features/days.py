"""One UTC day of a log as a prepared folder on top of the day before: `prepare_day`.

A day's folder is what `prepare` makes (`view` says what it holds) and needs no other folder to be read:

    encoder, entity tables   yesterday's, grown: an id keeps its row, an entity its position, new ones follow; what is
                             known of an entity is as of this day, of what stands in the log as of the
                             entity's first event of it; statistics of transforms stay those of the first day
    examples                 of the day, all of them in the split train
    histories                the last `max_length` events of every user as yesterday's folder has them, then the day's

So nothing older than the day is read but yesterday's folder (`day_source` says which raw rows are the day's). Days are
UTC; times that are numbers are seconds. Of tables of users and items the whole is read, as of the day.

Ids that were text on an earlier day are text, whether or not they all look like integers on this one.

An event of another day in a day's own files, a late one, is a bad row: `data.bad_rows` says what happens to it. A day
without examples has no folder: none without files or rows, nor one whose rows are no examples (views alone, where
clicks are). What it holds is in no later history either.

The content hash is over config, schema, the day, its raw data and yesterday's content hash: a chain, so that folders of
the same hash hold the same past. Raw data is known by the files' SHA-256, or for the rows of one log by their values,
so that appending to the log changes no earlier day.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa

from features.carried import carried_on, in_position_order
from features.catalogue import Entity
from features.data_config import DataConfig
from features.database import MEMORY_LIMIT, Database
from features.day_source import DaySource
from features.encoder import Encoder
from features.entities import EntityTable
from features.examples import Learned, Progress, check_examples, event_chunks
from features.fitting import Fitter
from features.histories import Histories
from features.logs import LogRules, NoExamplesError
from features.negatives import check_negatives
from features.prepared import Making, write_manifest
from features.source_files import MissingEventsError
from features.sources import SourceTables
from features.spec import FeatureSchema
from features.storage import folder_aside, remove_leftovers, remove_tree, scratch_folder
from features.utc_day import MARK, UtcDay
from features.view import FORMAT, Prepared

DAY, YESTERDAY = "day", "yesterday"  # in the manifest: the date, and the content hash of the folder before ("" = none)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things are: raw data (that `config.path` is relative to), the schema, and the folder for prepared data."""

    data_root: Path | None
    schema_dir: Path
    out: Path


def prepare_day(
    config: DataConfig,
    day: UtcDay,
    yesterday: Prepared | None,
    places: Places,
    *,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    memory_limit: str = MEMORY_LIMIT,
) -> Prepared | None:
    """Make `OUT/<name>-<day>-<hash>`, or open it where it was made before; None for a day without examples.

    yesterday: the folder of the last day before that has one, None for the first day of all. progress, memory_limit: as
    in `prepare`. notice: is told of files that are not there. Raises ValueError in one line for whatever in config,
    schema or data is wrong, for sequences that are not ordered, and where yesterday is no day before this one or of
    another schema.
    """
    schema = FeatureSchema.load(places.schema_dir / config.schema_path)
    chain = _Chain(config=config, schema=schema, day=day, yesterday=yesterday)
    chain.check()
    tell = progress or _silent
    tell("raw files", 0, 1)
    try:
        source = DaySource(config, schema.timestamp, day, places.data_root)
    except MissingEventsError as error:
        if notice is not None:
            notice(str(error))
        return None
    inputs, work_name = source.fingerprints(), f"{config.name}-{day}"
    if inputs is not None and (path := chain.path(places.out, inputs)).exists():
        tell("reused", 1, 1)
        remove_leftovers(places.out, work_name)  # of a process killed when all but the clearing up was done
        return Prepared.open(path)
    with scratch_folder(places.out / work_name) as work, Database.open(work, memory_limit) as database:
        tables = source.read(database)
        if not database.value(tables.events.rows.count()) and not tables.events.malformed:
            return None
        inputs = inputs or source.row_fingerprints(database, tables)
        tell("raw files", 1, 1)
        path = chain.path(places.out, inputs)
        with suppress(FileExistsError, NoExamplesError), folder_aside(path) as folder:
            report = places.out / f"{path.name}.bad_rows.csv"
            manifest = _MakingDay(database, chain, folder, tell).make(tables, report)
            write_manifest(folder, chain.about(inputs) | manifest)
            remove_tree(report)  # of an earlier attempt
    return Prepared.open(path, verify=False) if path.exists() else None


@dataclass(frozen=True, kw_only=True)
class _Chain:
    """A day, what it is read with, and what it goes on from."""

    config: DataConfig
    schema: FeatureSchema
    day: UtcDay
    yesterday: Prepared | None

    def check(self) -> None:
        config, schema, yesterday = self.config, self.schema, self.yesterday
        if config.split.kind != "day":
            raise ValueError(f"data.split.kind is {config.split.kind!r}; days are prepared one by one with kind 'day'")
        if not schema.timestamp:
            raise ValueError(f"schema {schema.name!r} names no `timestamp`, by which the days of events are known")
        braces = [path for path in (config.path, *config.files.values()) if "{" in path.replace(MARK, "")]
        if braces:
            raise ValueError(f"data: {braces[0]!r} has braces that are not {MARK}, the place of the day")
        if config.min_events:
            raise ValueError("data.min_events counts the events of a whole log, not those of a day; remove it")
        if config.downsample is not None:
            raise ValueError(
                "data.downsample leaves negatives out of what trains alone, and a day's rows also test the model of "
                "the day before; remove it"
            )
        check_examples(schema, config.positive)
        check_negatives(schema, config)
        if (config.positive and not schema.sequences) or not all(group.ordered for group in schema.sequences):
            raise ValueError(
                f"schema {schema.name!r}: from day to day only ordered sequences are carried over, not sets of items"
            )
        if yesterday is None:
            return
        if yesterday.schema.content_hash != schema.content_hash:
            raise ValueError(f"{yesterday.path} was prepared with another schema than {config.schema_path}")
        if not yesterday.manifest.get(DAY, "9999") < str(self.day):
            raise ValueError(f"{yesterday.path} is not the folder of a day before {self.day}")

    def path(self, out: Path, inputs: dict[str, str]) -> Path:
        return out / f"{self.config.name}-{self.day}-{self.about(inputs)['content_hash'][:12]}"

    def about(self, inputs: dict[str, str]) -> dict[str, Any]:
        """What the manifest says of where the folder comes from."""
        parts = {"format": FORMAT, "config": self.config.meaning(), "schema_hash": self.schema.content_hash}
        parts |= {DAY: str(self.day), "inputs": inputs}
        parts |= {YESTERDAY: "" if self.yesterday is None else self.yesterday.content_hash}
        content_hash = sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return parts | {"name": self.config.name, "content_hash": content_hash}


class _MakingDay(Making):
    """As `prepare` makes a folder, but growing what there was yesterday."""

    def __init__(self, database: Database, chain: _Chain, folder: Path, progress: Progress) -> None:
        super().__init__(database, chain.config, chain.schema, folder, progress)
        self._chain = chain

    def make(self, source: SourceTables, report: Path) -> dict[str, Any]:
        """Everything but the manifest; its counts hold also what is new: ids, users, items."""
        manifest = super().make(source, report)
        made, before = Prepared(self._folder, manifest), self._chain.yesterday
        new = {"new_ids": num_ids(made.encoder) - (num_ids(before.encoder) if before else 0)}
        for name in ("users", "items"):
            if name in manifest["counts"]:
                new[f"new_{name}"] = manifest["counts"][name] - (before.counts[name] if before else 0)
        return manifest | {"counts": manifest["counts"] | new}

    def _rules(self) -> LogRules:
        before = self._chain.yesterday
        known = before.manifest["text_ids"] if before else ()
        return replace(super()._rules(), day=self._chain.day, text_ids=frozenset(known))

    def _encoder(self, fitter: Fitter) -> Encoder:
        before = self._chain.yesterday
        return fitter.fit() if before is None else before.encoder.grown(fitter.counts())

    def _entities(
        self, encoder: Encoder, entity: Entity, listed: pa.Table | None, seen: pa.ChunkedArray
    ) -> EntityTable:
        before = self._chain.yesterday
        known = None if before is None else before.users if entity == "user" else before.items
        if known is None:
            return super()._entities(encoder, entity, listed, seen)
        return known.grown(encoder, listed, seen)

    def _histories(self, events: ir.Table, learned: Learned) -> Histories:
        before = self._chain.yesterday
        older = None if before is None else before.histories
        if older is None:
            return super()._histories(events, learned)
        if older.ticks_per_second != learned.ticks_per_second:
            raise ValueError(f"times are dates on some days and numbers on others: {self._schema.timestamp!r}")
        today = event_chunks(self._database, events, learned, self._progress)
        longest = max(group.max_length for group in self._schema.sequences)
        chunks = carried_on(older, longest, in_position_order(self._database, today))
        assert learned.users is not None
        return Histories.build(
            self._folder / "histories", chunks, num_users=len(learned.users), ordered=True,
            ticks_per_second=learned.ticks_per_second,
        )  # fmt: skip


def num_ids(encoder: Encoder) -> int:
    """Ids that have a row, over all vocabularies."""
    return sum(len(vocabulary.raw_ids) for vocabulary in encoder.vocabularies.values())


def _silent(stage: str, done: int, total: int) -> None:
    """No progress is wanted."""
