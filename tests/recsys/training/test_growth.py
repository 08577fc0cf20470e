"""A model that starts from a smaller one's checkpoint: known ids keep every bit, new ids are as if they were fresh."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from features.encoder import Encoder
from features.spec import parse_schema
from recsys.compression import COMPRESSIONS, make_specs
from recsys.config import ConfigError, TableConfig
from recsys.embedding import EmbeddingCollection, RowWiseAdagrad
from recsys.embedding.collection import Backend
from recsys.phases import Phase, Until
from recsys.training.checkpoint import Checkpoints
from recsys.training.growth import Origin, check_can_grow, load_grown
from recsys.training.state import dense_tensors, model_tensors, table_tensors
from tests.recsys.two_ranks import run_on_two_ranks

USERS, ITEMS, MORE = 30, 50, 17
SCHEMA = parse_schema({"name": "t", "features": {"user": {"table": "ids"}, "item": {"table": "ids"}}}, where="here")
DENSE = TableConfig(method="dense", options={"embedding_dim": 6})
CAN = {
    "dense": {"embedding_dim": 6},
    "unified": {"num_embeddings": 40, "chunk_dim": 3, "chunks": 2},
    "robe": {"embedding_dim": 6, "budget": "600B", "num_chunks": 2},
}
SIZED = {"embedding_dim": 8, "budget": "1200B"}
CANNOT = {name: SIZED for name in COMPRESSIONS if name not in CAN} | {
    "optembed": {"embedding_dim": 8},
    "mde": {"embedding_dim": 8, "budget": "2000B"},
    "mgqe": {"embedding_dim": 8, "parts": 2, "num_centroids": 8, "rare_centroids": 4},
}
STAGED = ("dedup", "mgqe", "deeplight", "optembed")


def encoder_of(users: int = USERS, items: int = ITEMS) -> Encoder:
    """Frequent ids first, so that methods that look at counts have something to see."""
    counts = {"user": users, "item": items}
    return Encoder.from_counts(SCHEMA, {name: (range(count), range(count, 0, -1)) for name, count in counts.items()})


def grown_encoder() -> Encoder:
    """`MORE` new users and items, and some known ones again."""
    sizes = {"user": USERS, "item": ITEMS}
    return encoder_of().grown({name: (range(MORE, size + MORE), [3] * size) for name, size in sizes.items()})


class Model(nn.Module):
    def __init__(self, encoder: Encoder, table: TableConfig, backend: Backend = "plain", seed: int = 0) -> None:
        super().__init__()
        specs = make_specs({"ids": table})
        self.collection = EmbeddingCollection(
            encoder, specs, backend=backend, optimizer=RowWiseAdagrad(lr=0.1), seed=seed
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.head = nn.Linear(2 * self.collection.embedding_dim("user"), 1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        found = self.collection.lookup({"user": ("user", users), "item": ("item", items)})
        logits: Tensor = self.head(torch.cat([found["user"], found["item"]], dim=1))
        return logits.squeeze(1)


def phase_of(model: Model) -> Phase:
    return Phase(
        name="train", batches=lambda epoch, start: iter(()), num_batches=0, loss=lambda batch, step: torch.zeros(0),
        optimizers=(torch.optim.Adam(model.head.parameters(), lr=0.01),), until=Until(max_epochs=1),
    )  # fmt: skip


def step(model: Model, phase: Phase, seed: int) -> float:
    draw = torch.Generator().manual_seed(seed)
    users, items = (torch.randint(0, count + 1, (32,), generator=draw) for count in (USERS, ITEMS))
    phase.optimizers[0].zero_grad()
    loss = (model(users, items) - users / 30).square().mean()
    loss.backward()
    phase.optimizers[0].step()
    return float(loss.detach())


def everything(model: Model, phase: Phase) -> dict[str, Tensor]:
    return model_tensors(model) | table_tensors(model) | dense_tensors(model, [phase])


def trained(folder: Path, table: TableConfig, backend: Backend = "plain") -> tuple[Model, Phase, Origin]:
    model = Model(encoder_of(), table, backend)
    phase = phase_of(model)
    for number in range(3):
        step(model, phase, number)
    checkpoints = Checkpoints(folder)
    checkpoints.save(everything(model, phase), {})
    return (
        model,
        phase,
        Origin(checkpoints=checkpoints, tag="last", encoder=encoder_of(), tables={"ids": table}, seed=0),
    )


@pytest.mark.parametrize(("first", "second"), [("plain", "plain"), ("plain", "fused"), ("fused", "fused")])
def test_old_rows_are_untouched_and_new_ones_fresh(tmp_path: Path, first: Backend, second: Backend) -> None:
    _, _, origin = trained(tmp_path, DENSE, first)
    model, fresh = (Model(grown_encoder(), DENSE, second, seed=7) for _ in range(2))
    phase = phase_of(model)
    load_grown(model, [phase], grown_encoder(), origin)
    assert_grown(everything(model, phase), everything(fresh, phase_of(fresh)), origin.checkpoints.load("last"))


def assert_grown(found: dict[str, Tensor], fresh: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    assert found.keys() == saved.keys()
    grown = []
    for name, tensor in found.items():
        if tensor.shape == saved[name].shape:
            assert torch.equal(tensor, saved[name]), name
            continue
        known = len(saved[name])
        grown.append(len(tensor) - known)
        assert torch.equal(tensor[:known], saved[name]), name
        assert torch.equal(tensor[known:], fresh[name][known:]), name
    assert grown == [MORE] * 4, "two stores, and a state of each"


@pytest.mark.parametrize("method", CAN)
def test_known_ids_train_on_as_if_nothing_had_grown(tmp_path: Path, method: str) -> None:
    table = TableConfig(method=method, options=CAN[method])
    model, phase, origin = trained(tmp_path, table, "fused")
    other = Model(grown_encoder(), table, "fused", seed=7)
    resumed = phase_of(other)
    load_grown(other, [resumed], grown_encoder(), origin)
    for number in range(3, 6):
        assert step(model, phase, number) == step(other, resumed, number)
    assert other(torch.tensor([USERS + MORE]), torch.tensor([ITEMS + MORE])).isfinite().all()


@pytest.mark.parametrize("method", CANNOT)
def test_methods_whose_rows_follow_from_the_number_of_ids_are_refused(tmp_path: Path, method: str) -> None:
    """Before anything is overwritten, naming the method and what works."""
    table = TableConfig(method=method, options=CANNOT[method])
    model = Model(grown_encoder(), table)
    checkpoints = Checkpoints(tmp_path)
    older = Model(encoder_of(), table)
    checkpoints.save(everything(older, phase_of(older)), {})
    origin = Origin(checkpoints=checkpoints, tag="last", encoder=encoder_of(), tables={"ids": table}, seed=0)
    before = [tensor.clone() for tensor in model_tensors(model).values()]
    says = "stages of its own" if method in STAGED else "cannot go on with more ids: .*; what can: dense"
    with pytest.raises(ConfigError, match=rf"table 'ids/\w+' \({method}\) .*{says}"):
        load_grown(model, [phase_of(model)], grown_encoder(), origin)
    assert all(torch.equal(a, b) for a, b in zip(before, model_tensors(model).values(), strict=True))


@pytest.mark.parametrize("method", [name for name in COMPRESSIONS if name not in STAGED])
def test_every_method_that_does_not_search_goes_on_with_the_same_ids(tmp_path: Path, method: str) -> None:
    table = TableConfig(method=method, options=(CAN | CANNOT)[method])
    model, phase, origin = trained(tmp_path, table)
    other = Model(encoder_of(), table, seed=7)
    resumed = phase_of(other)
    load_grown(other, [resumed], encoder_of(), origin)
    for name, tensor in everything(other, resumed).items():
        assert torch.equal(tensor, everything(model, phase)[name]), name


@pytest.mark.parametrize("method", ["dense", "unified", "hash", "compo"])
def test_what_cannot_grow_is_known_before_it_is_trained(method: str) -> None:
    table = TableConfig(method=method, options=CAN[method] if method in CAN else CANNOT[method])
    if method in CAN:
        check_can_grow({"ids": table}, encoder_of(), seed=0)
        return
    with pytest.raises(ConfigError, match=rf"\({method}\) cannot go on with more ids"):
        check_can_grow({"ids": table}, encoder_of(), seed=0)


def test_a_size_in_percent_cannot_grow() -> None:
    shares = {"ids": TableConfig(method="unified", options={"chunk_dim": 3, "chunks": 2, "budget": "50%"})}
    with pytest.raises(ConfigError, match="of a size that is not in %"):
        check_can_grow(shares, encoder_of(), seed=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": "50%", "chunk_dim": 3}, r"id 0 would read rows .* of store 'ids', read"),
        ({"num_embeddings": 40, "chunk_dim": 3, "multiplexed": False}, "id 0 would read rows .* of store 'ids', read"),
    ],
)
def test_the_first_id_that_would_move_is_named(tmp_path: Path, options: dict[str, object], says: str) -> None:
    table = TableConfig(method="unified", options=options)
    _, _, origin = trained(tmp_path, table)
    model = Model(grown_encoder(), table)
    with pytest.raises(ConfigError, match=rf"\(unified\) cannot go on with more ids: {says}"):
        load_grown(model, [phase_of(model)], grown_encoder(), origin)


def test_another_dense_part_is_refused(tmp_path: Path) -> None:
    _, _, origin = trained(tmp_path, DENSE)
    model = Model(grown_encoder(), DENSE)
    model.head = nn.Linear(12, 2)
    with pytest.raises(ValueError, match=r"tensor 'model.head.weight' is float32 \[1, 12\]"):
        load_grown(model, [phase_of(model)], grown_encoder(), origin)


def test_two_ranks_start_as_one_process_does(tmp_path: Path) -> None:
    trained(tmp_path / "one", DENSE, "fused")
    run_on_two_ranks(check_ranks, str(tmp_path))


def check_ranks(folder: str) -> None:
    """From what one process saved, and from what two ranks saved of it, at three placements."""
    one = Checkpoints(Path(folder) / "one")
    saved = one.load("last")
    fresh = Model(grown_encoder(), DENSE, seed=7)
    checkpoints: Sequence[Checkpoints] = (one, saved_by_ranks(Path(folder) / "two", one))
    for number, origin_of in enumerate(checkpoints):
        origin = Origin(checkpoints=origin_of, tag="last", encoder=encoder_of(), tables={"ids": DENSE}, seed=0)
        model = Model(grown_encoder(), DENSE, "sharded", seed=7)
        phase = phase_of(model)
        load_grown(model, [phase], grown_encoder(), origin)
        copy = Checkpoints(Path(folder) / f"copy{number}")
        copy.save(everything(model, phase), {})
        assert any(isinstance(tensor, DTensor) for tensor in everything(model, phase).values())
        assert_grown(copy.load("last"), everything(fresh, phase_of(fresh)), saved)


def saved_by_ranks(folder: Path, one: Checkpoints) -> Checkpoints:
    model = Model(encoder_of(), DENSE, "sharded", seed=3)
    phase = phase_of(model)
    origin = Origin(checkpoints=one, tag="last", encoder=encoder_of(), tables={"ids": DENSE}, seed=0)
    load_grown(model, [phase], encoder_of(), origin)
    checkpoints = Checkpoints(folder)
    checkpoints.save(everything(model, phase), {})
    return checkpoints
