"""The small world that the table laws build a specification over: a schema, a batch with every id, a few steps.

One id per row, lists of both poolings, scores, and two features over one vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.spec import FeatureSchema, FeatureSpec
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.optimizers import TableOptimizer
from recsys.embedding.table import EmbeddingTable, TableSpec

NUM_USERS, NUM_ITEMS, NUM_TAGS, NUM_ROWS = 40, 60, 7, 64
FEATURES = (
    FeatureSpec(name="user", table="ids"),
    FeatureSpec(name="item", table="ids", chunks=2),
    FeatureSpec(name="seen", kind="id_list", vocabulary="item", table="ids", chunks=2, pooling="none"),
    FeatureSpec(name="tags", kind="id_list", table="ids", pooling="mean"),
    FeatureSpec(name="interests", kind="id_score_list", vocabulary="tags", table="ids", pooling="sum"),
)


def at_precision(spec: TableSpec, precision: str) -> TableSpec:
    """The specification, validated again, with its served rows at another precision."""
    return type(spec).model_validate({**spec.model_dump(), "precision": precision})


def encoder(features: Sequence[FeatureSpec] = FEATURES) -> Encoder:
    """Vocabularies of the features, with counts that fall from id to id."""
    schema = FeatureSchema(name="laws", features=tuple(features))
    sizes = {"user": NUM_USERS, "item": NUM_ITEMS, "tags": NUM_TAGS}
    counts = {name: (list(range(size)), [1 + size - raw for raw in range(size)]) for name, size in sizes.items()}
    return Encoder.from_counts(schema, counts)


def build(
    spec: TableSpec,
    optimizer: TableOptimizer | None = None,
    *,
    seed: int = 0,
    features: Sequence[FeatureSpec] = FEATURES,
) -> EmbeddingCollection:
    """The specification over the schema, in the plain backend."""
    return EmbeddingCollection(encoder(features), {"ids": spec}, backend="plain", optimizer=optimizer, seed=seed)


def small_batch() -> Batch:
    """Every id of every feature stands in it; some lists are empty."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.arange(NUM_ROWS)
    lengths = torch.randint(0, 4, (NUM_ROWS,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = torch.arange(int(offsets[-1]))
    tags = Jagged(values=values % (NUM_TAGS + 1), offsets=offsets)
    scores = Jagged(values=tags.values, offsets=offsets, weights=torch.rand(len(values), generator=generator))
    seen = Jagged(values=values % (NUM_ITEMS + 1), offsets=offsets)
    features = {"user": numbers % (NUM_USERS + 1), "item": numbers % (NUM_ITEMS + 1)}
    return Batch(features=features | {"seen": seen, "tags": tags, "interests": scores})


def names_of(collection: EmbeddingCollection) -> list[str]:
    """The features, sorted."""
    return sorted(spec.name for spec in collection.schema.inputs)


def ids_of(collection: EmbeddingCollection, feature: str) -> Tensor:
    """Every id of a feature, once."""
    column = small_batch()[feature]
    ids: Tensor = (column.values if isinstance(column, Jagged) else column).unique()
    return ids


def tables_and_ids(collection: EmbeddingCollection) -> Iterator[tuple[EmbeddingTable, Tensor]]:
    """Every table with all its ids."""
    for feature in ("user", "item", "tags"):
        yield collection.table(feature), ids_of(collection, feature)


def train(collection: EmbeddingCollection, steps: int) -> None:
    """Steps of a loss that pulls every vector somewhere else."""
    for _ in range(steps):
        vectors = flat(collection(small_batch()), names_of(collection))
        loss = (vectors * fixed(len(vectors), seed=4)).sum()
        penalty = collection.penalty()
        (loss if penalty is None else loss + penalty).backward()
        collection.on_step()


@torch.no_grad()
def vectors_of(collection: EmbeddingCollection) -> Tensor:
    """All vectors of the batch in eval mode, in one row."""
    training = collection.training
    found = flat(collection.eval()(small_batch()), names_of(collection))
    collection.train(training)
    return found


def flat(vectors: Mapping[str, Tensor | Jagged], names: Sequence[str]) -> Tensor:
    """All numbers of all features in one row."""
    columns = [vectors[name] for name in names]
    flat: list[Tensor] = [(column.values if isinstance(column, Jagged) else column).flatten() for column in columns]
    return torch.cat(flat)


def fixed(*shape: int, seed: int) -> Tensor:
    """Normal numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
