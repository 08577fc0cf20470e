import pytest
import torch
from torch.testing import assert_close

from features.batch import Batch, Jagged
from features.sequences import Alignment
from recsys.models.interface import Vectors
from recsys.models.sequence_inputs import AlignedSequences, alignments, hard_search, other_inputs, sequences_of
from tests.recsys.models.aligned_world import LENGTHS, SCHEMA, batch, model

NAMES = ("history", "history_category", "history_action", "history_age")


def looked_up() -> tuple[AlignedSequences, Vectors]:
    collection = model("base").collection
    return AlignedSequences(SCHEMA.alignment("past"), collection.embedding_dim), collection(batch(), unpooled=NAMES)


def test_query_and_keys_have_the_same_columns() -> None:
    aligned, vectors = looked_up()
    query, keys = aligned.query(vectors, 6), aligned.keys(vectors)
    stores = model("base").collection.backend.weights()
    item, past = batch().ids("item"), batch().jagged("history").values
    assert aligned.widths == (8, 6)
    assert aligned.width == query.shape[1] == keys.values.shape[1] == 14
    assert_close(query[:, :4], stores["ids.item"][item])
    assert_close(keys.values[:, :4], stores["ids.item"][past])
    assert_close(query[:, 4:8], stores["ids.category"][item % 4 + 1])
    assert_close(keys.values[:, 11:], stores["actions.history_age"][batch().jagged("history_age").values])
    assert aligned.target is not None
    assert torch.equal(query[:, 8:], aligned.target.expand(6, -1))
    assert keys.lengths.tolist() == list(LENGTHS)


def test_alignments_are_those_of_the_inputs() -> None:
    chosen = [SCHEMA.feature(name) for name in ("user", "item", "history", "history_action")]
    groups = alignments(SCHEMA, chosen)
    assert groups == {"past": Alignment(pairs={"item": "history"}, alone=("history_action",))}
    assert [spec.name for spec in other_inputs(chosen, groups)] == ["user", "item"]
    assert sequences_of(groups["past"]) == ("history", "history_action")


def test_inputs_without_sequence_or_target_are_refused() -> None:
    with pytest.raises(ValueError, match="of schema 'aligned' no sequence is among its inputs"):
        alignments(SCHEMA, [SCHEMA.feature("item")])
    with pytest.raises(ValueError, match="sequence 'history' is among the inputs, its target 'item' is not"):
        alignments(SCHEMA, [SCHEMA.feature("history")])


def test_sequences_of_other_lengths_and_pooled_ones_are_refused() -> None:
    aligned, vectors = looked_up()
    history = vectors["history"]
    assert isinstance(history, Jagged)
    with pytest.raises(ValueError, match="'history' and 'history_action' are of one history but differ in lengths"):
        aligned.keys({**vectors, "history_action": history.select(torch.arange(6).flip(0))})
    with pytest.raises(ValueError, match="sequence 'history' came pooled"):
        aligned.keys(model("base").collection(batch()))
    with pytest.raises(ValueError, match="feature 'item' is a target, it must be one id per row"):
        aligned.query({**vectors, "item": history}, 6)


@pytest.mark.parametrize("k", [1, 2, 50])
def test_hard_search_keeps_the_last_events_of_the_targets_category(k: int) -> None:
    whole = batch()
    found = hard_search(whole, SCHEMA.alignment("past"), "category", k)
    for row in range(6):
        alone = whole.select(torch.tensor([row]))
        events = range(LENGTHS[row])
        same = [j for j in events if alone.jagged("history_category").values[j] == alone.ids("category")[0]][-k:]
        for name in NAMES:
            kept = found.select(torch.tensor([row])).jagged(name).values
            assert kept.tolist() == alone.jagged(name).values[same].tolist()


def test_hard_search_leaves_the_rest_of_the_batch() -> None:
    found = hard_search(batch(), SCHEMA.alignment("past"), "item", 3)
    assert isinstance(found, Batch)
    assert torch.equal(found.ids("user"), batch().ids("user"))
    assert found.row_ids is not None
    assert found.labels.keys() == {"click"}
