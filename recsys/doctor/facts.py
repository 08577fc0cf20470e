"""What torchrec and fbgemm do not do, or do wrongly, on a CPU: the reasons for what our backends refuse or go around.

Measured with torchrec 1.8 and fbgemm 1.8, not promised by either. A fact that is no longer seen is a change, and good
news: something of ours has lost its reason. Only the statements stand here; probes.py runs them.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What is known, and the ranks that it takes to see it."""

    statement: str
    num_ranks: int = 1


FACTS: Mapping[str, Fact] = {
    "no_fused_adam": Fact(statement="fbgemm has no fused Adam on CPU"),
    "no_odd_widths": Fact(statement="fbgemm takes widths that are multiples of 4 only"),
    "no_row_wise_bags": Fact(statement="torchrec has no row-wise bags on CPU, only lists"),
    "no_mixed_widths": Fact(statement="torchrec's lists refuse tables of several widths"),
    "default_buckets": Fact(statement="managed collision cannot be planned for 2 ranks with default buckets"),
    "data_parallel_lists": Fact(statement="lists of data-parallel tables are wrong on CPU, silently", num_ranks=2),
    "data_parallel_state": Fact(
        statement="loading into a data-parallel table loses the optimizer's state, silently", num_ranks=2
    ),
    "column_wise_row_wise_adagrad": Fact(
        statement="column-wise tables are wrong under row-wise Adagrad once they are split", num_ranks=2
    ),
}
