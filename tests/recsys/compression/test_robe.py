"""ROBE: signed blocks out of one store; unbiased as the unaligned sketch of the paper is, in the same memory."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from features.hashes import hash64, mix64
from recsys.compression.robe import HASH_BYTES, RobeTable, SignedChunks
from recsys.embedding.table import EmbeddingTable, Reader
from tests.recsys.compression.families import assert_bytes_within_budget, assert_fused_equals_plain

Sketch = tuple[Tensor, Tensor]
IDS, CHUNKS, WIDTH, ROWS = 12, 2, 4, 5


def reader(name: str, num_embeddings: int | None = None) -> Reader:
    return Reader(name=name, salt=name, num_embeddings=num_embeddings)


def tables(spec: RobeTable, *readers: Reader, seed: int = 0) -> dict[str, EmbeddingTable]:
    return spec.build("ids", readers, seed)


def signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def test_vector_is_the_stated_formula() -> None:
    spec = RobeTable(embedding_dim=6, budget="1kB", num_chunks=3)
    table = tables(spec, reader("item"), seed=7)["item"]
    (store,) = table.stores
    weight = torch.randn(store.num_embeddings, 2)
    raw_ids = [0, 1, -5, 2**62]
    for raw, vector in zip(raw_ids, table(torch.tensor(raw_ids), {"ids": weight}), strict=True):
        for chunk, found in enumerate(vector.split(2)):
            salt = hash64(f"item#{chunk}", salt="salt#7")
            row = mix64(signed(raw + salt), salt=0) % store.num_embeddings
            sign = -1 if signed(raw * hash64(f"item#{chunk}", salt="sign#7") + salt) < 0 else 1
            assert torch.equal(found, sign * weight[row])


def test_features_differ_in_rows_and_signs_and_others_change_nothing() -> None:
    spec, ids = RobeTable(embedding_dim=4, budget="4kB"), torch.arange(20_000)
    few, more = tables(spec, reader("a")), tables(spec, reader("b"), reader("a"))
    one, other = (more[name] for name in "ab")
    assert isinstance(one, SignedChunks)
    assert isinstance(other, SignedChunks)
    kept = few["a"]
    assert isinstance(kept, SignedChunks)
    assert torch.equal(kept.signs(ids), one.signs(ids))
    same = [one.signs(ids) == other.signs(ids), one.signs(ids)[:, 0] == one.signs(ids)[:, 1]]
    assert all(abs(float(part.float().mean()) - 0.5) < 0.02 for part in same)


# --- the sketch, aligned and not ---


def aligned(seed: int) -> Sketch:
    """Our rows and signs as (places [ids, D] in a flat array of ROWS x WIDTH floats, signs [ids, D])."""
    budget = 4 * ROWS * WIDTH + HASH_BYTES * CHUNKS
    spec = RobeTable(embedding_dim=CHUNKS * WIDTH, budget=f"{budget}B", num_chunks=CHUNKS)
    table = tables(spec, reader("item"), seed=seed)["item"]
    assert isinstance(table, SignedChunks)
    assert table.stores[0].num_embeddings == ROWS
    ids = torch.arange(IDS)
    places = table.rows(ids)["ids"].unsqueeze(2) * WIDTH + torch.arange(WIDTH)
    return places.flatten(1), table.signs(ids).repeat_interleave(WIDTH, 1)


def unaligned(seed: int) -> Sketch:
    """The paper's: a block starts at any float of an array of the same size, and wraps around."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(ROWS * WIDTH, (IDS, CHUNKS, 1), generator=generator)
    signs = torch.randint(2, (IDS, CHUNKS), generator=generator) * 2.0 - 1
    places = (starts + torch.arange(WIDTH)) % (ROWS * WIDTH)
    return places.flatten(1), signs.repeat_interleave(WIDTH, 1)


def recovered(vectors: Tensor, sketch: Sketch) -> Tensor:
    """Vectors [ids, D] added into the array with their signs, and read out again."""
    places, signs = sketch
    memory = torch.zeros(ROWS * WIDTH).index_add_(0, places.flatten(), (vectors * signs).flatten())
    return memory[places] * signs


@pytest.mark.parametrize("sketch", [aligned, unaligned])
def test_sketch_is_unbiased(sketch: Callable[[int], Sketch]) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, other = torch.randn(2, IDS, CHUNKS * WIDTH, generator=generator)
    read = torch.stack([recovered(vectors, sketch(seed)) for seed in range(800)])
    inner = (read * other).sum((1, 2))
    spread = read.std(0) / len(read) ** 0.5
    assert float(((read.mean(0) - vectors) / spread).abs().max()) < 4.5  # 96 numbers
    assert abs(float(inner.mean() - (vectors * other).sum())) < 4 * float(inner.std()) / len(read) ** 0.5


def test_as_many_floats_meet_whether_aligned_or_not_but_fewer_blocks() -> None:
    floats, blocks = [], []
    first, second = torch.triu_indices(IDS * CHUNKS, IDS * CHUNKS, offset=1)
    for sketch in (aligned, unaligned):
        places = torch.stack([sketch(seed)[0].view(-1, WIDTH) for seed in range(100)])
        meeting = (places[:, first].unsqueeze(3) == places[:, second].unsqueeze(2)).sum((2, 3)).float()
        floats.append(float(meeting.mean()))
        blocks.append(float((meeting > 0).float().mean()))
    assert floats == pytest.approx([WIDTH / ROWS] * 2, rel=0.05)
    assert blocks == pytest.approx([1 / ROWS, (2 * WIDTH - 1) / (ROWS * WIDTH)], rel=0.05)


# --- sizes ---


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
def test_store_is_the_largest_within_the_budget(precision: str) -> None:
    readers = [reader(str(count), count) for count in (1, 2, 3, 40, 977)]
    for embedding_dim, num_chunks in ((7, 1), (6, 2), (6, 6)):
        for budget in ("1kB", "5%", "50%", "300%"):
            spec = RobeTable(embedding_dim=embedding_dim, budget=budget, num_chunks=num_chunks, precision=precision)
            (store,) = {table.stores for table in tables(spec, *readers).values()}.pop()
            rest = spec.max_bytes("ids", readers) - store.num_bytes - HASH_BYTES * num_chunks * len(readers)
            assert 0 <= rest < store.num_bytes / store.num_embeddings


def test_measured_bytes_stay_within_any_budget() -> None:
    def make(budget: str, precision: str) -> RobeTable:
        return RobeTable(embedding_dim=12, budget=budget, num_chunks=3, precision=precision)

    assert_bytes_within_budget(make)


def test_budget_below_one_row_names_the_minimum() -> None:
    least = 12 + 2 * 2 * HASH_BYTES
    for budget, fits in ((least, True), (least - 1, False)):
        spec = RobeTable(embedding_dim=6, budget=f"{budget}B")
        if fits:
            assert tables(spec, reader("a"), reader("b"))["a"].stores[0].num_embeddings == 1
        else:
            with pytest.raises(ValueError, match=f"budget {budget}B is too small, the minimum is {least}B"):
                tables(spec, reader("a"), reader("b"))


def test_chunks_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match=r"num_chunks 4 must divide embedding_dim 6, as do \[1, 2, 3, 6\]"):
        RobeTable(embedding_dim=6, budget="1kB", num_chunks=4)


def test_share_without_known_ids_is_refused_bytes_are_not() -> None:
    assert tables(RobeTable(embedding_dim=4, budget="1kB"), reader("word"))["word"].num_embeddings is None
    with pytest.raises(ValueError, match="needs the number of ids of 'word'"):
        tables(RobeTable(embedding_dim=4, budget="10%"), reader("word"))


@pytest.mark.parametrize(
    "spec",
    [
        RobeTable(embedding_dim=6, budget="30%"),
        RobeTable(embedding_dim=8, budget="10%", num_chunks=1),
    ],
    ids=lambda spec: str(spec.embedding_dim),
)
def test_fused_trains_as_plain(spec: RobeTable) -> None:
    assert_fused_equals_plain(spec)
