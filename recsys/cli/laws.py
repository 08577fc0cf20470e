"""`recsys laws`: the verdict of every law on a table, ours by its key or a stranger's by "package.module:Name"."""

import os
import sys
from typing import Annotated

import typer

from recsys.cli.arguments import SetOption, parse_settings
from recsys.cli.console import print_json, print_table, say, user_errors
from recsys.cli.data import JsonOption
from recsys.compression import table_class
from recsys.config import parse_options
from recsys.laws.table import LAWS, verdicts

BROKEN = 1


def laws(
    table: Annotated[str, typer.Argument(help='"package.module:Name" of a TableSpec, or a method of ours.')],
    settings: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Run every law over a table specification: what holds, what does not and why; exit code 1 when one is broken.

    Modules are found where Python finds them, and in the current directory.
    """
    with user_errors():
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # the installed command does not look there
        spec = parse_options(table_class(table), parse_settings(settings), where=table)
        found = verdicts(spec)
    broken = {law: why for law, why in found.items() if why}
    if json:
        print_json({"table": table, "settings": spec.model_dump(mode="json"), "laws": len(found), "broken": broken})
    else:
        rows = [{"law": law, "verdict": f"broken: {why}" if why else "holds"} for law, why in found.items()]
        print_table(f"{table}: {len(found) - len(broken)} of {len(found)} laws hold", rows)
        for law in broken:
            say(f"{law}: {LAWS[law].__doc__}")
    if broken:
        raise typer.Exit(BROKEN)
