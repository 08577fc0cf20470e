"""What is wrong with a config, said before data is prepared or an epoch is spent.

Not here: unknown keys and values out of range (`recsys.config`), and what only the tables, the model or the validation
metrics themselves can say.
"""

from collections.abc import Sequence
from itertools import product

import torch

from features.view import Prepared
from recsys import distributed
from recsys.compression import make_specs, make_table_optimizer
from recsys.config import ConfigError, RunConfig, TrainingConfig
from recsys.embedding.placement import check_sharding
from recsys.models import model_class, model_options
from recsys.models.interface import ClosedForm, Ranker, chosen_labels
from recsys.models.options import RankerOptions


def check_settings(config: RunConfig) -> None:
    """Raise ConfigError for what is wrong in a config whatever its data: before anything is prepared or trained.

    Wrong is a model, table or setting that does not exist, one without effect, and a device that is not there.
    """
    model_options(config.model)
    staged = [name for name, spec in make_specs(config.tables.specs).items() if spec.adds_phases]
    if config.training.refit and staged:
        raise ConfigError(
            f"training.refit cannot be used with table {staged[0]!r}, which trains in stages of its own; remove it"
        )
    if config.training.refit and config.data.downsample is not None:
        raise ConfigError(
            "training.refit trains on validation too, whose negatives data.downsample leaves whole, so that no "
            "correction makes its scores probabilities; remove one of the two"
        )
    if len(staged) > 1:
        raise ConfigError(
            f"tables {staged} each train in stages of their own; one of them can, or features of one specification"
        )
    optimizer = make_table_optimizer(config.optimizer.tables)
    if config.tables.sharding is not None:
        check_sharding(config.tables.sharding, optimizer)
    training, backend = config.training, config.tables.backend
    if issubclass(model_class(config.model.name), ClosedForm):
        found = {"tables": config.tables, "optimizer": config.optimizer}
        found |= {"training": training.model_copy(update={"threads": 0})}
        idle = [name for name, section in found.items() if section != type(section)()]
        if idle:
            raise ConfigError(f"model {config.model.name!r} is not trained: section {idle[0]!r} has no effect")
    if backend == "plain" and distributed.world_size() > 1:
        raise ConfigError("tables.backend = 'plain' is for one process; under torchrun take 'sharded' (or 'fused')")
    if training.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device = 'cuda': torch finds no GPU here; accepted is 'cpu'")
    if training.precision == "bf16" and not _has_bf16(training.device):
        raise ConfigError(
            f"training.precision = 'bf16': this {training.device} ({_name_of(training.device)}) multiplies no bfloat16 "
            "matrices by itself; accepted is 'float32'"
        )


def check_data(config: RunConfig, prepared: Prepared) -> None:
    """Raise ConfigError for data that the config cannot train on: see `check_splits` and `check_labels`."""
    check_splits(config.training, prepared.splits)
    options, model = model_options(config.model), model_class(config.model.name)
    if issubclass(model, Ranker) and isinstance(options, RankerOptions):
        check_labels(chosen_labels(prepared.schema, options.labels, model.several_labels), prepared)


def check_labels(labels: Sequence[str], prepared: Prepared) -> None:
    """Raise ConfigError for a label that no click model can learn (outside 0..1), or be measured by (not 0 or 1)."""
    for split, label in product(prepared.splits, labels):
        accepted = "from 0 to 1" if split == "train" else "0 or 1 where it is measured"
        for values in prepared.labels(split, label):
            wrong = (values < 0) | (values > 1) if split == "train" else (values != 0) & (values != 1)
            if wrong.any():
                raise ConfigError(
                    f"label {label!r} is {values[wrong][0]:g} in some row of {split!r}, accepted is {accepted}: "
                    "say which values are positive, by `positive` or `positive_from` in the schema's label"
                )


def _has_bf16(device: str) -> bool:
    """Whether bfloat16 matrix products have instructions of their own; emulated ones are slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("arm_bf16") or known.get("bf16"))


def _name_of(device: str) -> str:
    known = torch.cpu.get_capabilities()
    return torch.cuda.get_device_name() if device == "cuda" else str(known.get("cpu_name", "of unknown make"))


def check_splits(training: TrainingConfig, splits: Sequence[str]) -> None:
    """Raise ConfigError for a setting that needs a split that the data has not."""
    if "train" not in splits:
        raise ConfigError(f"the data has no train examples, only {', '.join(splits) or 'none at all'}")
    for name in ("refit", "metric", "patience", "evaluate_every") if "validation" not in splits else ():
        if getattr(training, name) != TrainingConfig.model_fields[name].default:
            raise ConfigError(f"training.{name} has no effect without a validation split (data.split.validation)")
