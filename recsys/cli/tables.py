"""`recsys tables report|suggest`: what is in the tables of a trained run, and which tables fit a budget."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from features.encoder import Encoder
from features.spec import FeatureSchema
from recsys.cli.arguments import RunArgument
from recsys.cli.console import print_json, print_table, say, user_errors
from recsys.cli.data import DataOption, JsonOption, PreparedOption, prepared_of
from recsys.compression.collisions import ReaderReport, StoreReport, TablesReport, inspect_tables
from recsys.compression.suggest import Candidate, Suggestion, Usage, suggest
from recsys.config import ConfigError, RunConfig, load_config
from recsys.embedding.budget import parse_budget, share
from recsys.embedding.layout import readers_by_table
from recsys.embedding.precision import row_bytes
from recsys.model_bytes import served_bytes
from recsys.models import table_encoder
from recsys.models.interface import Ranker, Retriever
from recsys.run import Run
from recsys.run_state import REFIT, SELECT
from recsys.training.checkpoint import Checkpoints

STORES, OPTIMIZER = "model.collection.stores.", "tables.collection.optimizer."
DEFAULT_WIDTH = 32

app = typer.Typer(help="What tables hold, and which to take.", no_args_is_help=True)


# --- report ---


@app.command("report")
def report(run: RunArgument, json: JsonOption = False) -> None:
    """Show the tables of a finished run: bytes, collisions, how full stores are, hottest rows, norms by frequency."""
    with user_errors():
        found, sizes = _inspected(Run.open(run))
        if json:
            print_json({"run": str(run), **sizes, **asdict(found)})
            return
        _show_stores(str(run), found.stores, sizes)
        _show_readers(found.readers)
        _show_rows(found.stores)
        _show_norms(found.readers)


def _inspected(run: Run) -> tuple[TablesReport, dict[str, Any]]:
    model = run.model()
    if not isinstance(model, Ranker | Retriever):
        raise ConfigError(f"{run.folder}: model {run.config.model.name!r} has no tables")
    found = inspect_tables(model.collection, table_encoder(run.config.model, run.prepared.encoder))
    sizes = {"served_bytes_on_disk": served_bytes(model)["table_bytes"], "bytes_in_training": dict(run.state.sizes)}
    return found, sizes | {"stores_in_training": _saved_bytes(run)}


def _saved_bytes(run: Run) -> dict[str, dict[str, int]]:
    """By store, as the checkpoint holds them: bytes of its weights and of its optimizer state."""
    checkpoints = Checkpoints(run.folder / "checkpoints" / (REFIT if run.config.training.refit else SELECT))
    weights = checkpoints.load("last", prefix=STORES)
    state = checkpoints.load("last", prefix=OPTIMIZER)
    found = {name.removeprefix(STORES): {"weights": weight.nbytes, "optimizer": 0} for name, weight in weights.items()}
    for name, tensor in state.items():
        found[name.removeprefix(OPTIMIZER).rpartition(".")[0]]["optimizer"] += tensor.nbytes
    return found


def _show_stores(title: str, stores: Sequence[StoreReport], sizes: Mapping[str, Any]) -> None:
    trained: Mapping[str, Mapping[str, int]] = sizes["stores_in_training"]
    rows = [
        {
            "store": store.store,
            "rows": store.num_embeddings,
            "width": store.embedding_dim,
            "precision": store.precision,
            "served": store.served_bytes,
            "weights in training": trained.get(store.store, {}).get("weights", 0),
            "optimizer state": trained.get(store.store, {}).get("optimizer", 0),
            "occupied": f"{store.occupied:.1%}",
        }
        for store in stores
    ]
    print_table(f"{title}: stores, in bytes", rows)
    memory = sizes["bytes_in_training"]
    say(f"served, all tables on disk: {sizes['served_bytes_on_disk']:,} bytes")
    if memory:
        weights, state = memory["training"], memory["optimizer"]
        say(f"in memory while training, padding included: weights {weights:,}, optimizer state {state:,} bytes")
    only = sorted(set(trained) - {store.store for store in stores})
    for name in only:
        say(f"store {name}: in training alone, {trained[name]['weights']:,} bytes")


def _show_readers(readers: Sequence[ReaderReport]) -> None:
    rows = [
        {
            "reader": f"{reader.specification}/{reader.reader}",
            "ids": reader.num_embeddings if reader.num_embeddings is not None else "hashed",
            "width": reader.embedding_dim,
            "rows per id": reader.accesses,
            **_meetings(reader),
        }
        for reader in readers
    ]
    print_table("ids that meet another id of their reader, or one of another reader (share of train)", rows)
    for reader in readers:
        if reader.expected is not None:
            expected = reader.expected
            say(
                f"{reader.reader} is hashed, its ids are not known; expected of an even hash: two ids share all rows "
                f"with probability {expected.all_rows:.2g}, some row with {expected.a_row:.2g}; among "
                f"{expected.first_at:,.0f} ids one pair shares all"
            )
    found = [reader.collisions for reader in readers]
    if found and all(one is not None and not one.a_row.ids and not one.other_readers.ids for one in found):
        say("no collisions: no two ids share a row")


def _meetings(reader: ReaderReport) -> dict[str, str]:
    found = reader.collisions
    if found is None:
        return dict.fromkeys(("in all rows", "in some row", "with other readers"), "-")
    named = {"in all rows": found.all_rows, "in some row": found.a_row, "with other readers": found.other_readers}
    return {name: f"{meeting.ids:,} ({meeting.share:.1%})" for name, meeting in named.items()}


def _show_rows(stores: Sequence[StoreReport]) -> None:
    for store in stores:
        classes = ", ".join(f"{rows:,} x {accesses}" for accesses, rows in store.accesses_per_row.items())
        say(f"store {store.store}: rows x ids that read them: {classes}")
    hottest = [
        {
            "store": store.store,
            "row": hot.row,
            "lookups in train": hot.lookups,
            "by": "; ".join(f"{reader}: {_ids(ids)}" for reader, ids in hot.readers.items()),
        }
        for store in stores
        for hot in store.hottest
    ]
    if hottest:
        print_table("hottest rows, with the ids that read them most", hottest)


def _ids(ids: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{raw} ({count:,})" for raw, count in ids)


def _show_norms(readers: Sequence[ReaderReport]) -> None:
    most = max((len(reader.norms) for reader in readers), default=0)
    rows = [
        {"reader": reader.reader} | {f"{number + 1}": round(value, 3) for number, value in enumerate(reader.norms)}
        for reader in readers
        if len(reader.norms) == most
    ]
    if most:
        print_table("mean norm of vectors by tenths of the ids, rarest first", rows)


# --- suggest ---


@app.command("suggest")
def suggest_tables(
    source: Annotated[Path, typer.Argument(metavar="SCHEMA|CONFIG", help="A schema, or a run's config.")],
    budget: Annotated[str, typer.Option("--budget", help="Served bytes, as 25MiB, or a share as 10%.")],
    ids: Annotated[
        list[str] | None, typer.Option("--ids", metavar="FEATURE=N", help="Its number of ids, where it is not counted.")
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", min=1, help=f"Of vectors; default the config's, or {DEFAULT_WIDTH}.")
    ] = None,
    data: DataOption = None,
    prepared: PreparedOption = Path("prepared"),
    json: JsonOption = False,
) -> None:
    """Propose tables for a budget: rows, chunks and precision, with the reasons, as a config section to paste.

    Of a CONFIG the prepared data says how many ids there are and how often each occurs; of a SCHEMA, --ids says how
    many, and how often is assumed.
    """
    with user_errors():
        schema, config = _schema_or_config(source)
        known: FeatureSchema | Encoder
        known = schema or prepared_of(config, source.parent, data, prepared).encoder  # type: ignore[arg-type]
        usages = _usages(known, _numbers(ids or ()))
        widths = {name: width or _width(name, config) for name in usages}
        found = [suggest(name, usages[name], widths[name], most) for name, most in _dealt(budget, usages, widths)]
        if json:
            print_json({"suggestions": [_plain(one) for one in found]})
            return
        for one in found:
            _show(one)


def _schema_or_config(source: Path) -> tuple[FeatureSchema | None, RunConfig | None]:
    """The schema, for a file that has features; else the config."""
    try:
        values = tomllib.loads(source.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from None
    return (FeatureSchema.load(source), None) if "features" in values else (None, load_config(source))


def _numbers(texts: Sequence[str]) -> dict[str, int]:
    """FEATURE=N of --ids."""
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not number.isdecimal() or not int(number):
            raise ConfigError(f"--ids {text!r} is not of the form FEATURE=N with N at least 1")
        found[name] = int(number)
    return found


def _usages(known: FeatureSchema | Encoder, numbers: Mapping[str, int]) -> dict[str, list[Usage]]:
    """Per specification, how the ids of each of its readers occur. numbers: feature -> its number of ids."""
    tables, schema = readers_by_table(known), known if isinstance(known, FeatureSchema) else known.schema
    reader_of = {name: reader for readers in tables.values() for reader, names in readers.items() for name in names}
    for name in numbers:
        if name not in reader_of:
            raise ConfigError(f"--ids {name}: there is no such id feature; there are {', '.join(sorted(reader_of))}")
        if reader_of[name].num_embeddings is not None:
            raise ConfigError(f"--ids {name} has no effect: the data has {reader_of[name].num_embeddings} ids of it")
    said = {reader_of[name].name: number for name, number in numbers.items()}
    unknown = sorted({one.name for one in reader_of.values() if one.num_embeddings is None and one.name not in said})
    if unknown:
        options = " ".join(f"--ids {name}=N" for name in unknown)
        raise ConfigError(f"how many ids there are is not known: give {options}, or a config, whose data is counted")
    return {
        table: [
            Usage.of(reader, said.get(reader.name), schema.feature(names[0]).hashed)
            for reader, names in readers.items()
        ]
        for table, readers in tables.items()
    }


def _width(table: str, config: RunConfig | None) -> int:
    """D of the vectors that the config's tables give, as far as its section says."""
    section = None if config is None else config.tables.specs.get(table)
    options = {} if section is None else section.options
    chunked = options.get("chunk_dim", 0) * options.get("chunks", 1)
    return int(options.get("embedding_dim") or chunked or DEFAULT_WIDTH)


def _dealt(
    budget: str, usages: Mapping[str, Sequence[Usage]], widths: Mapping[str, int]
) -> list[tuple[str, int]]:  # fmt: skip
    """Bytes for each specification: in proportion to what it takes without collisions, where there are several."""
    amount, is_share = parse_budget(budget)
    rows = {name: sum(usage.num_embeddings for usage in several) for name, several in usages.items()}
    most = int(amount * sum(4 * rows[name] * widths[name] for name in rows) if is_share else amount)
    if len(rows) == 1:
        return [(name, most) for name in rows]
    full = {name: rows[name] * row_bytes(widths[name], "int8") for name in rows}
    least = {name: row_bytes(widths[name], "int4") for name in rows}
    return sorted(share(most, full, least, f"budget {budget}").items())


def _show(found: Suggestion) -> None:
    for reason in found.why:
        say(reason)
    told = [one for one in found.others if one.collisionless or one.precision in ("float32", found.chosen.precision)]
    rows = [_candidate(one, one is found.chosen) for one in sorted((found.chosen, *told), key=_order)]
    print_table(f"table {found.table}: {found.budget:,} bytes", rows)
    if found.fewer:
        chunks = ", ".join(f"{name} {number}" for name, number in sorted(found.fewer.items()))
        say(
            f"fewer chunks are enough for these: {chunks}; set in the schema, and left out below, they save look-ups "
            "and room, and make the vectors narrower"
        )
    typer.echo(found.section())


def _order(one: Candidate) -> tuple[bool, int, int]:
    return not one.collisionless, one.chunks, -one.bytes // one.rows


def _candidate(one: Candidate, chosen: bool) -> dict[str, Any]:
    return {
        "": "->" if chosen else "",
        "precision": one.precision,
        "chunks": "one row per id" if one.collisionless else f"{one.chunks} of {one.chunk_dim}",
        "rows": one.rows,
        "bytes": one.bytes,
        "lost": f"{one.worst:.1%}",
        "crowded": f"{one.crowded:.1%}",
        "harm": f"{one.harm:.1%}",
    }


def _plain(found: Suggestion) -> dict[str, Any]:
    chosen = {**asdict(found.chosen), "bytes": found.chosen.bytes, "collisionless": found.chosen.collisionless}
    return {
        "table": found.table,
        "budget": found.budget,
        "section": found.section(),
        "chosen": chosen,
        "fewer_chunks": dict(found.fewer),
        "why": list(found.why),
    }
