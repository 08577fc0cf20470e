"""`recsys compress RUN --to int8|float16|int4|METHOD`: a trained run's tables made smaller, as a run of its own.

A precision keeps the trained rows as they are and packs them (`recsys.compression.recorded`); a method gets new rows
that are fitted to the trained vectors (`recsys.compression.convert`). Nothing is trained. The new run's config holds
its tables, its checkpoint their values, so that it is evaluated, exported and served like any other; converted.json
says where it comes from and what it lost. The folder appears whole or not at all.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from torch import Tensor

from features import storage
from recsys.cli.arguments import RunArgument, SetOption, parse_settings
from recsys.cli.console import print_json, say, user_errors
from recsys.cli.data import JsonOption
from recsys.compression import make_specs, table_class
from recsys.compression.convert import convert_tables
from recsys.compression.recorded import RecordedTables, served_in
from recsys.config import NAME, ConfigError, RunConfig, TableConfig, parse_options
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.precision import PRECISIONS, Precision
from recsys.embedding.table import TableSpec
from recsys.evaluation.bootstrap import Draws
from recsys.evaluation.compare import compare
from recsys.evaluation.evaluate import Report
from recsys.model_bytes import served_bytes
from recsys.models import table_encoder
from recsys.models.interface import Ranker, Retriever
from recsys.run import Run, build_model
from recsys.run_state import REFIT, SELECT
from recsys.training.checkpoint import Checkpoints
from recsys.training.state import model_tensors

COLLECTION = "collection."
RECORDED = f"{RecordedTables.__module__}:{RecordedTables.__name__}"
Model = Ranker | Retriever


def convert(
    run: RunArgument,
    to: Annotated[str, typer.Option("--to", help="float16, int8 or int4, or the method of the new tables.")],
    budget: Annotated[str | None, typer.Option("--budget", help="Of a method: as 10% or 25MiB.")] = None,
    settings: SetOption = None,
    name: Annotated[str | None, typer.Option("--name", help="The new run (default: RUN_TO, beside it).")] = None,
    json: JsonOption = False,
) -> None:
    """Make a trained run smaller without training: its rows at another precision, or another method fitted to them.

    The new run stands beside the old one. What it lost is measured on the validation split, with its interval.
    """
    with user_errors():
        values = parse_settings(settings) | ({} if budget is None else {"budget": budget})
        trained = Run.open(run)
        _check_target(to)
        named = f"{run.name}_{to.rpartition(':')[2]}" if name is None else name
        if not re.match(NAME, named):
            raise ConfigError(f"--name {named!r} is not the name of one folder, which stands beside {run}")
        summary = Conversion(to, values).run(trained, run.parent / named)
        if json:
            print_json(summary)
            return
        for key, value in summary.items():
            say(f"{key}: {value}")


def _check_target(to: str) -> None:
    try:
        if to not in PRECISIONS:
            table_class(to)
    except ConfigError as error:
        raise ConfigError(f"--to is a precision ({', '.join(PRECISIONS)}) or a table method: {error}") from None


@dataclass(frozen=True)
class Conversion:
    """What is asked for. to: a precision, or a table method with its settings."""

    to: str
    settings: Mapping[str, Any]

    def run(self, run: Run, folder: Path) -> dict[str, Any]:
        """Write the converted run into `folder`; returns what it says of itself.

        Raises ConfigError when the folder is there, and with the reason when run or method cannot be converted.
        """
        if folder.exists():
            raise ConfigError(f"{folder} is there already; remove it or choose another --name")
        if self.to in PRECISIONS and self.settings:
            raise ConfigError(f"--to {self.to} keeps the rows as they are; {min(self.settings)!r} is for a method")
        config, model, missed = self._converted(run, folder.name)
        measured = self._measured(run, folder.name)
        summary: dict[str, Any] = {"run": str(folder), "from": str(run.folder), "to": self.to}
        summary |= {"table_bytes_before": served_bytes(run.model())["table_bytes"], **served_bytes(model)}
        summary |= {"missed": missed} if missed else {}
        summary |= _loss(run, *measured) if measured else {"loss": "not measured: the data has no validation split"}
        _write(run, folder, config, model, summary, measured[1] if measured else None)
        return summary

    def _converted(self, run: Run, name: str) -> tuple[RunConfig, Model, dict[str, float]]:
        """The new config, its model in float32, and what the new rows miss of the vectors, by table; {} for none."""
        trained = run.model(served=False)
        if not isinstance(trained, Model):
            raise ConfigError(f"{run.folder}: model {run.config.model.name!r} has no tables to convert")
        dense = {key: value for key, value in trained.state_dict().items() if not key.startswith(COLLECTION)}
        sections, state = self._sections(run.config, trained.collection)
        config = run.config.model_copy(
            update={"name": name, "tables": run.config.tables.model_copy(update={"specs": sections})}
        )
        model = build_model(config, run.prepared.encoder, backend="plain")
        assert isinstance(model, Model)
        model.load_state_dict({**dense, **{COLLECTION + key: value for key, value in state.items()}}, strict=False)
        encoder = table_encoder(config.model, run.prepared.encoder)
        missed = {} if state else convert_tables(trained.collection, model.collection, encoder)
        return config, model.eval(), missed

    def _sections(
        self, config: RunConfig, trained: EmbeddingCollection
    ) -> tuple[dict[str, TableConfig], dict[str, Tensor]]:
        """The new `[tables.NAME]` sections, and of a precision the state that goes with them."""
        if self.to not in PRECISIONS:
            return {name: self._section(name, config, trained) for name in config.tables.specs}, {}
        precision: Precision = next(known for known in PRECISIONS if known == self.to)
        old = make_specs(config.tables.specs)
        for name, spec in old.items():  # a method may refuse a precision, and says why
            parse_options(type(spec), {**spec.model_dump(), "precision": precision}, where=f"tables.{name}")
        specs, state = served_in(precision, trained, {name: spec.precision for name, spec in old.items()})
        return {
            name: TableConfig(method=RECORDED, options=spec.model_dump(mode="json")) for name, spec in specs.items()
        }, state

    def _section(self, name: str, config: RunConfig, trained: EmbeddingCollection) -> TableConfig:
        """The method's."""
        found = table_class(self.to)
        inputs = [spec.name for spec in trained.schema.inputs]
        widths = {
            trained.embedding_dim(feature)
            for feature in inputs
            if (trained.table_key(feature) or "").startswith(f"{name}/")
        }
        options = _of_width(found, widths.pop(), self.settings) if len(widths) == 1 else dict(self.settings)
        parse_options(found, options, where=f"tables.{name}")
        return TableConfig(method=self.to, options=options)

    def _measured(self, run: Run, name: str) -> tuple[Report, Report] | None:
        """Validation reports before and after; None without that split.

        Of a run that was refitted on train + validation the weights before that are measured, which have not seen it.
        """
        if "validation" not in run.prepared.splits:
            return None
        training = run.config.training.model_copy(update={"refit": False})
        seen = Run(run.folder, run.config.model_copy(update={"training": training}), run.prepared)
        _, after, _ = self._converted(seen, name)
        with TemporaryDirectory() as aside:
            reports = Run(Path(aside), seen.config, seen.prepared)
            before = reports.evaluate("validation", seen.model())
            after.collection = after.collection.freeze()
            return before, reports.evaluate("validation", after)


def _of_width(found: type[TableSpec], width: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the width that the vectors have where they do not say one."""
    if "embedding_dim" in found.model_fields:
        return {"embedding_dim": width, **settings}
    if "chunk_dim" not in found.model_fields or "chunk_dim" in settings:
        return dict(settings)
    chunks = settings.get("chunks", 1)
    if not isinstance(chunks, int) or chunks < 1 or width % chunks:
        raise ConfigError(f"vectors of {width} cannot be cut into {chunks} chunks; take a divisor of {width}")
    return {**settings, "chunks": chunks, "chunk_dim": width // chunks}


def _loss(run: Run, before: Report, after: Report) -> dict[str, Any]:
    """The watched metric on validation before and after, and the interval of the difference, paired."""
    metric = run.metric if not run.is_ranking or run.metric == "logloss" else "auc"
    found = compare(after, before, metric, Draws(seed=run.config.seed))
    return {
        "metric": f"{metric} on validation",
        "before": found.b,
        "after": found.a,
        "difference": [found.difference.value, found.difference.low, found.difference.high],
        "verdict": str(found),
    }


def _write(
    run: Run, folder: Path, config: RunConfig, model: Model, summary: Mapping[str, Any], found: Report | None
) -> None:
    """The folder of a finished run, made aside and renamed; found: its validation report."""
    state = run.state if found is None else replace(run.state, validation=dict(found.metrics))
    stage = REFIT if config.training.refit else SELECT
    with storage.folder_aside(folder) as aside:
        Checkpoints(aside / "checkpoints" / stage).save(model_tensors(model), {}, tag="last")
        storage.write_json(aside / "converted.json", dict(summary))
        storage.write_json(aside / "run.json", vars(state))
        storage.write_text(aside / "config.json", config.to_json())
