"""What a checkpoint holds comes back: model, tables and their optimizer, dense optimizer, in other backends too."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from features.spec import parse_schema
from recsys.embedding import EmbeddingCollection, RowWiseAdagrad, UnifiedTable
from recsys.phases import Phase, Until
from recsys.training.checkpoint import Checkpoints
from recsys.training.state import dense_tensors, load_model, load_training, model_tensors, restart, table_tensors

SCHEMA = parse_schema({"name": "t", "features": {"user": {"table": "ids"}, "item": {"table": "ids"}}}, where="here")


class Model(nn.Module):
    def __init__(self, backend: str, seed: int) -> None:
        super().__init__()
        optimizer = RowWiseAdagrad(lr=0.1)
        specs = {"ids": UnifiedTable(num_embeddings=50, chunk_dim=6)}
        self.collection = EmbeddingCollection(SCHEMA, specs, backend=backend, optimizer=optimizer, seed=seed)  # type: ignore[arg-type]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.head = nn.Linear(12, 1)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.collection.lookup({"user": ("user", ids), "item": ("item", ids + 1)})
        logits: Tensor = self.head(torch.cat([found["user"], found["item"]], dim=1))
        return logits.squeeze(1)


def phase_of(model: Model) -> Phase:
    optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
    return Phase(
        name="train", batches=lambda epoch, start: iter(()), num_batches=0, loss=lambda batch, step: torch.zeros(0),
        optimizers=(optimizer,), until=Until(max_epochs=1),
    )  # fmt: skip


def step(model: Model, phase: Phase, seed: int) -> float:
    ids = torch.randint(0, 40, (32,), generator=torch.Generator().manual_seed(seed))
    phase.optimizers[0].zero_grad()
    loss = (model(ids) - ids / 40).square().mean()
    loss.backward()
    phase.optimizers[0].step()
    return float(loss.detach())


def save(model: Model, phase: Phase, folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    tensors = model_tensors(model) | table_tensors(model) | dense_tensors(model, [phase])
    checkpoints.save(tensors, {}, tag="last")
    return checkpoints


@pytest.mark.parametrize(("first", "second"), [("fused", "fused"), ("plain", "fused"), ("fused", "plain")])
def test_state_restored_goes_on_as_before(tmp_path: Path, first: str, second: str) -> None:
    model = Model(first, seed=1)
    phase = phase_of(model)
    for number in range(3):
        step(model, phase, number)
    checkpoints = save(model, phase, tmp_path)
    other = Model(second, seed=2)
    resumed = phase_of(other)
    load_training(other, [resumed], checkpoints, "last")
    restored = model_tensors(other) | table_tensors(other) | dense_tensors(other, [resumed])
    assert all(torch.equal(restored[name], saved) for name, saved in checkpoints.load("last").items())
    losses = [(step(model, phase, number), step(other, resumed, number)) for number in range(3, 6)]
    assert all(a == pytest.approx(b, abs=1e-6) for a, b in losses)
    assert first != second or all(a == b for a, b in losses)


def test_state_names_say_what_they_are(tmp_path: Path) -> None:
    model = Model("plain", seed=1)
    phase = phase_of(model)
    step(model, phase, 0)
    assert set(model_tensors(model)) == {
        "model.head.weight",
        "model.head.bias",
        "model.collection.stores.ids",
        "model.collection.tables.ids/item.salts",
        "model.collection.tables.ids/user.salts",
    }
    assert set(table_tensors(model)) == {"tables.collection.optimizer.ids.momentum"}
    assert {"dense.0.head.weight.exp_avg", "dense.0.head.bias.step"} <= set(dense_tensors(model, [phase]))


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    model = Model("plain", seed=1)
    phase = phase_of(model)
    step(model, phase, 0)
    checkpoints = save(model, phase, tmp_path)
    other = Model("plain", seed=1)
    without = phase_of(other)
    object.__setattr__(without, "optimizers", ())
    with pytest.raises(ValueError, match="holds optimizer state 'dense"):
        load_training(other, [without], checkpoints, "last")
    other.head = nn.Linear(11, 1)
    with pytest.raises(ValueError, match=r"head\.weight"):
        load_model(other, checkpoints, "last")


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_restart_gives_back_the_beginning_but_what_tables_found(backend: str) -> None:
    model = Model(backend, seed=1)
    phase = phase_of(model)
    losses = [step(model, phase, number) for number in range(3)]
    table = model.collection.table("item")
    with torch.no_grad():
        found = table.get_buffer("salts").add_(1).clone()
    restart(model, Model(backend, seed=1), [phase])
    assert torch.equal(table.get_buffer("salts"), found)
    table.get_buffer("salts").sub_(1)
    assert [step(model, phase, number) for number in range(3)] == losses
