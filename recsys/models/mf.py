"""Matrix factorisation: one vector per user, one per item, and nothing else.

Shapes: B users, n items, D embedding_dim.
"""

from torch import Tensor

from features.batch import Batch
from features.encoder import Encoder
from recsys.embedding.collection import EmbeddingCollection
from recsys.models.interface import Retriever, Vectors
from recsys.models.layers import looked_up
from recsys.models.options import RetrieverOptions


class MatrixFactorization(Retriever):
    """score(u, i) = <p_u, q_i>, of unit vectors with similarity "cosine".

    D is the embedding_dim of the tables that the schema's user and item read. A user or item that is not in the
    training data has the vector of its vocabulary's unseen row.
    With loss "bpr" and similarity "dot" this is MF-BPR (Rendle et al. 2009) with the negatives of a step shared.
    """

    class Config(RetrieverOptions):
        """Matrix factorisation adds no settings; its inputs are the two ids."""

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: Config) -> None:
        super().__init__(encoder, collection, config)
        if config.features:
            raise ValueError(f"matrix factorisation reads the two ids alone; remove features {list(config.features)}")
        user, item = self.schema.feature(self.schema.user), self.schema.feature(self.schema.item)
        self.user_inputs, self.item_inputs = (user,), (item,)
        widths = {spec.name: collection.embedding_dim(spec.name) for spec in (user, item)}
        if len(set(widths.values())) > 1:
            raise ValueError(f"user and item need vectors of one width, embedding_dim is {widths}")

    def encode_users(self, vectors: Vectors, batch: Batch) -> Tensor:
        """The user's row, [B, 1, D]."""
        return looked_up(vectors, self.schema.user)[:, None]

    def encode_items(self, vectors: Vectors, batch: Batch) -> Tensor:
        """The item's row, [n, D]."""
        return looked_up(vectors, self.schema.item)
