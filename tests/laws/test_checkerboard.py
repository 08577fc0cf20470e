import numpy as np
import torch

from recsys.laws.checkerboard import NUM_ITEMS, NUM_USERS, Checkerboard, held_out_item


def test_every_row_is_liked_exactly_on_equal_parity() -> None:
    world = Checkerboard.of()
    assert torch.equal(world.liked > 0, (world.users + world.items) % 2 == 0)
    assert len(world.users) == NUM_USERS * (NUM_ITEMS - 2)


def test_held_out_items_are_in_no_row_and_one_is_liked() -> None:
    world, users = Checkerboard.of(), torch.arange(NUM_USERS)
    liked, disliked = held_out_item(users, liked=True), held_out_item(users, liked=False)
    assert not ((users + liked) % 2).any()
    assert ((users + disliked) % 2).all()
    held_out = torch.stack([liked, disliked], 1)[world.users]
    assert not (held_out == world.items[:, None]).any()


def test_no_item_and_no_user_is_more_popular() -> None:
    matrix = Checkerboard.of().interactions()
    assert set(np.asarray(matrix.sum(axis=1)).ravel()) == {NUM_ITEMS / 2 - 1}
    assert np.ptp(np.asarray(matrix.sum(axis=0))) <= 1


def test_history_of_a_row_lacks_its_item_and_that_of_a_user_lacks_none() -> None:
    world = Checkerboard.of().positives()
    row = world.batch(world.users[:1], world.items[:1]).jagged("history").values
    whole = world.user_batch(world.users[:1]).jagged("history").values
    assert set(whole.tolist()) - set(row.tolist()) == {int(world.items[0]) + 1}


def test_loader_covers_every_row_once_and_continues_where_asked() -> None:
    world = Checkerboard.of(("user", "item"))
    loader = world.loader(50, seed=3)
    batches = [batch for batch, _ in loader.epoch(1)]
    pairs = [pair for batch in batches for pair in torch.stack([batch.ids("user"), batch.ids("item")], 1).tolist()]
    assert len(set(map(tuple, pairs))) == len(pairs) == len(world.users)
    later = [batch.ids("item") for batch, _ in loader.epoch(1, start=2)]
    assert all(torch.equal(items, batch.ids("item")) for items, batch in zip(later, batches[2:], strict=True))
    assert len(later) == loader.num_batches - 2


def test_vocabulary_rows_are_positions_plus_one() -> None:
    encoder = Checkerboard.of().encoder
    assert encoder.vocabularies["user"].rows([0, 23]).tolist() == [1, 24]
    assert encoder.vocabularies["item"].rows([0, 15]).tolist() == [1, 16]
