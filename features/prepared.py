"""`prepare`: from raw files, as a data config names them, to a prepared folder (what it holds: `view`).

It is made aside and renamed, so that what stands under the name is whole; a folder of the same content hash is reused.
Making it takes the memory of the database's limit, of the entity tables and of the vocabularies, whatever the length of
the log. This is only the order of the steps, which are `sources`, `logs`, `splits`, `catalogue`, `fitting`, `examples`.
"""

import json
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from features.catalogue import Catalogue, Entity, read_catalogue
from features.data_config import DataConfig, SplitConfig
from features.database import MEMORY_LIMIT, Database
from features.encoder import Encoder
from features.entities import EntityTable
from features.examples import (
    Learned,
    Progress,
    check_examples,
    history_events,
    keeps_histories,
    write_examples,
    write_histories,
)
from features.fitting import Fitter
from features.histories import Histories
from features.leakage import leakage_warnings
from features.log_columns import CODE, DROPPED, EXAMPLE, NEGATIVE, label_column, without_negatives
from features.logs import BadRowFiles, Log, LogRules, read_log
from features.negatives import check_negatives, thinned, with_negatives
from features.sources import SourceRequest, SourceTables, make_source
from features.spec import FeatureSchema
from features.splits import TRAIN, Splitter
from features.storage import folder_aside, remove_tree, sha256_file, third_party, write_json
from features.view import FORMAT, MANIFEST, Prepared, View

__all__ = ["DataConfig", "Prepared", "SplitConfig", "View", "prepare"]


def prepare(
    config: DataConfig,
    *,
    data_root: Path | None,
    schema_dir: Path,
    out: Path,
    progress: Progress | None = None,
    memory_limit: str = MEMORY_LIMIT,
) -> Prepared:
    """Make `OUT/<name>-<hash>` from raw files, or open it where it was made before.

    data_root: the folder that `config.path` is relative to. schema_dir: the one that `config.schema` is relative to.
    progress(stage, done, total) is called as the work goes on; the stage "reused" says that there was none.
    memory_limit: of the database, as DuckDB writes it ("2GB"). Raises ValueError in one line for whatever in config,
    schema or data is wrong; with bad rows, the complete list of them is `OUT/<name>.bad_rows.csv`.
    """
    tell = progress or _silent
    schema = FeatureSchema.load(schema_dir / config.schema_path)
    check_examples(schema, config.positive)
    if config.split.kind == "day":
        raise ValueError("data.split.kind is 'day': each day is prepared by itself, by `recsys daily`; take another")
    if config.min_events and not schema.user:
        raise ValueError(f"data.min_events counts the events of users, but schema {schema.name!r} names no `user`")
    if config.split.kind in ("order", "random") and schema.orders_events:
        raise ValueError(
            f"data.split: kind {config.split.kind!r} would put test clicks into the histories of train examples; use "
            "'time', 'last' or 'user', or leave the sequences out of the schema"
        )
    check_negatives(schema, config)
    request = SourceRequest(
        path=config.path, root=data_root, files=config.files, columns=config.columns, options=config.options
    )
    source = make_source(config.source, request)
    tell("raw files", 0, 1)
    inputs = source.fingerprints()
    tell("raw files", 1, 1)
    content_hash = _content_hash(config, schema, inputs)
    path = Path(out) / f"{config.name}-{content_hash[:12]}"
    if path.exists():
        tell("reused", 1, 1)
        return Prepared.open(path)
    report = Path(out) / f"{config.name}.bad_rows.csv"
    about = {"format": FORMAT, "name": config.name, "content_hash": content_hash, "inputs": inputs}
    about |= {"config": config.meaning(), "schema_hash": schema.content_hash}
    with suppress(FileExistsError), folder_aside(path) as folder:  # another process may have made it meanwhile
        work = folder / "work"
        work.mkdir()
        with Database.open(work, memory_limit) as database:
            manifest = Making(database, config, schema, folder, tell).make(source.read(database), report)
        remove_tree(work)
        write_manifest(folder, about | manifest)
    remove_tree(report)  # of an earlier attempt
    return Prepared.open(path, verify=False)


class Making:
    """The steps of `prepare` inside one database and one unfinished folder; `days` has others for some of them."""

    def __init__(
        self, database: Database, config: DataConfig, schema: FeatureSchema, folder: Path, progress: Progress
    ) -> None:
        self._database, self._config, self._schema = database, config, schema
        self._folder, self._progress = folder, progress

    def make(self, source: SourceTables, report: Path) -> dict[str, Any]:
        """Everything but the manifest, of which it returns what is known here."""
        log = self._read(source, report)
        events = self._split(log)
        warnings = leakage_warnings(self._database, log, events, self._schema)
        catalogues = self._catalogues(log, events)
        learned = replace(self._learn(events, catalogues), ticks_per_second=log.ticks_per_second)
        if keeps_histories(self._schema, self._config.positive):
            learned = replace(learned, histories=self._histories(events, learned))
        with third_party("examples", self._folder):
            examples = self._folder / "examples"
            written = write_examples(self._database, events, learned, examples, self._progress)
        entities = {"users": learned.users, "items": learned.items}
        counts = {"read": log.num_read, "bad": log.num_bad, "dropped": log.num_dropped}
        counts |= {"events": log.num_events} | written
        counts |= {name: len(table) for name, table in entities.items() if table is not None}
        return {
            "counts": counts, "splits": written, "time_unit": log.time_unit, "text_ids": sorted(log.text_ids),
            "encoder_hash": learned.encoder.content_hash, "warnings": warnings,
        } | self._chosen(events)  # fmt: skip

    def _chosen(self, events: ir.Table) -> dict[str, Any]:
        """What the manifest says of negatives that were drawn, or thinned."""
        if self._config.downsample is not None:
            return {"negative_rate": self._config.downsample.rate}
        if self._config.negatives is None:
            return {}
        return {"negatives": int(self._database.value(events.filter(events[NEGATIVE]).count()))}

    def _read(self, source: SourceTables, report: Path) -> Log:
        self._progress("reading", 0, 1)
        files = BadRowFiles(report=report, quarantine=self._folder / "quarantine")
        log = read_log(self._database, source, self._schema, self._rules(), files)
        self._progress("reading", 1, 1)
        return log

    def _rules(self) -> LogRules:
        config = self._config
        return LogRules(
            bad_rows=config.bad_rows, duplicates=config.duplicates, split_column=config.split.column,
            positives_only=config.negatives is not None,
        )  # fmt: skip

    def _split(self, log: Log) -> ir.Table:
        self._progress("splitting", 0, 1)
        schema = self._schema
        user = schema.feature(schema.user).column if schema.user else ""
        label = label_column(schema.labels[0].name) if schema.labels and self._config.positive else ""
        example = log.events[label] > 0 if label else ibis.literal(True)
        example &= ~log.events[DROPPED] if DROPPED in log.events.columns else True
        example &= self._has_enough(log.events, user)
        splitter = Splitter(self._database, self._config.split, user=user)
        events = self._beside(log.events.mutate(**{EXAMPLE: example}), "own")
        events = self._beside(splitter.assign(events, "events"), "with_positive")
        self._database.drop("log_events", "events_codes")
        self._progress("splitting", 1, 1)
        thin = self._config.downsample
        return events if thin is None else thinned(events, schema, thin)

    def _beside(self, events: ir.Table, split: str) -> ir.Table:
        """The events with the negatives that are split in that way, if they are wanted."""
        negatives = self._config.negatives
        if negatives is None or negatives.split != split:
            return events
        return with_negatives(self._database, events, self._schema, negatives)

    def _has_enough(self, events: ir.Table, user: str) -> Any:
        """Whether the user of an event has as many of them as the config asks for."""
        if not self._config.min_events:
            return ibis.literal(True)
        counted = events[user].count().over(ibis.window(group_by=user))  # of a null: none
        return counted >= self._config.min_events

    def _catalogues(self, log: Log, events: ir.Table) -> dict[Entity, Catalogue]:
        entities: tuple[Entity, ...] = ("user", "item")
        by_day = self._config.split.kind == "day"
        return {
            entity: read_catalogue(self._database, log, without_negatives(events), self._schema, entity, first=by_day)
            for entity in entities
            if getattr(self._schema, entity)
        }

    def _learn(self, events: ir.Table, catalogues: dict[Entity, Catalogue]) -> Learned:
        """Vocabularies and statistics of the train examples, and with them the entity tables."""
        self._progress("learning", 0, 1)
        train = events.filter(events[EXAMPLE], events[CODE] == TRAIN)
        past = history_events(events, self._schema).filter(ibis._[CODE] == TRAIN) if self._schema.sequences else None
        encoder = self._encoder(Fitter(self._database, self._schema, train, catalogues, past))
        encoder.save(self._folder / "encoder")
        tables: dict[Entity, EntityTable] = {}
        for entity, catalogue in catalogues.items():
            listed = None if catalogue.listed is None else self._database.fetch(catalogue.listed)
            seen = self._database.fetch(catalogue.seen)[catalogue.id_column]
            tables[entity] = self._entities(encoder, entity, listed, seen)
            tables[entity].save(self._folder / f"{entity}s")
        self._progress("learning", 1, 1)
        return Learned(encoder=encoder, users=tables.get("user"), items=tables.get("item"))

    def _encoder(self, fitter: Fitter) -> Encoder:
        return fitter.fit()

    def _entities(
        self, encoder: Encoder, entity: Entity, listed: pa.Table | None, seen: pa.ChunkedArray
    ) -> EntityTable:
        return EntityTable.build(self._schema, encoder, entity, listed, seen)

    def _histories(self, events: ir.Table, learned: Learned) -> Histories:
        return write_histories(self._database, events, learned, self._folder / "histories", self._progress)


def _content_hash(config: DataConfig, schema: FeatureSchema, inputs: dict[str, str]) -> str:
    parts: dict[str, Any] = {"format": FORMAT, "config": config.meaning(), "schema": schema.content_hash}
    parts |= {"inputs": inputs}
    if schema.orders_events and any(label.dropped for label in schema.labels):
        parts["dropped rows"] = "stay in histories"  # which an earlier version left out
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Complete a folder: its manifest, which holds the checksums of all other files."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    checksums = {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}
    write_json(folder / MANIFEST, about | {"files": checksums})


def _silent(stage: str, done: int, total: int) -> None:
    """No progress is wanted."""
