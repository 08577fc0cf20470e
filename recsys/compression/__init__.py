"""Table methods by name, and `make_collection`, which builds an embedding collection from a run's config.

A method is a key of `COMPRESSIONS` or "package.module:Name" for a `TableSpec` of the user's.
"""

from collections.abc import Mapping, Sequence

from features.encoder import Encoder
from recsys.compression.adaptive import AdaptTable
from recsys.compression.codebook import CodebookTable
from recsys.compression.dedup import DedupTable
from recsys.compression.factorized import CompositionalTable
from recsys.compression.hashing import HashTable
from recsys.compression.mixed_dim import MixedDimTable
from recsys.compression.pruning import PrunedTable
from recsys.compression.robe import RobeTable
from recsys.compression.supernet import SearchedTable
from recsys.compression.tensor_train import TensorTrainTable
from recsys.config import ConfigError, TableConfig, TablesConfig, TablesOptimizerConfig, import_name, parse_options
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.minibatch_l2 import MiniBatchL2
from recsys.embedding.optimizers import OPTIMIZERS, TableOptimizer
from recsys.embedding.table import TableSpec
from recsys.embedding.unified import UnifiedTable

COMPRESSIONS: dict[str, type[TableSpec]] = {
    "dense": DenseTable,
    "unified": UnifiedTable,
    "hash": HashTable,
    "compo": CompositionalTable,
    "ttrec": TensorTrainTable,
    "robe": RobeTable,
    "adapt": AdaptTable,
    "mde": MixedDimTable,
    "dedup": DedupTable,
    "mgqe": CodebookTable,
    "deeplight": PrunedTable,
    "optembed": SearchedTable,
}


def table_class(method: str, allowed: Sequence[str] | None = None) -> type[TableSpec]:
    """The class of a key of `COMPRESSIONS`, or of "package.module:Name" if `allowed` (see `import_name`) admits it."""
    if method in COMPRESSIONS:
        return COMPRESSIONS[method]
    if ":" not in method:
        known = ", ".join(COMPRESSIONS)
        raise ConfigError(
            f"there is no table method {method!r}; there are {known}, or name yours 'package.module:Name'"
        )
    found = import_name(method, allowed)
    if not (isinstance(found, type) and issubclass(found, TableSpec)):
        raise ConfigError(f"{method!r} is no subclass of recsys.TableSpec")
    return found


def make_specs(sections: Mapping[str, TableConfig], allowed: Sequence[str] | None = None) -> dict[str, TableSpec]:
    """The table specifications of `[tables.NAME]` sections, validated."""
    return {
        name: parse_options(table_class(section.method, allowed), section.options, where=f"tables.{name}")
        for name, section in sections.items()
    }


def make_table_optimizer(section: TablesOptimizerConfig) -> TableOptimizer:
    """The update rule of `[optimizer.tables]`; ConfigError for a setting that it does not have."""
    values = section.model_dump(exclude={"name", "schedule"}, exclude_none=True)
    return parse_options(OPTIMIZERS[section.name], values, where=f"optimizer.tables ({section.name})")


def make_collection(
    tables: TablesConfig,
    encoder: Encoder,
    optimizer: TableOptimizer | None = None,
    *,
    seed: int = 0,
    max_row_norm: float | None = None,
    mba_l2: float | None = None,
    allowed: Sequence[str] | None = None,
) -> EmbeddingCollection:
    """The collection that `[tables]` describes, over the encoder's vocabularies; no optimizer if it only serves."""
    specs = make_specs(tables.specs, allowed)
    collection = EmbeddingCollection(
        encoder, specs, backend=tables.backend, optimizer=optimizer, seed=seed, sharding=tables.sharding
    )
    collection.max_row_norm = max_row_norm
    if mba_l2 is not None:
        keys = {spec.name: collection.table_key(spec.name) for spec in encoder.schema.inputs}
        tables_of = {feature: key for feature, key in keys.items() if key is not None}
        collection.minibatch_l2 = MiniBatchL2.of(mba_l2, encoder.counts, tables_of)
    return collection
