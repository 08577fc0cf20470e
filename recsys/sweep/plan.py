"""Which cells a sweep has, and the run config of each: the sweep's config with other tables and another seed.

Collisionless rows (method "dense") always stand beside, at every precision: rounding is the first thing to try.
A method without a `budget` setting, which reaches what it reaches, is one cell for all budgets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from features.encoder import Encoder
from features.spec import FeatureSchema
from recsys.compression import COMPRESSIONS, make_specs, table_class
from recsys.config import ConfigError, RunConfig, TableConfig
from recsys.embedding.budget import parse_budget
from recsys.embedding.dense import DenseTable
from recsys.embedding.layout import Layout
from recsys.embedding.precision import PRECISIONS, Precision
from recsys.embedding.table import TableSpec
from recsys.embedding.unified import UnifiedTable

DENSE = "dense"
ALL = "all"
IN_CHUNKS = "/"
VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {"unified_twin": ("unified", {"multiplexed": False})}
CHUNKS = (3, 2, 1)  # where the config has none: the most that divide the width
OWN_SIZES = ("num_embeddings",)  # settings that a budget takes the place of


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run. budget: "" where the method has no such setting."""

    method: str
    budget: str
    precision: Precision
    seed: int

    @property
    def trained_as(self) -> "Cell | None":
        """The cell whose training is this one's too: rows for every id train alike at whatever precision they serve."""
        rounded = self.method == DENSE and self.precision != PRECISIONS[0]
        return replace(self, precision=PRECISIONS[0]) if rounded else None

    @property
    def name(self) -> str:
        """A name for files: "hash-10pct-float32-seed1"."""
        budget = self.budget.replace("%", "pct").replace(" ", "")
        method = self.method.replace(":", ".").replace(IN_CHUNKS, "_in")
        return "-".join(part for part in (method, budget, self.precision, f"seed{self.seed}") if part)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is swept: methods (without the collisionless rows), budgets, precisions of the methods, and seeds."""

    methods: tuple[str, ...]
    budgets: tuple[str, ...]
    precisions: tuple[Precision, ...]
    seeds: tuple[int, ...]

    @staticmethod
    def parse(*, methods: str, budgets: str, precisions: str, seeds: int, first_seed: int) -> "Grid":
        """From lists with commas; "all" is every method of ours. Raises ConfigError naming what is none."""
        if seeds < 1:
            raise ConfigError(f"--seeds is {seeds}, at least 1 is needed")
        return Grid(
            methods=_methods(_names(methods, "--methods")),
            budgets=tuple(_budget(text) for text in _names(budgets, "--budgets")),
            precisions=tuple(_precision(text) for text in _names(precisions, "--precisions")),
            seeds=tuple(range(first_seed, first_seed + seeds)),
        )

    def cells(self) -> list[Cell]:
        """All cells, seed by seed, so that a first full picture is there early."""
        return [cell for seed in self.seeds for cell in (*self._dense(seed), *self._compressed(seed))]

    def _dense(self, seed: int) -> list[Cell]:
        return [Cell(method=DENSE, budget="", precision=precision, seed=seed) for precision in PRECISIONS]

    def _compressed(self, seed: int) -> list[Cell]:
        found = [
            Cell(method=method, budget=budget if has_budget(method) else "", precision=precision, seed=seed)
            for precision in self.precisions
            for budget in self.budgets
            for method in self.methods
        ]
        return list(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The vectors of a table: chunks of chunk_dim floats, for methods that know no chunks their product."""

    chunk_dim: int
    chunks: int

    @property
    def embedding_dim(self) -> int:
        """Floats of a vector."""
        return self.chunk_dim * self.chunks

    def in_chunks(self, chunks: int) -> "Shape":
        """The same width in so many chunks."""
        if self.embedding_dim % chunks:
            raise ConfigError(f"vectors of {self.embedding_dim} floats cannot be in {chunks} equal chunks")
        return Shape(chunk_dim=self.embedding_dim // chunks, chunks=chunks)


def split_method(method: str) -> tuple[str, int | None]:
    """Of "unified/2", a method whose vectors are to be in two chunks: its name and the 2; of others None."""
    name, sign, count = method.partition(IN_CHUNKS)
    if sign and not (count.isdecimal() and int(count)):
        raise ConfigError(f"method {method!r}: after {IN_CHUNKS!r} stands a number of chunks, as in 'unified/2'")
    return name, int(count) if sign else None


def has_budget(method: str) -> bool:
    """Whether a method's size can be chosen."""
    return "budget" in method_class(method).model_fields


def method_class(method: str) -> type[TableSpec]:
    """The specification of a method, of a variant of one, or of the user's "package.module:Name"."""
    name, _ = split_method(method)
    return table_class(VARIANTS[name][0] if name in VARIANTS else name)


def shapes(config: RunConfig, schema: FeatureSchema) -> dict[str, Shape]:
    """The shape of every `[tables.NAME]`, which all methods keep. Raises ConfigError where there is none to keep."""
    if not config.tables.specs:
        raise ConfigError(f"{config.name} has no [tables.NAME] section: there is nothing to compress")
    return {name: _shape(name, spec, schema) for name, spec in make_specs(config.tables.specs).items()}


def cell_config(cell: Cell, config: RunConfig, schema: FeatureSchema) -> RunConfig:
    """The config of a cell's run."""
    sections = {
        name: _section(cell, config.tables.specs[name], shape) for name, shape in shapes(config, schema).items()
    }
    tables = config.tables.model_copy(update={"specs": sections})
    return config.model_copy(update={"name": cell.name, "seed": cell.seed, "tables": tables})


def dense_specs(config: RunConfig, schema: FeatureSchema) -> dict[str, DenseTable]:
    """Collisionless float32 tables of the same widths: what per cent are of, and what lookups are measured against."""
    return {name: DenseTable(embedding_dim=shape.embedding_dim) for name, shape in shapes(config, schema).items()}


def dense_bytes(config: RunConfig, encoder: Encoder) -> int:
    """Bytes of the collisionless float32 tables."""
    layout = Layout.build(encoder, dense_specs(config, encoder.schema), config.seed)
    return sum(store.num_bytes for store in layout.stores)


def limit_of(budget: str, dense: int) -> int:
    """The bytes that a budget allows, where collisionless float32 tables take `dense`."""
    amount, is_share = parse_budget(budget)
    return int(amount * dense) if is_share else int(amount)


def check_budgets(grid: Grid, config: RunConfig) -> None:
    """Raise ConfigError for budgets in bytes where several tables would each be given all of them."""
    for budget in grid.budgets:
        if len(config.tables.specs) > 1 and not parse_budget(budget)[1]:
            names = ", ".join(sorted(config.tables.specs))
            raise ConfigError(f"budget {budget!r} is for one table, {config.name} has {names}; give it in %")


def _shape(name: str, spec: TableSpec, schema: FeatureSchema) -> Shape:
    if isinstance(spec, UnifiedTable):
        counts = {feature.chunks for feature in schema.inputs if feature.is_id and feature.table == name}
        counts = {spec.chunks} if spec.chunks else counts
        if len(counts) != 1:
            raise ConfigError(
                f"tables.{name}: its features have {sorted(counts)} chunks; a sweep compares vectors of one width, "
                f"set tables.{name}.chunks"
            )
        return Shape(chunk_dim=spec.chunk_dim, chunks=counts.pop())
    width = getattr(spec, "embedding_dim", None)
    if not isinstance(width, int):
        raise ConfigError(f"tables.{name}: a sweep needs a table with embedding_dim or chunk_dim, to know its width")
    chunks = next(count for count in CHUNKS if width % count == 0)
    return Shape(chunk_dim=width // chunks, chunks=chunks)


def _section(cell: Cell, given: TableConfig, shape: Shape) -> TableConfig:
    """A method's settings: those it has of ours, and what the config already says of the same method."""
    name, chunks = split_method(cell.method)
    method, special = VARIANTS.get(name, (name, {}))
    shape = shape if chunks is None else shape.in_chunks(chunks)
    ours: dict[str, Any] = {"embedding_dim": shape.embedding_dim, "chunk_dim": shape.chunk_dim, "chunks": shape.chunks}
    ours |= {} if chunks is None else {"num_chunks": chunks}
    ours |= {"init": given.options["init"]} if "init" in given.options else {}
    ours |= {"budget": cell.budget} if cell.budget else {}
    kept = {key: value for key, value in given.options.items() if given.method == method and key not in OWN_SIZES}
    fields = method_class(method).model_fields
    options = kept | {key: value for key, value in ours.items() if key in fields}
    if not cell.budget and has_budget(method):
        raise ConfigError(f"method {cell.method!r} needs a budget")
    return TableConfig(method=method, options=options | dict(special) | {"precision": cell.precision})


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"{option} {text!r}: names with commas between them are needed")
    return list(dict.fromkeys(names))


def _methods(names: Sequence[str]) -> tuple[str, ...]:
    ours = [name for name in (*COMPRESSIONS, *VARIANTS) if name != DENSE]
    for name, chunks in map(split_method, names):
        if name not in (ALL, DENSE, *ours) and ":" not in name:
            near = get_close_matches(name, [ALL, *ours], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"there is no method {name!r}{hint}; there are {', '.join(ours)}, or all")
        if ":" in name:
            table_class(name)
        if chunks is not None and not {"chunks", "num_chunks"} & method_class(name).model_fields.keys():
            raise ConfigError(f"method {name!r} has no chunks: {IN_CHUNKS!r} is for unified, unified_twin and robe")
    chosen = [method for name in names for method in (ours if name == ALL else [name])]
    return tuple(dict.fromkeys(method for method in chosen if method != DENSE))


def _budget(text: str) -> str:
    try:
        parse_budget(text)
    except ValueError as error:
        raise ConfigError(f"--budgets: {error}") from None
    return text


def _precision(text: str) -> Precision:
    for precision in PRECISIONS:
        if text == precision:
            return precision
    raise ConfigError(f"--precisions: {text!r} is none of {', '.join(PRECISIONS)}")
