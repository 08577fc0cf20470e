"""What a run measures of a model: rows scored for a ranker, the catalogue ranked for a recommender."""

from functools import partial
from pathlib import Path

from features.encoder import Encoder
from features.view import Prepared, View
from recsys import distributed
from recsys.config import ConfigError, RunConfig
from recsys.evaluation.calibrators import Calibrator
from recsys.evaluation.evaluate import Report, RowSettings, evaluate_ranking, evaluate_retrieval
from recsys.evaluation.seen import SeenView, seen_by
from recsys.models.interface import ClosedForm, Ranker, Recommender
from recsys.models.view import OnDevice


def seen_before(prepared: Prepared, split: str) -> View:
    """What is known before a split: train for validation, train and validation for test."""
    known = ("train",) if split == "validation" else ("train", "validation")
    return prepared.view(*(name for name in known if name in prepared.splits))


def calibrator_of(folder: Path, prepared: Prepared) -> Calibrator | None:
    """What `recsys calibrate` fitted for the run of a folder; else, where train left negatives out, the correction."""
    labels = prepared.schema.labels
    return Calibrator.of(folder, labels[0].name, prepared.negative_rate) if labels else None


def report_on(
    config: RunConfig,
    model: Ranker | Recommender,
    prepared: Prepared,
    split: str,
    settings: RowSettings | None = None,
) -> Report:
    """The report of a model on a split of the data that it is a model of; over ranks, of all their rows."""
    if isinstance(model, Ranker):
        return _of_rows(config, model, prepared.view(split), None, settings)
    known = seen_before(prepared, split)
    return evaluate_retrieval(model, known, split=split, ks=config.evaluation.k, config_hash=config.content_hash)


def report_on_newer(
    config: RunConfig, model: Ranker | Recommender, prepared: Prepared, split: str, encoder: Encoder
) -> Report:  # fmt: skip
    """The report of a model on a split of newer data, whose ids it sees as `encoder`, its own, knows them.

    Users are told apart as the data does where intervals are concerned, also those whom the model has not seen. Raises
    ConfigError for a closed form, whose catalogue is that of its own data, and for a retriever when no split stands
    before this one.
    """
    if isinstance(model, ClosedForm):
        raise ConfigError(f"model {config.model.name!r} is computed from one catalogue; compute it on the newer data")
    rows = prepared.view(split)
    if isinstance(model, Ranker):
        return _of_rows(config, model, rows, encoder)
    if split == "train":
        raise ConfigError("a retriever is scored by what a split adds to those before it; there is none before 'train'")
    known = SeenView(seen_before(prepared, split), encoder)
    return evaluate_retrieval(model, known, split=split, ks=config.evaluation.k, config_hash=config.content_hash)


def _of_rows(
    config: RunConfig, model: Ranker, rows: View, encoder: Encoder | None, settings: RowSettings | None = None
) -> Report:  # fmt: skip
    rank, world_size = distributed.rank(), distributed.world_size()
    loader = rows.loader(config.evaluation.batch_size, seed=0, shuffle=False, rank=rank, world_size=world_size)
    return evaluate_ranking(
        model,
        loader if model.device.type == "cpu" else OnDevice(loader, model.device),
        split="+".join(rows.splits),
        config_hash=config.content_hash,
        shown=None if encoder is None else partial(seen_by, encoder),
        settings=settings,
    )
