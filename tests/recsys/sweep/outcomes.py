"""Outcomes made by hand, for what is computed from them."""

from typing import Any

from recsys.sweep.outcome import Lookup, Outcome, Sizes
from recsys.sweep.plan import Cell


def cell(method: str = "hash", budget: str = "10%", precision: Any = "float32", seed: int = 1) -> Cell:
    return Cell(method=method, budget=budget, precision=precision, seed=seed)


def finished(auc: float, size: int = 1000, ratio: float = 2.0, training: int = 5000, **changes: Any) -> Outcome:
    """A run with this validation metric, .01 more on test, and these costs; collisionless lookups take .01 µs."""
    values: dict[str, Any] = {
        "status": "finished", "config_hash": "c", "validation": {"auc": auc}, "test": {"auc": auc + 0.01},
        "sizes": Sizes(served=size + 100, tensors=size, model=300, training=training - 100, optimizer=100),
        "lookup": Lookup(us_per_id=ratio * 0.01, dense_us_per_id=0.01), "seconds": 3.0, "protocol": "every row",
    }  # fmt: skip
    return Outcome(**(values | changes))


def ended(status: Any, reason: str) -> Outcome:
    return Outcome(status=status, config_hash="c", reason=reason)
