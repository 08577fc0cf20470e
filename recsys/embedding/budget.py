"""The one knob of a table's size: a budget of bytes, or a share of what tables without collisions would take.

Units are powers of 1000 (kB, MB, GB) or of 1024 (KiB, MiB, GiB). Bytes are those of the served form.
"""

import re
from collections.abc import Mapping
from fractions import Fraction

from recsys.embedding.table import Reader, known_num_embeddings

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_budget(text: str) -> tuple[Fraction, bool]:
    """Of "25MiB": (bytes, False); of "10%": (1/10, True). ValueError names what is accepted."""
    match = re.fullmatch(r"([0-9]+|[0-9]*\.[0-9]+) ?(%|[A-Za-z]+)", text)
    if match is None or match[2] not in (*UNITS, "%") or not Fraction(match[1]):
        raise ValueError(f"budget {text!r} must be a positive number with one of %, {', '.join(UNITS)}, as in '25MiB'")
    amount = Fraction(match[1])
    return (amount / 100, True) if match[2] == "%" else (amount * UNITS[match[2]], False)


def budget_bytes(budget: str, table: str, widths: Mapping[Reader, int]) -> int:
    """The bytes that a budget allows; widths: reader -> floats of its vectors, for the collisionless bytes of a share.

    Raises ValueError for a share where a reader's number of ids is not known.
    """
    amount, is_share = parse_budget(budget)
    if not is_share:
        return int(amount)
    method = f"budget {budget}"
    floats = [known_num_embeddings(table, method, reader) * width for reader, width in widths.items()]
    return int(amount * 4 * sum(floats))
