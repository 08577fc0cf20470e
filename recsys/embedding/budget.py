"""The one knob of a table's size: a budget of bytes, or a share of what tables without collisions would take.

Units are powers of 1000 (kB, MB, GB) or of 1024 (KiB, MiB, GiB). Bytes are those of the served form.
"""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator

from recsys.embedding.table import Reader, known_num_embeddings

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_budget(text: str) -> tuple[Fraction, bool]:
    """Of "25MiB": (bytes, False); of "10%": (1/10, True). ValueError names what is accepted."""
    match = re.fullmatch(r"([0-9]+|[0-9]*\.[0-9]+) ?(%|[A-Za-z]+)", text)
    if match is None or match[2] not in (*UNITS, "%") or not Fraction(match[1]):
        raise ValueError(f"budget {text!r} must be a positive number with one of %, {', '.join(UNITS)}, as in '25MiB'")
    amount = Fraction(match[1])
    return (amount / 100, True) if match[2] == "%" else (amount * UNITS[match[2]], False)


def _checked(text: str) -> str:
    parse_budget(text)
    return text


Budget = Annotated[str, AfterValidator(_checked)]  # a specification's field that `parse_budget` accepts


def allowed_bytes(budget: str, full: int) -> int:
    """The bytes that a budget allows where float32 rows without collisions take `full`."""
    amount, is_share = parse_budget(budget)
    return int(amount * full if is_share else amount)


def budget_bytes(budget: str, table: str, widths: Mapping[Reader, int]) -> int:
    """The bytes that a budget allows; widths: reader -> floats of its vectors, for the collisionless bytes of a share.

    Raises ValueError for a share where a reader's number of ids is not known.
    """
    full, method = 0, f"budget {budget}"
    if parse_budget(budget)[1]:
        full = sum(4 * known_num_embeddings(table, method, reader) * width for reader, width in widths.items())
    return allowed_bytes(budget, full)


def solve(size: Callable[[int], int], most: int, knobs: range, what: str) -> int:
    """The largest of `knobs` (a range of step 1) with size(knob) <= most bytes, where size rises with the knob.

    Raises ValueError that begins with `what` and says the smallest size there is.
    """
    low, high = knobs.start, knobs.stop - 1
    if size(low) > most:
        raise ValueError(f"{what} is too small, the minimum is {size(low)}B")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= most else (low, middle - 1)
    return low


def share(most: int, full: Mapping[str, int], least: Mapping[str, int], what: str) -> dict[str, int]:
    """`most` bytes dealt to readers in proportion to what they take in full, to each at least its least.

    full: reader -> bytes without compression; nobody gets more. least: reader -> bytes that it needs at the least.
    Raises ValueError that begins with `what` and says the sum of the least.
    """
    if sum(least.values()) > most:
        raise ValueError(f"{what} is too small, the minimum is {sum(least.values())}B")
    dealt: dict[str, int] = {}
    rest, open_readers = most, sorted(full)
    while open_readers:
        whole = sum(full[name] for name in open_readers)
        parts = {name: min(full[name], rest * full[name] // whole) for name in open_readers}
        short = [name for name in open_readers if parts[name] < least[name]]
        settled = {name: least[name] for name in short} or parts
        dealt |= settled
        rest -= sum(settled.values())
        open_readers = [name for name in open_readers if name not in settled]
    return dealt
