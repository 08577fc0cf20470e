"""What each component of a bundle holds: written from a model and the data it was trained on, and read back.

    role                kind       holds
    retriever, ranker   same       model.json (section, tables, encoder hash), weights.safetensors
    <part>.schema       encoder    the encoder: schema, statistics, vocabularies
    <part>.items        items      the item table: ids, encoded features, raw attributes
    <part>.users        users      the user table, the items that each user has, the histories as of the export
    index               index      the item vectors of a retriever that has vectors
    fallback            fallback   a score for each item, to answer with when the model cannot
    calibrator          calibrator curves that turn the ranker's logits into probabilities (optional)
    program             program    the ranker as a torch.export program (optional, never read by our server)

The schema, items and users of a retriever and a ranker over the same prepared data are the same components, stored
once. What must fit together says so: index, fallback and closed-form models name the catalogue, an index the weights
(tokens, which the bundle store checks); tables and models name their encoder, checked here.

Not here: verifying bytes and choosing bundles (`recsys.bundle`), answering requests (`serving`). Nothing read here runs
code of the bundle's, and classes of the user's are imported only where their package is allowed.
"""

from recsys.components.entities import Entities, ExportView, Roles, Users
from recsys.components.parts import (
    RankerPart,
    RetrieverPart,
    export_ranker,
    export_retriever,
    load_ranker,
    load_retriever,
)

__all__ = [
    "Entities",
    "ExportView",
    "RankerPart",
    "RetrieverPart",
    "Roles",
    "Users",
    "export_ranker",
    "export_retriever",
    "load_ranker",
    "load_retriever",
]
