"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.config import parse_override

RunArgument = Annotated[Path, typer.Argument(help="A run's folder, for instance runs/demo.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; may be repeated.")
]


def parse_settings(texts: list[str] | None) -> dict[str, Any]:
    """The values of several --set options."""
    found: dict[str, Any] = {}
    for text in texts or ():
        found |= parse_override(text)
    return found
