"""Finding items for a user: indexes over item vectors, and filters that say which items are allowed."""

from pathlib import Path

from recsys.retrieval.filters import Attributes, Predicate, parse_predicate
from recsys.retrieval.index import FILE, ExactIndex, Hits, Index, read_about
from recsys.retrieval.topk import top_k

INDEXES: dict[str, type[Index]] = {"exact": ExactIndex}


def load_index(folder: Path | str) -> Index:
    """The index saved in `folder`, of whatever kind. Raises ValueError naming the file and the kinds known."""
    path = Path(folder) / FILE
    kind = read_about(path).get("kind", "")
    if kind not in INDEXES:
        raise ValueError(f"{path} holds an index of kind {kind!r}; known kinds are {sorted(INDEXES)}")
    return INDEXES[kind].load(folder)


__all__ = [
    "INDEXES",
    "Attributes",
    "ExactIndex",
    "Hits",
    "Index",
    "Predicate",
    "load_index",
    "parse_predicate",
    "top_k",
]
