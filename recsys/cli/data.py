"""`recsys schema infer` and `recsys prepare`: from raw files to a schema, and to prepared data."""

from pathlib import Path
from typing import Annotated

import typer

from features import infer, storage
from features.prepared import Prepared, prepare
from recsys import distributed
from recsys.cli.console import meter, print_json, say, user_errors
from recsys.config import ConfigError, RunConfig, load_config

DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="RECSYS_DATA", help="The folder that holds the raw datasets.")
]
PreparedOption = Annotated[Path, typer.Option("--prepared", help="The folder for prepared data.")]
ConfigArgument = Annotated[Path, typer.Argument(help="A run's config (TOML).")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="section.key=value", help="Settings that win over the file's.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one line of JSON on stdout.")]


def infer_schema(
    path: Annotated[Path, typer.Argument(help="A CSV, TSV or Parquet file of events or examples.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write here instead of to stdout.")] = None,
) -> None:
    """Write a first feature schema for a table, with what is doubtful as comments to be edited by hand."""
    with user_errors():
        text = infer.infer(path)
        if out is None:
            typer.echo(text, nl=False)
            return
        if out.exists():
            raise ConfigError(f"{out} exists; remove it or choose another --out")
        storage.write_text(out, text)
        say(f"wrote {out}; read its comments before you use it")


def prepare_data(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    data: DataOption = None,
    prepared: PreparedOption = Path("prepared"),
    json: JsonOption = False,
) -> None:
    """Turn raw data into encoded examples, vocabularies, catalogues and histories; what is finished is reused."""
    with user_errors():
        result = prepared_of(load_config(config, overrides or ()), config.parent, data, prepared)
        summary = {"prepared": str(result.path), "content_hash": result.content_hash, **result.counts}
        if json:
            print_json(summary)
            return
        for name, value in summary.items():
            say(f"{name}: {value}")


def prepared_of(config: RunConfig, config_dir: Path, data: Path | None, out: Path) -> Prepared:
    """The prepared data of a config, made by rank 0 when it is not there yet; the other ranks open it then.

    What `prepare` found suspicious is said each time, a line for each finding.
    """

    def make() -> Prepared:
        with meter() as progress:
            return prepare(config.data, data_root=data, schema_dir=config_dir, out=out, progress=progress)

    mine: list[Prepared] = []
    distributed.together(lambda: mine.append(make()) if distributed.rank() == 0 else None)
    found = mine[0] if mine else make()
    for warning in found.warnings:
        say(f"warning: {warning}")
    return found
