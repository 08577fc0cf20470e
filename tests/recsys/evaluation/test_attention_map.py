import math

import numpy as np
import pytest
import torch

from features.batch import Batch
from recsys.evaluation.attention_map import AttentionMap, attention_map, information, recency_label
from recsys.evaluation.attention_paths import weights_of
from tests.recsys.models.aligned_world import batch
from tests.recsys.models.test_twin import twin

IDS = torch.tensor([3, 1, 2])  # of the four categories


def mapped(*batches: Batch) -> AttentionMap:
    return attention_map(twin(search_k=3), batches, "category", IDS, max_length=9)


def entropy(*shares: float) -> float:
    return -sum(share * math.log(share) for share in shares if share)


def test_information_is_that_of_its_definition() -> None:
    """I(X; Y) = H(X) + H(Y) - H(X, Y)."""
    with_event, without = np.array([30, 10]), np.array([20, 40])
    nats = entropy(0.4, 0.6) + entropy(0.5, 0.5) - entropy(0.3, 0.1, 0.2, 0.4)
    assert information(with_event, without) == pytest.approx(nats - 1 / 200)
    assert information(np.array([5, 0]), np.array([0, 5])) == pytest.approx(math.log(2) - 1 / 20)
    assert math.isnan(information(np.array([0, 0]), np.array([0, 0])))


def test_information_of_nothing_is_zero_on_average() -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(400, [0.12, 0.28, 0.18, 0.42], size=4_000)
    assert information(counts[:, :2], counts[:, 2:]).mean() == pytest.approx(0, abs=2e-4)


def test_map_equals_a_loop_over_events() -> None:
    rows, found = batch(), mapped(batch())
    weights, history = weights_of(twin(search_k=3), rows, 0), rows.jagged("history_category")
    for place, target in enumerate(IDS.tolist()):
        for other, event in enumerate(IDS.tolist()):
            for recency in range(4):
                cell, with_event = [], set()
                for row in range(6):
                    low, high = history.offsets[row], history.offsets[row + 1]
                    for at in range(int(low), int(high)):
                        same = rows.ids("category")[row] == target and history.values[at] == event
                        if same and 2**recency <= int(high) - at < 2 ** (recency + 1):
                            cell.append(float(weights[at]))
                            with_event.add(row)
                expected = sum(cell) / len(cell) if cell else math.nan
                assert found.attention[place, other, recency] == pytest.approx(expected, nan_ok=True)
                total = int((rows.ids("category") == target).sum())
                assert found.support[place, other, recency] == min(len(with_event), total - len(with_event))


def test_map_does_not_depend_on_how_rows_are_batched() -> None:
    whole = mapped(batch())
    parts = mapped(*(batch().select(rows) for rows in torch.arange(6).split(4)))
    assert np.allclose(whole.attention, parts.attention, equal_nan=True)
    assert np.array_equal(whole.information, parts.information, equal_nan=True)


def test_agreement_needs_rows_and_orders_cells() -> None:
    assert mapped(batch()).agreement is None
    cells = np.arange(8.0).reshape(2, 2, 2)
    enough = np.full(cells.shape, 50)
    for information_, expected in ((cells**3, 1.0), (-cells, -1.0)):
        found = AttentionMap(feature="c", ids=[1, 2], attention=cells, information=information_, support=enough)
        assert found.agreement == pytest.approx(expected)


def test_recencies_are_doublings_and_unknown_features_are_refused() -> None:
    assert [recency_label(recency) for recency in range(4)] == ["1", "2-3", "4-7", "8-15"]
    with pytest.raises(ValueError, match=r"'price' is repeated by no sequence of the model; .*\['category', 'item'\]"):
        attention_map(twin(), [], "price", IDS, 9)
