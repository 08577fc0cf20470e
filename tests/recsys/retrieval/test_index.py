import gc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.retrieval import ExactIndex, Hits, load_index
from recsys.retrieval import index as index_module

WHOLE = st.integers(-3, 3).map(float)


@given(st.data())
def test_exact_index_equals_a_loop(data: st.DataObject) -> None:
    n, queries, k, several = (data.draw(st.integers(low, high)) for low, high in ((0, 9), (1, 3), (1, 12), (1, 3)))
    whole = st.lists(WHOLE, min_size=2, max_size=2)
    vectors = torch.tensor(data.draw(st.lists(whole, min_size=n, max_size=n))).view(n, 2)
    query = torch.tensor(data.draw(st.lists(whole, min_size=queries * several, max_size=queries * several)))
    positions = data.draw(st.permutations(range(12)))[:n]
    allowed = data.draw(st.none() | st.lists(st.booleans(), min_size=12, max_size=12))
    index = ExactIndex(vectors, torch.tensor(positions, dtype=torch.int64), num_positions=12)
    bitmap = None if allowed is None else torch.tensor(allowed)
    hits = index.search(query.view(queries, several, 2), k, bitmap)
    for row, ids in zip(query.view(queries, several, 2), hits.ids.tolist(), strict=True):
        scores = {p: max(float(v @ q) for q in row) for p, v in zip(positions, vectors, strict=True)}
        best = sorted((-s, p) for p, s in scores.items() if allowed is None or allowed[p])[:k]
        assert ids == [p for _, p in best] + [-1] * (k - len(best))


def test_exact_index_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randint(-4, 5, (500, 8), generator=generator).float()
    queries = torch.randint(-4, 5, (20, 3, 8), generator=generator).float()
    shares = torch.rand(500, generator=generator)
    bitmaps = (None, shares < 0.4, shares < 0.08)  # all, scored and masked, gathered
    whole = [ExactIndex(vectors).search(queries, 50, bitmap) for bitmap in bitmaps]
    monkeypatch.setattr(index_module, "ITEM_CHUNK", 7)
    monkeypatch.setattr(index_module, "MAX_CELLS", 50)
    for bitmap, expected in zip(bitmaps, whole, strict=True):
        hits = ExactIndex(vectors).search(queries, 50, bitmap)
        assert torch.equal(hits.ids, expected.ids)
        assert torch.equal(hits.scores, expected.scores)


def test_exact_index_holds_few_scores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = []
    plain = index_module._scores

    def counted(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        cells.append(queries[..., 0].numel() * len(vectors))
        return plain(queries, vectors)

    monkeypatch.setattr(index_module, "_scores", counted)
    monkeypatch.setattr(index_module, "ITEM_CHUNK", 100)
    monkeypatch.setattr(index_module, "MAX_CELLS", 1000)
    ExactIndex(torch.ones(950, 4)).search(torch.ones(77, 2, 4), 5)
    assert max(cells) <= 1000
    assert sum(cells) == 950 * 77 * 2


def test_index_of_some_items_answers_with_their_positions() -> None:
    index = ExactIndex(torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([8, 2, 5]), num_positions=10)
    assert index.search(torch.ones(1, 1), 4).ids.tolist() == [[2, 5, 8, -1]]
    allowed = torch.zeros(10, dtype=torch.bool).index_fill(0, torch.tensor([8, 2, 0]), True)
    assert index.search(torch.ones(1, 1), 4, allowed).ids.tolist() == [[2, 8, -1, -1]]


def test_index_maps_its_file(tmp_path: Path) -> None:
    vectors = torch.randn(100_000, 16)
    ExactIndex(vectors).save(tmp_path)
    del vectors
    gc.collect()
    loaded = ExactIndex.load(tmp_path)
    assert "index.safetensors" in Path("/proc/self/maps").read_text()
    assert len(loaded) == 100_000


@pytest.mark.parametrize(
    ("vectors", "positions", "size", "fault"),
    [
        (torch.zeros(3), None, None, r"floating point \[n, D\], got torch.float32 \[3\]"),
        (torch.zeros(3, 0), None, None, r"\[3, 0\]"),
        (torch.zeros(3, 2, dtype=torch.int64), None, None, "torch.int64"),
        (torch.tensor([[0.0], [torch.inf]]), None, None, "row 1 holds NaN or infinity"),
        (torch.zeros(2, 1), torch.tensor([4, 4]), None, "positions must be unique, 4 stands twice"),
        (torch.zeros(2, 1), torch.tensor([4, -1]), None, "positions must be at least 0, got -1"),
        (torch.zeros(2, 1), torch.tensor([0]), None, r"positions must be int64 \[2\]"),
        (torch.zeros(2, 1), torch.tensor([0.0, 1.0]), None, r"got torch.float32 \[2\]"),
        (torch.zeros(2, 1), torch.tensor([0, 9]), 9, "num_positions is 9, but position 9 is in the index"),
    ],
)
def test_index_refuses_wrong_vectors(
    vectors: torch.Tensor, positions: torch.Tensor | None, size: int | None, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        ExactIndex(vectors, positions, num_positions=size)


def test_search_names_what_is_wrong() -> None:
    index = ExactIndex(torch.ones(4, 2))
    for queries, fault in (
        (torch.ones(1, 3), r"queries must be \[Q, 2\] or \[Q, M, 2\], got \[1, 3\]"),
        (torch.tensor([[1.0, 1.0], [1.0, torch.nan]]), "query 1 holds NaN"),
        (torch.ones(1, 0, 2), "at least one vector each"),
    ):
        with pytest.raises(ValueError, match=fault):
            index.search(queries, 1)
    with pytest.raises(ValueError, match="k must be at least 1, got -3"):
        index.search(torch.ones(1, 2), -3)
    with pytest.raises(ValueError, match=r"bool bitmap \[4\], one per item, got torch.bool \[5\]"):
        index.search(torch.ones(1, 2), 1, torch.ones(5, dtype=torch.bool))


def test_index_accepts_any_floating_point_and_layout() -> None:
    vectors = torch.arange(12.0).view(3, 4)
    queries = torch.ones(2, 4)
    expected = ExactIndex(vectors).search(queries, 3)
    for other in (vectors.double(), vectors.half(), vectors.T.contiguous().T, vectors.bfloat16()):
        assert torch.equal(ExactIndex(other).search(queries.double(), 3).ids, expected.ids)


def test_file_that_is_no_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index\.safetensors is not a readable index file"):
        load_index(tmp_path)
    ExactIndex(torch.ones(4, 2)).save(tmp_path)
    path = tmp_path / "index.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"index\.safetensors is not a readable index file"):
        load_index(tmp_path)


def test_index_of_another_kind_is_named(tmp_path: Path) -> None:
    class Other(ExactIndex):
        kind = "other"

    Other(torch.ones(4, 2)).save(tmp_path)
    with pytest.raises(ValueError, match=r"index of kind 'other'; known kinds are \['exact'\]"):
        load_index(tmp_path)
    with pytest.raises(ValueError, match="ExactIndex reads kind 'exact', format 1"):
        ExactIndex.load(tmp_path)


def test_hits_to_pandas_leaves_padding_out() -> None:
    hits = Hits(torch.tensor([[7, 3], [5, -1]]), torch.tensor([[2.0, 1.0], [4.0, -torch.inf]]))
    frame = hits.to_pandas()
    assert frame.columns.tolist() == ["query", "rank", "id", "score"]
    assert frame.values.tolist() == [[0, 1, 7, 2.0], [0, 2, 3, 1.0], [1, 1, 5, 4.0]]
    assert hits.counts.tolist() == [2, 1]
