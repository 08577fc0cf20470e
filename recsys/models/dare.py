"""DARE: decoupled tables for attention and for representation (Feng et al. 2025, "Long-Sequence Recommendation Models
Need Decoupled Embeddings").

On one shared table the gradients of attention (which events matter) and of representation (what they say) conflict, and
representation, whose gradients are larger, wins. DARE looks every id of a history and its target up in two tables:

    q, k_j     from the attention table      scores, search, weights
    q_r, v_j   from the ids' own tables      values, and all else that the model reads

so that no gradient reaches a table from the other's part, but through the weights. The two may differ in width and in
compression: a narrow attention table makes the search over a long history faster. The rest is `SearchedAttention`.

Shapes: as in twin.py.
"""

from typing import Any

from features.spec import FeatureSchema, FeatureSpec
from recsys.models.interface import chosen_inputs
from recsys.models.options import ModelOptions
from recsys.models.sequence_inputs import alignments, sequences_of
from recsys.models.twin import SearchedAttention, SearchOptions

SUFFIX = "-attention"


class DARE(SearchedAttention):
    """`SearchedAttention` with attention tables: a copy `<feature>-attention` of every paired feature and sequence.

        [model]
        name = "dare"

        [tables.ids]
        method = "dense"
        embedding_dim = 16

        [tables.attention]
        method = "dense"
        embedding_dim = 4

    Equal to the paper's model in its decoupling, search, scaling, target-aware vectors and auxiliary loss.
    """

    class Config(SearchOptions):
        """attention_table: the table specification that attention reads; one of the schema's is shared, as in TWIN."""

        attention_table: str = "attention"

    config: Config

    @classmethod
    def table_schema(cls, schema: FeatureSchema, config: ModelOptions) -> FeatureSchema:
        """The schema with the copies, in the attention table."""
        assert isinstance(config, DARE.Config)
        groups = alignments(schema, chosen_inputs(schema, config.features)).values()
        names = dict.fromkeys(name for group in groups for name in (*group.pairs, *sequences_of(group)))
        copies = tuple(_copy(schema, name, config.attention_table) for name in names)
        return FeatureSchema.model_validate(dict(schema) | {"features": schema.features + copies})

    def attention_name(self, feature: str) -> str:
        """The copy."""
        return feature + SUFFIX


def _copy(schema: FeatureSchema, name: str, table: str) -> FeatureSpec:
    """The feature or sequence under another name in another table, with the same ids."""
    spec, source = schema.feature(name), schema.source(name)
    same: dict[str, Any] = {"hashed": True, "shares": source.salt} if source.hashed else {}
    kept = {key: value for key, value in dict(spec).items() if key in spec.model_fields_set} | same
    return FeatureSpec.model_validate(
        kept | {"name": name + SUFFIX, "table": table, "min_count": source.min_count, "unseen": source.unseen}
    )
