"""`recsys demo`: both slices end to end on the embedded demo world, from raw logs to answers over gRPC."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from recsys.bundle import BundleStore
from recsys.cli.bundles import export_runs
from recsys.cli.console import print_json, print_table, say, user_errors
from recsys.cli.data import JsonOption
from recsys.cli.train import start, train_run
from recsys.config import ConfigError, load_config
from recsys.evaluation.bootstrap import Comparison, Draws
from recsys.evaluation.compare import compare
from recsys.evaluation.evaluate import Report
from recsys.run import Run
from serving.client import Client
from serving.pipeline import Pipeline
from serving.server import Settings, running

RETRIEVAL = ("demo_popularity", "demo_p3", "demo")
RANKING = ("demo_ctr_lr", "demo_ctr")
DRAWS = Draws(seed=0)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Where prepared data, runs and the store go.")] = Path("demo"),
    configs: Annotated[Path, typer.Option("--configs", help="The folder of the demo's configs.")] = Path("configs"),
    json: JsonOption = False,
) -> None:
    """Generate a world, prepare it, train retrievers and click models, evaluate, export, serve, retrieve and score.

    What an earlier demo finished in the same folder is reused.
    """
    with user_errors():
        if not (configs / "demo.toml").exists():
            raise ConfigError(f"{configs} has no demo.toml; run this in the project's folder or name it with --configs")
        runs = {name: _finished_run(configs / f"{name}.toml", out) for name in (*RETRIEVAL, *RANKING)}
        reports = {name: run.evaluate() for name, run in runs.items()}
        retrieval, ranking = _retrieval_rows(reports), _ranking_rows(reports)
        bundle = export_runs([runs["demo"], runs["demo_ctr"]], str(out / "store"), "stable")
        answers = _served(out / "store", runs["demo_ctr"])
        if json:
            print_json({"retrieval": retrieval, "ranking": ranking, "bundle": bundle, **answers})
            return
        _print(retrieval, ranking, answers)


def _finished_run(config: Path, out: Path) -> Run:
    settings = load_config(config)
    say(f"== {settings.name}: {settings.model.name}")
    run = start(settings, config.parent, out / "runs" / settings.name, (None, out / "prepared"), resume=True)
    if not run.finished:
        train_run(run)
    return run


def _retrieval_rows(reports: dict[str, Report]) -> list[dict[str, Any]]:
    """Recall and nDCG, and the paired difference in recall from popularity and from P3, with its interval."""
    rows = []
    for name in RETRIEVAL:
        report = reports[name]
        row: dict[str, Any] = {"model": report.model, "recall@20": report.metrics["recall@20"]}
        row["ndcg@20"] = report.metrics["ndcg@20"]
        for other in ("demo_popularity", "demo_p3"):
            found = compare(report, reports[other], "recall@20", DRAWS) if name != other else None
            row[f"recall@20 - {reports[other].model}"] = _interval(found)
        rows.append(row)
    return rows


def _ranking_rows(reports: dict[str, Report]) -> list[dict[str, Any]]:
    """AUC and logloss beside those of the planted truth, and how much of the gap from logistic regression is closed."""
    floor, ceiling = (reports["demo_ctr_lr"].metrics[name] for name in ("auc", "ceiling_auc"))
    rows = []
    for name in RANKING:
        report = reports[name]
        closed = (report.metrics["auc"] - floor) / (ceiling - floor)
        row: dict[str, Any] = {"model": report.model, "auc": report.metrics["auc"]}
        row["logloss"] = report.metrics["logloss"]
        found = compare(report, reports["demo_ctr_lr"], "auc", DRAWS) if name != "demo_ctr_lr" else None
        rows.append(row | {"auc - LogisticRegression": _interval(found), "gap closed": f"{closed:.0%}"})
    truth = {"model": "planted probability", "auc": ceiling, "logloss": reports["demo_ctr"].metrics["ceiling_logloss"]}
    return [*rows, truth | {"auc - LogisticRegression": "", "gap closed": "100%"}]


def _interval(found: Comparison | None) -> str:
    if found is None:
        return ""
    part = found.difference
    return f"{part.value:+.4f} [{part.low:+.4f}, {part.high:+.4f}]"


def _served(store: Path, ranking: Run) -> dict[str, Any]:
    """What a server of the new bundle answers to a known user, to a new one with a history, and to a score."""
    pipeline: Callable[[], Pipeline] = lambda: Pipeline.load(BundleStore(store).open())  # noqa: E731
    users = ranking.prepared.users
    assert users is not None
    user = users.raw(torch.tensor([0]))[0]
    with running(pipeline, Settings(port=0)) as address, Client(address, timeout_s=10.0) as client:
        known = client.retrieve(user=user, k=5)
        found = known.items.tolist()
        new = client.retrieve(history=found[:2], k=5)
        scored = client.score(user=user, items=found, columns={"device": ["phone"], "hour": [21]})
    clicks = [round(float(score), 4) for score in scored.scores[:, 0]]
    return {"user": user, "known": found, "clicks": clicks, "new": new.items.tolist(), "bundle": known.bundle_id}


def _print(retrieval: list[dict[str, Any]], ranking: list[dict[str, Any]], answers: dict[str, Any]) -> None:
    print_table("Retrieval, test split of the demo world (synthetic); paired differences, 95 % intervals", retrieval)
    for row in retrieval:
        if row.get("recall@20 - P3", "").startswith("-") and row["model"] not in ("P3", "Popularity"):
            say(f"{row['model']} lies below P3, which needs no training")
    print_table("Ranking, test split of the demo world (synthetic)", ranking)
    rows = [{"item": item, "P(click)": score} for item, score in zip(answers["known"], answers["clicks"], strict=True)]
    print_table(f"Served: candidates of user {answers['user']}, scored", rows)
    say(f"Served: a new user who clicked {answers['known'][:2]} gets {answers['new']}")
    say(f"Bundle {answers['bundle'][:12]}; the server has been stopped")
