"""`recsys export` and `recsys bundle list|verify`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from features.storage import is_uri
from recsys.bundle import BundleStore
from recsys.cli.console import print_json, print_table, say, user_errors
from recsys.cli.data import JsonOption
from recsys.cli.named_runs import describe_run
from recsys.components import Roles, export_ranker, export_retriever
from recsys.components.calibrator import ROLE as CALIBRATOR
from recsys.components.program import save_program
from recsys.config import ConfigError
from recsys.models.interface import Ranker
from recsys.run import Run
from recsys.run_reports import calibrator_of

EXAMPLE_ROWS = 64  # of the batch that a program is traced with

StoreArgument = Annotated[str, typer.Argument(help="A store of bundles: a folder or a URI.")]


def export(
    runs: Annotated[list[Path], typer.Argument(help="One run, or a retrieval run and a ranking run.")],
    out: Annotated[str, typer.Option("--out", help="The store to write to: a folder or a URI.")],
    label: Annotated[str, typer.Option("--label", help="Point this label at the new bundle.")] = "stable",
    program: Annotated[
        bool, typer.Option("--program", help="Add the ranker as a torch.export program, for other runtimes.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Export finished runs as one bundle; components that the store holds already are shared."""
    with user_errors():
        bundle = export_runs([Run.open(run) for run in runs], out, label, program=program)
        if json:
            print_json({"bundle": bundle, "store": out, "label": label})
        else:
            say(f"bundle {bundle} in {out}, label {label}")


def export_runs(runs: list[Run], out: str, label: str, *, program: bool = False) -> str:
    """Write the runs' components and publish them as one bundle; returns its id. program: with one of the ranker."""
    kinds = ["ranker" if run.is_ranking else "retriever" for run in runs]
    if program and "ranker" not in kinds:
        raise ConfigError("--program is of a ranking run, and there is none among these")
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"a bundle holds one retrieval run and one ranking run at the most, these are {kinds}")
    store = BundleStore(out)
    components: Roles = {}
    for run in runs:
        components |= _components(run, store)
    optional = [role for role in (CALIBRATOR,) if role in components]
    if program:
        ranking = runs[kinds.index("ranker")]
        components["program"] = _add_program(ranking, store)
        optional.append("program")
    config = {kind: run.config.model_dump(mode="json") for kind, run in zip(kinds, runs, strict=True)}
    notes = {kind: describe_run(run) for kind, run in zip(kinds, runs, strict=True)}
    return store.publish(components, config=config, notes=notes, label=label, optional=optional)


def _components(run: Run, store: BundleStore) -> Roles:
    model = run.model()
    view = run.seen_before("test")  # what the test numbers were made with is what is served
    sections: dict[str, Any] = {"model_section": run.config.model, "view": view}
    if isinstance(model, Ranker):
        calibrator = calibrator_of(run.folder, run.prepared)
        return export_ranker(store, model=model, calibrator=calibrator, **sections)
    return export_retriever(store, model=model, **sections)  # type: ignore[arg-type]


def _add_program(run: Run, store: BundleStore) -> str:
    model = run.model()
    assert isinstance(model, Ranker)
    loader = run.prepared.view("train").loader(EXAMPLE_ROWS, seed=0, shuffle=False)
    example, _ = next(loader.epoch(0))
    return store.add_component("program", lambda folder: save_program(folder, model, example))


def list_bundles(store: StoreArgument, json: JsonOption = False) -> None:
    """List the bundles of a store, with their labels and parts."""
    with user_errors():
        check_store(store)
        rows = _rows(BundleStore(store))
        if json:
            print_json({"bundles": rows})
        elif not rows:
            say(f"{store} holds no bundles")
        else:
            print_table(f"{len(rows)} bundles in {store}", rows)


def check_store(store: str) -> None:
    """Raise ConfigError when a store on this machine is no folder."""
    if not is_uri(store) and not Path(store).is_dir():
        raise ConfigError(f"there is no store {store}; `recsys export RUN --out {store}` makes one")


def _rows(store: BundleStore) -> list[dict[str, str]]:
    labels = store.labels()
    rows = []
    for bundle in store.bundles():
        names = ", ".join(sorted(name for name, target in labels.items() if target == bundle))
        rows.append({"bundle": bundle[:12], "labels": names, "parts": ", ".join(sorted(store.manifest(bundle).roles))})
    return rows


def verify(store: StoreArgument, json: JsonOption = False) -> None:
    """Check every byte of a store against its manifests; exit code 1 when something is wrong."""
    with user_errors():
        check_store(store)
        opened = BundleStore(store)
        faults, count = list(dict.fromkeys(opened.verify())), len(opened.bundles())  # bundles share components
        if not count and not faults:
            raise ConfigError(f"{store} holds no bundles; `recsys export RUN --out {store}` makes one")
    if json:
        print_json({"bundles": count, "faults": faults})
    else:
        for fault in faults or [f"{count} bundles, all of their bytes as they were written"]:
            say(fault)
    if faults:
        raise typer.Exit(1)
