"""`prepare`: from raw files, as a data config names them, to a prepared folder (what it holds: `view`).

It is made aside and renamed, so that what stands under the name is whole; a folder of the same content hash is reused.
Making it takes the memory of the database's limit, of the entity tables and of the vocabularies, whatever the length of
the log. This is only the order of the steps, which are `sources`, `logs`, `splits`, `catalogue`, `fitting`, `examples`.
"""

import json
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from features.catalogue import Catalogue, Entity, read_catalogue
from features.data_config import DataConfig, SplitConfig
from features.database import MEMORY_LIMIT, Database
from features.entities import EntityTable
from features.examples import Learned, Progress, check_examples, keeps_histories, write_examples, write_histories
from features.fitting import Fitter
from features.log_columns import CODE, EXAMPLE, label_column
from features.logs import BadRowFiles, Log, LogRules, read_log
from features.sources import Source, SourceRequest, make_source
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
    if config.split.kind == "random" and any(group.ordered for group in schema.sequences):
        raise ValueError(
            "data.split: kind 'random' would put test clicks into the histories of train examples; use 'time' or "
            "'last', or leave the sequences out of the schema"
        )
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
            manifest = _Making(database, config, schema, folder, tell).make(source, report)
        remove_tree(work)
        write_json(folder / MANIFEST, about | manifest | {"files": _checksums(folder)})
    remove_tree(report)  # of an earlier attempt
    return Prepared.open(path, verify=False)


class _Making:
    """The steps of `prepare` inside one database and one unfinished folder."""

    def __init__(
        self, database: Database, config: DataConfig, schema: FeatureSchema, folder: Path, progress: Progress
    ) -> None:
        self._database, self._config, self._schema = database, config, schema
        self._folder, self._progress = folder, progress

    def make(self, source: Source, report: Path) -> dict[str, Any]:
        """Everything but the manifest, of which it returns what is known here."""
        log = self._read(source, report)
        events = self._split(log)
        catalogues = self._catalogues(log, events)
        learned = self._learn(events, catalogues)
        if keeps_histories(self._schema, self._config.positive):
            histories = write_histories(self._database, events, learned, self._folder / "histories", self._progress)
            learned = Learned(encoder=learned.encoder, users=learned.users, items=learned.items, histories=histories)
        with third_party("examples", self._folder):
            examples = self._folder / "examples"
            written = write_examples(self._database, events, learned, examples, self._progress)
        entities = {"users": learned.users, "items": learned.items}
        counts = {"read": log.num_read, "bad": log.num_bad, "dropped": log.num_dropped}
        counts |= {"events": log.num_read - log.num_bad - log.num_dropped} | written
        counts |= {name: len(table) for name, table in entities.items() if table is not None}
        return {
            "counts": counts, "splits": written, "time_unit": log.time_unit,
            "encoder_hash": learned.encoder.content_hash,
        }  # fmt: skip

    def _read(self, source: Source, report: Path) -> Log:
        self._progress("reading", 0, 1)
        config = self._config
        rules = LogRules(bad_rows=config.bad_rows, duplicates=config.duplicates, split_column=config.split.column)
        files = BadRowFiles(report=report, quarantine=self._folder / "quarantine")
        log = read_log(self._database, source.read(self._database), self._schema, rules, files)
        self._progress("reading", 1, 1)
        return log

    def _split(self, log: Log) -> ir.Table:
        self._progress("splitting", 0, 1)
        schema = self._schema
        user = schema.feature(schema.user).column if schema.user else ""
        label = label_column(schema.labels[0].name) if schema.labels and self._config.positive else ""
        example = log.events[label] > 0 if label else ibis.literal(True)
        splitter = Splitter(self._database, self._config.split, user=user)
        events = splitter.assign(log.events.mutate(**{EXAMPLE: example}), "events")
        self._database.drop("log_events", "events_codes")
        self._progress("splitting", 1, 1)
        return events

    def _catalogues(self, log: Log, events: ir.Table) -> dict[Entity, Catalogue]:
        entities: tuple[Entity, ...] = ("user", "item")
        return {
            entity: read_catalogue(self._database, log, events, self._schema, entity)
            for entity in entities
            if getattr(self._schema, entity)
        }

    def _learn(self, events: ir.Table, catalogues: dict[Entity, Catalogue]) -> Learned:
        """Vocabularies and statistics of the train examples, and with them the entity tables."""
        self._progress("learning", 0, 1)
        train = events.filter(events[EXAMPLE], events[CODE] == TRAIN)
        encoder = Fitter(self._database, self._schema, train, catalogues).fit()
        encoder.save(self._folder / "encoder")
        tables: dict[Entity, EntityTable] = {}
        for entity, catalogue in catalogues.items():
            listed = None if catalogue.listed is None else self._database.fetch(catalogue.listed)
            seen = self._database.fetch(catalogue.seen)[catalogue.id_column]
            tables[entity] = EntityTable.build(self._schema, encoder, entity, listed, seen)
            tables[entity].save(self._folder / f"{entity}s")
        self._progress("learning", 1, 1)
        return Learned(encoder=encoder, users=tables.get("user"), items=tables.get("item"))


def _content_hash(config: DataConfig, schema: FeatureSchema, inputs: dict[str, str]) -> str:
    parts = {"format": FORMAT, "config": config.meaning(), "schema": schema.content_hash, "inputs": inputs}
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}


def _silent(stage: str, done: int, total: int) -> None:
    """No progress is wanted."""
