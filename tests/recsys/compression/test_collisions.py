"""The report counts what a loop over ids and rows counts, for every method."""

from itertools import combinations

import pytest
import torch

from features.encoder import Encoder
from features.spec import FeatureSchema, FeatureSpec
from recsys.compression.collisions import ReaderReport, inspect_tables
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.table import TableSpec
from recsys.embedding.unified import UnifiedTable
from recsys.laws.small_schema import build, encoder
from recsys.laws.table import CASES

Access = tuple[str, int, int]  # store, place, row


def accesses_of(frozen: EmbeddingCollection, feature: str, number: int) -> list[list[Access]]:
    """The naive form: the accesses of every id, asked one by one."""
    table, found = frozen.table(feature), []
    for one in range(number):
        rows = table.rows(torch.tensor([one]))
        places = [(store, place) for store, at in rows.items() for place in range(at.shape[1])]
        found.append([(store, place, int(rows[store][0, place])) for store, place in places])
    return found


def meets(ids: list[list[Access]], alike: bool) -> set[int]:
    """Ids that share all accesses with another id, or (alike False) at least one at the same place."""
    found: set[int] = set()
    for one, other in combinations(range(len(ids)), 2):
        shared = [a == b for a, b in zip(ids[one], ids[other], strict=True)]
        if all(shared) if alike else any(shared):
            found |= {one, other}
    return found


@pytest.mark.parametrize("name", sorted(CASES))
def test_collisions_are_those_of_a_loop(name: str) -> None:
    frozen = build(CASES[name]).freeze()
    report = inspect_tables(frozen, encoder())
    readers = {reader.reader: reader for reader in report.readers}
    all_accesses = {name: accesses_of(frozen, name, int(readers[name].num_embeddings or 0)) for name in readers}
    for reader, ids in all_accesses.items():
        found = readers[reader].collisions
        others = {(a[0], a[2]) for other, rest in all_accesses.items() if other != reader for one in rest for a in one}
        assert readers[reader].accesses == len(ids[0])
        if found is None:
            assert not ids[0]
            continue
        assert found.all_rows.ids == len(meets(ids, alike=True))
        assert found.a_row.ids == len(meets(ids, alike=False))
        assert found.other_readers.ids == sum(any((s, row) in others for s, _, row in one) for one in ids)


@pytest.mark.parametrize("name", ["dense", "unified, a share", "hash", "compo"])
def test_stores_are_as_full_as_a_loop_finds_them(name: str) -> None:
    frozen = build(CASES[name]).freeze()
    report = inspect_tables(frozen, encoder())
    known = encoder()
    lookups: dict[tuple[str, int], int] = {}
    hits: dict[tuple[str, int], int] = {}
    for reader in report.readers:
        counts = known.counts(reader.features[0])
        assert counts is not None
        for one, accesses in enumerate(accesses_of(frozen, reader.features[0], len(counts))):
            for store, _, row in accesses:
                hits[store, row] = hits.get((store, row), 0) + 1
                lookups[store, row] = lookups.get((store, row), 0) + int(counts[one])
    for found in report.stores:
        rows = [hits.get((found.store, row), 0) for row in range(found.num_embeddings)]
        assert found.occupied == pytest.approx(sum(number > 0 for number in rows) / len(rows))
        assert sum(found.accesses_per_row.values()) == len(rows)
        assert found.accesses_per_row["0"] == rows.count(0)
        hottest = sorted((n for (name, _), n in lookups.items() if name == found.store), reverse=True)
        assert [hot.lookups for hot in found.hottest] == [n for n in hottest[:5] if n]


def report_of(spec: TableSpec) -> dict[str, ReaderReport]:
    return {reader.reader: reader for reader in inspect_tables(build(spec).freeze(), encoder()).readers}


def test_collisions_of_a_row_per_id_are_none() -> None:
    for reader in report_of(DenseTable(embedding_dim=4)).values():
        found = reader.collisions
        assert found is not None
        assert (found.all_rows.ids, found.a_row.ids, found.other_readers.ids) == (0, 0, 0)


def test_collisions_in_one_row_are_complete() -> None:
    user = report_of(UnifiedTable(num_embeddings=1, chunk_dim=4))["user"]
    assert user.collisions is not None
    assert (user.collisions.all_rows.ids, user.collisions.all_rows.share) == (user.num_embeddings, 1.0)


def test_norms_are_those_of_the_vectors_by_frequency() -> None:
    collection = build(DenseTable(embedding_dim=4)).freeze()
    user = next(reader for reader in inspect_tables(collection, encoder()).readers if reader.reader == "user")
    counts = encoder().counts("user")
    assert counts is not None
    ids = counts.argsort(stable=True)
    lengths = collection.lookup({"": ("user", ids)})[""].norm(dim=1)
    assert user.norms == pytest.approx([float(part.mean()) for part in lengths.tensor_split(10)])


def test_hottest_rows_name_their_ids() -> None:
    stores = {s.store: s for s in inspect_tables(build(DenseTable(embedding_dim=4)).freeze(), encoder()).stores}
    hot = stores["ids.user"].hottest[0]
    assert hot.readers == {"user": (("0", hot.lookups),)}


def test_hashed_ids_are_expected_by_formula() -> None:
    schema = FeatureSchema(name="hashed", features=(FeatureSpec(name="word", table="ids", hashed=True, chunks=2),))
    collection = EmbeddingCollection(schema, {"ids": UnifiedTable(num_embeddings=40, chunk_dim=4)}, backend="plain")
    (reader,) = inspect_tables(collection.freeze(), Encoder(schema, {})).readers
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(-(2**62), 2**62, (2, 200_000), generator=generator)
    rows = [collection.table("word").rows(ids)["ids"] for ids in pairs]
    met = (rows[0] == rows[1]).double()
    assert reader.expected is not None
    assert reader.expected.a_row == pytest.approx(float(met.amax(1).mean()), rel=0.05)
    assert reader.expected.all_rows == pytest.approx(1 / 1600)
    assert reader.expected.first_at * (reader.expected.first_at - 1) / 2 / 1600 == pytest.approx(1.0)
    assert (reader.collisions, reader.norms, reader.num_embeddings) == (None, (), None)


def test_served_bytes_are_those_of_the_tensors() -> None:
    frozen = build(CASES["unified, int4"]).freeze()
    report = inspect_tables(frozen, encoder())
    assert sum(store.served_bytes for store in report.stores) + report.parameter_bytes == frozen.num_bytes()
