"""The `recsys` command, one file per group of commands. `python -m recsys.cli` is the same command."""

import typer

from recsys.cli import (
    bundles,
    calibrate,
    compare,
    compress,
    convert,
    daily,
    data,
    demo,
    diagnose,
    doctor,
    evaluate,
    laws,
    plan,
    serve,
    tables,
    train,
    tune,
)  # fmt: skip

app = typer.Typer(
    name="recsys",
    help="From raw interaction logs to live candidates: prepare, train, evaluate, export, serve.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
schema = typer.Typer(help="Feature schemas.", no_args_is_help=True)
bundle = typer.Typer(help="What a store of bundles holds.", no_args_is_help=True)

app.command("demo")(demo.demo)
schema.command("infer")(data.infer_schema)
app.add_typer(schema, name="schema")
app.command("prepare")(data.prepare_data)
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("daily")(daily.daily)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("diagnose")(diagnose.diagnose)
app.command("calibrate")(calibrate.calibrate)
app.command("plan")(plan.plan)
compress.app.command(compress.CONVERT)(convert.convert)
app.add_typer(compress.app, name="compress")
app.add_typer(tables.app, name="tables")
app.command("export")(bundles.export)
app.add_typer(bundle, name="bundle")
bundle.command("list")(bundles.list_bundles)
bundle.command("verify")(bundles.verify)
app.command("serve")(serve.serve)
app.command("retrieve")(serve.retrieve)
app.command("score")(serve.score)
app.command("doctor")(doctor.doctor)
app.command("laws")(laws.laws)


def main() -> None:
    """Run the command line."""
    app()
