"""The models by name, and `make_model`, which builds one from its config section.

A name is a key of `MODELS` or "package.module:Name" for a class of the user's.
"""

from collections.abc import Callable, Sequence

from features.encoder import Encoder
from features.values import Value
from recsys.config import ModelConfig, import_name, parse_options
from recsys.embedding.collection import EmbeddingCollection
from recsys.models.dare import DARE
from recsys.models.dcn import DCN
from recsys.models.deepfm import DeepFM
from recsys.models.din import DIN
from recsys.models.interface import ClosedForm, Ranker, Retriever
from recsys.models.logistic import LogisticRegression
from recsys.models.mf import MatrixFactorization
from recsys.models.multitask import MMoE, SharedBottom
from recsys.models.neighbours import P3, ItemKNN
from recsys.models.options import ModelOptions
from recsys.models.popularity import Popularity
from recsys.models.sum_pooling import BaseModel
from recsys.models.twin import TWIN
from recsys.models.twotower import TwoTower

Model = Ranker | Retriever | ClosedForm

MODELS: dict[str, type[Model]] = {
    "popularity": Popularity,
    "itemknn": ItemKNN,
    "p3": P3,
    "mf": MatrixFactorization,
    "twotower": TwoTower,
    "dcn": DCN,
    "deepfm": DeepFM,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "base": BaseModel,
    "din": DIN,
    "twin": TWIN,
    "dare": DARE,
    "lr": LogisticRegression,
}


def model_class(name: str, allowed: Sequence[str] | None = None) -> type[Model]:
    """The class of a key of `MODELS`, or of "package.module:Name" if `allowed` (see `import_name`) admits it."""
    if name in MODELS:
        return MODELS[name]
    if ":" not in name:
        raise ValueError(f"there is no model {name!r}; ours are {', '.join(MODELS)}, yours is 'package.module:Name'")
    found = import_name(name, allowed)
    if not (isinstance(found, type) and issubclass(found, Ranker | Retriever | ClosedForm)):
        raise ValueError(f"{name!r} is no subclass of Ranker, Retriever or ClosedForm of recsys.models.interface")
    return found


def model_options(section: ModelConfig, allowed: Sequence[str] | None = None) -> Value:
    """The validated settings of a `[model]` section; ConfigError names an unknown key and the nearest valid one."""
    config: type[Value] = model_class(section.name, allowed).Config
    return parse_options(config, section.options, where=f"model {section.name!r}")


def table_encoder(section: ModelConfig, encoder: Encoder, allowed: Sequence[str] | None = None) -> Encoder:
    """The encoder that the tables of a `[model]` section's model are built from (`EmbeddingModel.table_schema`)."""
    model = model_class(section.name, allowed)
    if issubclass(model, ClosedForm):
        return encoder
    options = model_options(section, allowed)
    assert isinstance(options, ModelOptions)
    return encoder.with_schema(model.table_schema(encoder.schema, options))


def make_model(
    section: ModelConfig,
    encoder: Encoder | None = None,
    collection: EmbeddingCollection | None = None,
    allowed: Sequence[str] | None = None,
) -> Model:
    """The model of a `[model]` section. A closed-form one takes neither encoder nor collection, the others need both.

    Layers draw their initial values from torch's global generator: seed it around this call.
    """
    model, options = model_class(section.name, allowed), model_options(section, allowed)
    if issubclass(model, ClosedForm):
        return model(options)
    if encoder is None or collection is None:
        raise ValueError(f"model {section.name!r} reads tables: give an encoder and a collection")
    build: Callable[..., Model] = model  # each takes the options of its own Config
    return build(encoder, collection, options)
