"""What families of tables of rows are held to: bytes within any budget, training in the fused backend as in plain."""

import re
from collections.abc import Callable

import torch

from features.batch import Batch, Jagged, offsets_of
from features.spec import parse_schema
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.layout import unique_stores
from recsys.embedding.optimizers import RowWiseAdagrad
from recsys.embedding.precision import PRECISIONS, pack
from recsys.embedding.stores import initial_weights
from recsys.embedding.table import Reader, TableSpec
from tests.recsys.compression.served import BUDGETS, VOCABULARIES, readers_of
from tests.recsys.embedding.small_schema import Ids, flat, pull

SIZES = {"user": 300, "item": 90, "sex": 2}
SCHEMA = parse_schema(
    {
        "name": "families",
        "features": {
            "user": {"table": "ids"},
            "item": {"table": "ids"},
            "seen": {"table": "ids", "kind": "id_list", "pooling": "mean", "vocabulary": "item"},
            "sex": {"table": "ids"},
        },
    },
    where="test",
)


def assert_bytes_within_budget(make: Callable[[str, str], TableSpec]) -> None:
    """make: (budget, precision) -> specification. Measured bytes are within it, or the error names the least budget."""
    for sizes in VOCABULARIES:
        readers = readers_of(sizes)
        for precision in PRECISIONS:
            for budget in BUDGETS:
                least = _least_refused(make(budget, precision), readers)
                if least:
                    assert not _least_refused(make(f"{least}B", precision), readers)
                    assert _least_refused(make(f"{least - 1}B", precision), readers) == least


def _least_refused(spec: TableSpec, readers: list[Reader]) -> int:
    """0 where the tables can be built, and are as small as promised; else the minimum that the error names."""
    most = spec.max_bytes("ids", readers)
    try:
        tables = list(spec.build("ids", readers).values())
    except ValueError as error:
        named = re.search(r"is too small, the minimum is (\d+)B", str(error))
        assert named
        assert most is not None
        assert int(named[1]) > most
        return int(named[1])
    stores = unique_stores(tables)
    weights = initial_weights(stores, seed=0)
    served = sum(pack(weights[store.name], store.precision).nbytes for store in stores)
    served += sum(tensor.nbytes for table in tables for tensor in table.state_dict().values())
    assert most is not None
    assert served <= most
    return 0


def assert_fused_equals_plain(spec: TableSpec, steps: int = 4) -> None:
    """Forward, and stores and optimizer state after some steps; every store moves."""
    pair = [
        EmbeddingCollection(
            Ids(SCHEMA, SIZES), {"ids": spec}, backend=backend, optimizer=RowWiseAdagrad(lr=0.1, eps=1e-3)
        )
        for backend in ("plain", "fused")
    ]
    before = {name: weight.clone() for name, weight in pair[0].backend.weights().items()}
    for step in range(steps):
        vectors = [flat(collection(_batch(step))) for collection in pair]
        torch.testing.assert_close(vectors[1], vectors[0], atol=1e-5, rtol=1e-5)
        for found in vectors:
            (found * pull(len(found), step)).sum().backward()
    plain, fused = (collection.state() for collection in pair)
    assert plain.keys() == fused.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(fused[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
    assert all(bool((weight != before[name]).any()) for name, weight in pair[1].backend.weights().items())


def _batch(seed: int, size: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    offsets = offsets_of(torch.randint(4, (size,), generator=generator))
    seen = torch.randint(SIZES["item"], (int(offsets[-1]),), generator=generator)
    columns = {name: torch.randint(count, (size,), generator=generator) for name, count in SIZES.items()}
    return Batch(features={**columns, "seen": Jagged(values=seen, offsets=offsets)})
