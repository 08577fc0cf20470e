"""The config of a run: a TOML file read once, at the edge, into frozen values.

Not here: what a model's or a table's own settings mean. Their sections are kept as plain values and validated by the
class that they name (`parse_options`), so that a class of the user's is configured like one of ours.
"""

import importlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from features.data_config import DataConfig
from features.values import Value, describe

Precision = Literal["float32", "bf16"]
Options = TypeVar("Options", bound=BaseModel)
NAME = r"^[^./\\][^/\\]*$"  # one folder, not hidden


class ConfigError(ValueError):
    """A config that cannot be used, in one line that names the file, the key and what is accepted."""


class ModelConfig(Value):
    """`[model]`: the name of one of our models or "package.module:Name", and that class's own settings."""

    name: str
    options: Mapping[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        return _gather(values, known=("name", "options"), into="options")


class TableConfig(Value):
    """`[tables.NAME]`: a method ("dense", "unified" or "package.module:Name") and that method's own settings."""

    method: str
    options: Mapping[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        return _gather(values, known=("method", "options"), into="options")


class TablesConfig(Value):
    """`[tables]`: the backend of all tables, and one section for each table specification that the schema names.

    sharding, for the sharded backend alone: "auto" (the default: large stores row-wise, the others whole on one rank),
    "row_wise", "table_wise" or "column_wise" (sgd and adagrad only), or one of them for each store by name; a store
    that is not named is "auto". `recsys plan` shows what that comes to; it also plans "table_row_wise", which does not
    train.
    """

    backend: Literal["plain", "fused", "sharded"] = "fused"
    sharding: str | Mapping[str, str] | None = None
    specs: Mapping[str, TableConfig] = {}

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        sections = {key: value for key, value in values.items() if isinstance(value, dict) and key not in _TABLES_KEYS}
        rest = {key: value for key, value in values.items() if key not in sections}
        return rest | {"specs": dict(rest.get("specs", {})) | sections}

    @model_validator(mode="after")
    def _sharding_has_effect(self) -> "TablesConfig":
        if self.sharding is not None and self.backend != "sharded":
            raise ValueError(f"sharding has no effect on backend {self.backend!r}; remove it or use backend 'sharded'")
        return self


_TABLES_KEYS = ("specs", "sharding")


class ScheduleConfig(Value):
    """`[optimizer.dense.schedule]`, `[optimizer.tables.schedule]`: the learning rate by step, as a factor of `lr`.

    kind: after the warm-up, which rises from 0 in a line: "constant"; "cosine" or "linear" down to `floor`, reached
    after `decay_epochs` (default: training.max_epochs; with early stopping it may not be reached); "step", times
    `factor` every `every_epochs`. recsys/training/schedule.py has the formulas.
    """

    kind: Literal["constant", "cosine", "linear", "step"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    decay_epochs: float | None = Field(default=None, gt=0)
    floor: float = Field(default=0.0, ge=0, le=1)
    every_epochs: float = Field(default=1.0, gt=0)
    factor: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _settings_have_effect(self) -> "ScheduleConfig":
        needed = {"decay_epochs": ("cosine", "linear"), "floor": ("cosine", "linear"), "every_epochs": ("step",)}
        for key, kinds in (needed | {"factor": ("step",)}).items():
            if self.kind not in kinds and getattr(self, key) != ScheduleConfig.model_fields[key].default:
                raise ValueError(f"{key} has no effect on kind {self.kind!r}; it is for {' and '.join(kinds)}")
        return self


class DenseOptimizerConfig(Value):
    """`[optimizer.dense]`: the optimizer of everything that is not a table."""

    name: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: ScheduleConfig = ScheduleConfig()


class TablesOptimizerConfig(Value):
    """`[optimizer.tables]`: the optimizer of the tables' rows; adam is for the plain backend alone."""

    name: Literal["sgd", "adagrad", "rowwise_adagrad", "adam"] = "rowwise_adagrad"
    lr: float = Field(default=0.1, gt=0)
    eps: float | None = Field(default=None, gt=0)
    schedule: ScheduleConfig = ScheduleConfig()


class OptimizerConfig(Value):
    """`[optimizer]`: separate settings for the dense part and for the tables."""

    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    tables: TablesOptimizerConfig = TablesOptimizerConfig()


class TrainingConfig(Value):
    """`[training]`.

    batch_size: rows of a step over all ranks. metric: what early stopping watches on validation ("" = recall@20 for
    retrieval, auc for ranking). patience: evaluations without improvement before stopping (0 = never). evaluate_every:
    epochs between evaluations. clip_norm: global norm of the dense gradients. max_row_norm: norm of each looked-up
    vector's gradient. mba_l2: lambda of DIN's "mini-batch aware regularisation", an L2 penalty of lambda / (occurrences
    in train) for each id that a step reads. refit: after choosing the number of epochs on validation, train once more
    on train + validation (retrieval); otherwise the best-validation weights are kept. threads: torch threads (0 = all
    cores). device: where model and batches are; on "cuda", tables larger than the GPU stay in the host's memory behind
    a cache (fused).
    precision: of the matrix products of the forward and backward pass; "bf16" needs hardware that has it, and changes
    neither what is stored nor how a model is evaluated. Weights of classes are the model's own (`positive_weight`).
    """

    batch_size: int = Field(default=2048, ge=1)
    max_epochs: int = Field(default=20, ge=1)
    metric: str = ""
    patience: int = Field(default=3, ge=0)
    evaluate_every: int = Field(default=1, ge=1)
    clip_norm: float | None = Field(default=None, gt=0)
    max_row_norm: float | None = Field(default=None, gt=0)
    mba_l2: float | None = Field(default=None, gt=0)
    checkpoint_every_s: float = Field(default=60.0, ge=0)
    refit: bool = False
    threads: int = Field(default=0, ge=0)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = "float32"


class EvaluationConfig(Value):
    """`[evaluation]`: the list lengths of ranking metrics, and the rows scored at a time."""

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(20,), min_length=1)
    batch_size: int = Field(default=4096, ge=1)


class RunConfig(Value):
    """Everything that decides a run. `name` is the config file's stem."""

    name: str = Field(pattern=NAME)
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    model: ModelConfig
    tables: TablesConfig = TablesConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "RunConfig":
        """The inverse of `to_json`."""
        return RunConfig.model_validate_json(text)

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of everything but the name."""
        values = self.model_dump(mode="json", exclude={"name"})
        return sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML config, its `base` if it names one, and apply `section.key=value` overrides.

    The base is another TOML file, relative to this one, that may not name a base itself; this file's values win, table
    by table. Raises ConfigError with the file, the key and the nearest valid name.
    """
    values = merged_values(path, overrides)
    values.setdefault("name", Path(path).stem)
    return parse_options(RunConfig, values, where=str(path))


def merged_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What `load_config` validates: the plain values of the file, its base and the overrides."""
    path = Path(path)
    values = _read_toml(path)
    if "base" in values:
        base_path = path.parent / str(values.pop("base"))
        base = _read_toml(base_path)
        if "base" in base:
            raise ConfigError(f"{base_path}: a base file may not name a base itself (one level deep)")
        values = _merged(base, values)
    for override in overrides:
        values = _merged(values, parse_override(override))
    return values


def parse_options(model: type[Options], values: Mapping[str, Any], where: str) -> Options:
    """Validate plain values as `model`; ConfigError names the place, the key and the nearest valid one."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe(error, model)}") from None


def import_name(name: str, allowed: Sequence[str] | None = None) -> Any:
    """The object that "package.module:Name" names, for models, tables and sources of the user's.

    allowed: the top-level packages that may be imported (None = any; the server passes what `--allow` named).
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ConfigError(f"{name!r} is not a name of ours, and not of the form 'package.module:Name'")
    package = module_name.partition(".")[0]
    if allowed is not None and package not in allowed:
        raise ConfigError(
            f"{name!r} is code of package {package!r}, which is not allowed here (allowed: {list(allowed)})"
        )
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        hint = "; is it installed, or on PYTHONPATH?" if isinstance(error, ModuleNotFoundError) else ""
        raise ConfigError(f"{name!r} cannot be imported: {error}{hint}") from None
    if not hasattr(module, attribute):
        raise ConfigError(f"module {module_name!r} has no {attribute!r}")
    return getattr(module, attribute)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both_tables else value
    return merged


def parse_override(override: str) -> dict[str, Any]:
    """`training.batch_size=512` as nested tables; the value is TOML, or text where it is not."""
    place, sign, text = override.partition("=")
    keys = place.strip().split(".")
    if not sign or not all(keys):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


def _gather(values: Any, known: Sequence[str], into: str) -> Any:
    """Move the keys that are not `known` under the key `into`."""
    if not isinstance(values, dict):
        return values
    extra = {key: value for key, value in values.items() if key not in known}
    kept = {key: value for key, value in values.items() if key in known}
    return kept | {into: dict(kept.get(into, {})) | extra} if extra else kept
