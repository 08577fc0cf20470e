"""Who meets whom in the rows of trained tables: collisions, how full stores are, their hottest rows, norms of vectors.

What is counted is what is served, id by id of the encoder's vocabularies; nothing is sampled, and no method is known by
name: `EmbeddingTable.rows` says which rows an id reads. Of a hashed feature the ids are not known; for those there are
expected values instead, of a hash that spreads them evenly.

An *access* is one (store, place) of the rows that an id reads, for instance one chunk. Two ids of one reader that read
the same row in every access are one id to the model, unless the table's `combine` tells ids apart by themselves; two
that meet in some accesses are not. What different readers share, a model can tell apart (see `unified.py`).

Memory: 8 bytes for each id and access of a specification, 8 for each row of a store.
Shapes: N ids of a reader, A its accesses of a store, M rows of a store, D width of a vector.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from features.encoder import Encoder
from features.spec import FeatureSpec
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.table import EmbeddingTable

DECILES = 10
HOTTEST_ROWS, IDS_OF_A_ROW = 5, 3
_IDS_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Ids that meet another one somewhere: how many, and their share of the reader's occurrences in train."""

    ids: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Collisions:
    """Of one reader whose ids are known. within: two of its ids read the same row in every access (`all_rows`), or in
    some access (`a_row`). other_readers: ids that read, in any access, a row that an id of another reader reads too.
    """

    all_rows: Meeting
    a_row: Meeting
    other_readers: Meeting


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Of one hashed reader, for ids spread evenly over its stores.

    all_rows, a_row: probability that two given ids meet so. first_at: number of ids from which on one pair that meets
    in all rows is to be expected: n (n - 1) / 2 pairs x all_rows = 1.
    """

    all_rows: float
    a_row: float
    first_at: float


@dataclass(frozen=True, kw_only=True)
class ReaderReport:
    """What one reader (a vocabulary, or a hashed feature) meets.

    accesses: rows that an id reads. collisions: None for hashed ids, which have `expected`, and where no rows are read.
    norms: mean length of the vectors of each tenth of the ids, rarest in train first; () for hashed ids.
    """

    specification: str
    reader: str
    features: tuple[str, ...]
    num_embeddings: int | None
    embedding_dim: int
    accesses: int
    collisions: Collisions | None
    expected: Expected | None
    norms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class HotRow:
    """A row and how often train looked it up; by reader, the ids that read it most, as raw ids with their counts."""

    row: int
    lookups: int
    readers: Mapping[str, tuple[tuple[str, int], ...]]


@dataclass(frozen=True, kw_only=True)
class StoreReport:
    """How full a store is, by the ids that are known.

    accesses_per_row: number of accesses -> rows that have so many ("0", "1", "2", "3-4", "5-8", ...).
    """

    store: str
    num_embeddings: int
    embedding_dim: int
    precision: str
    served_bytes: int
    occupied: float
    accesses_per_row: Mapping[str, int]
    hottest: tuple[HotRow, ...]


@dataclass(frozen=True, kw_only=True)
class TablesReport:
    """All readers and all served stores of a collection. parameters: served bytes of the tables beside their stores."""

    readers: tuple[ReaderReport, ...]
    stores: tuple[StoreReport, ...]
    parameter_bytes: int


def inspect_tables(frozen: EmbeddingCollection, encoder: Encoder) -> TablesReport:
    """The report of a frozen collection over its encoder; where occurrences were not counted, each id counts once."""
    readers = [_Reader.of(key, features, frozen, encoder) for key, features in _features_of(frozen).items()]
    hits = _Hits(readers, frozen)
    served = frozen.backend.weights()
    return TablesReport(
        readers=tuple(_reader_report(reader, hits, frozen) for reader in readers),
        stores=tuple(hits.report(name, served[name].nbytes) for name in sorted(frozen.stores)),
        parameter_bytes=sum(tensor.nbytes for tensor in frozen.tables.state_dict().values()),
    )


def _features_of(collection: EmbeddingCollection) -> dict[str, list[FeatureSpec]]:
    """Key of a table -> the features that read it."""
    found: dict[str, list[FeatureSpec]] = {}
    for spec in collection.schema.inputs:
        if (key := collection.table_key(spec.name)) is not None:
            found.setdefault(key, []).append(spec)
    return found


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """A reader with the rows [N, A] that its ids read of each store; none for hashed ids."""

    key: str
    features: tuple[str, ...]
    vocabulary: str
    table: EmbeddingTable
    num_embeddings: int | None
    counts: Tensor
    rows: Mapping[str, Tensor]
    encoder: Encoder

    @staticmethod
    def of(key: str, specs: Sequence[FeatureSpec], frozen: EmbeddingCollection, encoder: Encoder) -> "_Reader":
        first, table = specs[0], frozen.table(specs[0].name)
        known = encoder.num_embeddings(first.name)
        number = known or 0
        counts = encoder.counts(first.name)
        return _Reader(
            key=key,
            features=tuple(spec.name for spec in specs),
            vocabulary=first.vocabulary,
            table=table,
            num_embeddings=known,
            counts=torch.ones(number, dtype=torch.int64) if counts is None else counts,
            rows=_rows(table, number),
            encoder=encoder,
        )

    @property
    def name(self) -> str:
        return self.key.partition("/")[2]

    @property
    def columns(self) -> Iterator[tuple[str, Tensor]]:
        """Every access: its store and the row of each id, [N]."""
        for store, rows in self.rows.items():
            yield from ((store, column) for column in rows.unbind(1))

    def meeting(self, met: Tensor) -> Meeting:
        """Of a mask over the ids, [N]."""
        total = int(self.counts.sum())
        return Meeting(ids=int(met.sum()), share=int(self.counts[met].sum()) / total if total else 0.0)

    def raw(self, row: int) -> str:
        """The raw id of an id, as text; an id without a vocabulary (a bucket) is its number."""
        if self.vocabulary not in self.encoder.vocabularies:
            return str(row)
        vocabulary = self.encoder.vocabularies[self.vocabulary]
        unseen = row < vocabulary.offset
        return "(unseen)" if unseen else str(vocabulary.raw([row])[0])


def _rows(table: EmbeddingTable, number: int) -> dict[str, Tensor]:
    parts = [table.rows(ids) for ids in torch.arange(number).split(_IDS_AT_ONCE)] if number else []
    return {store: torch.cat([part[store] for part in parts]) for store in (parts[0] if parts else {})}


def _reader_report(reader: _Reader, hits: "_Hits", frozen: EmbeddingCollection) -> ReaderReport:
    places = reader.rows or reader.table.rows(torch.zeros(1, dtype=torch.int64))
    accesses = sum(rows.shape[1] for rows in places.values())
    hashed = reader.num_embeddings is None
    return ReaderReport(
        specification=reader.key.partition("/")[0],
        reader=reader.name,
        features=reader.features,
        num_embeddings=reader.num_embeddings,
        embedding_dim=reader.table.embedding_dim,
        accesses=accesses,
        collisions=_collisions(reader, hits) if accesses and not hashed else None,
        expected=_expected(reader.table, places) if accesses and hashed else None,
        norms=() if hashed else _norms(reader, frozen),
    )


def _collisions(reader: _Reader, hits: "_Hits") -> Collisions:
    number = len(reader.counts)
    group = torch.zeros(number, dtype=torch.int64)
    a_row, other = torch.zeros(number, dtype=torch.bool), torch.zeros(number, dtype=torch.bool)
    for store, column in reader.columns:
        size = store_rows(reader.table, store)
        group = (group * size + column).unique(return_inverse=True)[1]
        a_row |= column.bincount(minlength=size)[column] > 1
        other |= hits.readers[store][column] > 1
    all_rows = group.bincount()[group] > 1
    return Collisions(
        all_rows=reader.meeting(all_rows), a_row=reader.meeting(a_row), other_readers=reader.meeting(other)
    )


def _expected(table: EmbeddingTable, places: Mapping[str, Tensor]) -> Expected:
    """Of accesses that each hit any row of their store alike: products of 1 / M and of 1 - 1 / M."""
    sizes = [store_rows(table, store) for store, rows in places.items() for _ in range(rows.shape[1])]
    log_all = -sum(math.log(size) for size in sizes)
    none = math.prod(1 - 1 / size for size in sizes)
    return Expected(all_rows=math.exp(log_all), a_row=1 - none, first_at=0.5 + math.sqrt(0.25 + 2 * math.exp(-log_all)))


def store_rows(table: EmbeddingTable, store: str) -> int:
    """M of one of a table's stores."""
    return next(found.num_embeddings for found in table.stores if found.name == store)


@torch.no_grad()
def _norms(reader: _Reader, frozen: EmbeddingCollection) -> tuple[float, ...]:
    parts = torch.arange(len(reader.counts)).split(_IDS_AT_ONCE)
    found = torch.cat([frozen.lookup({"": (reader.features[0], ids)})[""].norm(dim=1) for ids in parts])
    rarest_first = reader.counts.argsort(stable=True)
    return tuple(float(part.mean()) for part in found[rarest_first].tensor_split(DECILES) if len(part))


class _Hits:
    """What hits the rows of each store: readers, accesses and lookups in train, all [M] int64."""

    def __init__(self, readers: Sequence[_Reader], frozen: EmbeddingCollection) -> None:
        self.frozen = frozen
        self.readers = self._zeros()
        self.accesses = self._zeros()
        self.lookups = self._zeros()
        self._known = readers
        for reader in readers:
            for store, rows in reader.rows.items():
                self.readers[store][rows.unique()] += 1
                self.accesses[store] += rows.flatten().bincount(minlength=len(self.accesses[store]))
                weights = reader.counts[:, None].expand_as(rows).flatten()
                self.lookups[store].index_add_(0, rows.flatten(), weights)

    def _zeros(self) -> dict[str, Tensor]:
        sizes = {store.name: store.num_embeddings for store in self.frozen.stores.values()}
        return {name: torch.zeros(size, dtype=torch.int64) for name, size in sizes.items()}

    def report(self, name: str, served_bytes: int) -> StoreReport:
        """Of one store."""
        store, accesses = self.frozen.stores[name], self.accesses[name]
        hottest = self.lookups[name].sort(descending=True, stable=True).indices[:HOTTEST_ROWS].tolist()
        return StoreReport(
            store=name,
            num_embeddings=store.num_embeddings,
            embedding_dim=store.embedding_dim,
            precision=store.precision,
            served_bytes=served_bytes,
            occupied=int((accesses > 0).sum()) / len(accesses),
            accesses_per_row=_histogram(accesses),
            hottest=tuple(self._hot(name, row) for row in hottest if self.lookups[name][row]),
        )

    def _hot(self, store: str, row: int) -> HotRow:
        found: dict[str, tuple[tuple[str, int], ...]] = {}
        for reader in self._known:
            ids = (reader.rows[store] == row).any(1).nonzero().flatten() if store in reader.rows else torch.tensor([])
            if len(ids):
                first = ids[reader.counts[ids].argsort(descending=True, stable=True)][:IDS_OF_A_ROW].tolist()
                found[reader.name] = tuple((reader.raw(one), int(reader.counts[one])) for one in first)
        return HotRow(row=row, lookups=int(self.lookups[store][row]), readers=found)


def _histogram(accesses: Tensor) -> dict[str, int]:
    """Numbers of accesses in classes that double: 0, 1, 2, 3-4, 5-8, ..."""
    found = {}
    low, high, most = 0, 0, int(accesses.max())
    while low <= most:
        name = str(low) if low == high else f"{low}-{high}"
        found[name] = int(((accesses >= low) & (accesses <= high)).sum())
        low, high = high + 1, max(1, 2 * high)
    return found
