"""The loop over a toy regression: what resuming, stopping, keeping the best and weighting must mean."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from features.batch import Batch
from recsys.config import ScheduleConfig
from recsys.phases import Phase, Step, Until
from recsys.training.checkpoint import Checkpoints
from recsys.training.schedule import Schedule
from recsys.training.trainer import Interrupted, Progress, Settings, Trainer

ROWS, SIZE = 22, 4
NUM_BATCHES = -(-ROWS // SIZE)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.dropout = nn.Dropout(0.2)

    def row_losses(self, batch: Batch, step: Step) -> Tensor:
        inputs = batch.ids("x")
        noise = torch.rand(3, generator=step.generator())
        predicted: Tensor = self.dropout(inputs + 0.01 * noise) @ self.weight
        return (predicted - batch.labels["y"]).square()


def batches(epoch: int, start: int) -> Iterator[tuple[Batch, int]]:
    generator = torch.Generator().manual_seed(epoch)
    inputs = torch.randn(ROWS, 3, generator=generator)
    labels = inputs @ torch.tensor([1.0, -2.0, 0.5])
    for number in range(start, NUM_BATCHES):
        rows = slice(number * SIZE, (number + 1) * SIZE)
        yield Batch(features={"x": inputs[rows]}, labels={"y": labels[rows]}), number + 1


def trainer(
    folder: Path,
    max_epochs: int = 4,
    patience: int | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    **changes: object,
) -> Trainer:
    model = Line()
    phase = Phase(
        name="train", batches=batches, num_batches=NUM_BATCHES, loss=model.row_losses,
        optimizers=(torch.optim.Adam(model.parameters(), lr=0.05),),
        until=Until(max_epochs=max_epochs, patience=patience),
    )  # fmt: skip
    settings = Settings(**({"seed": 3, "metric": "auc", "fingerprint": "f"} | changes))  # type: ignore[arg-type]
    return Trainer(model, [phase], Checkpoints(folder), settings, evaluate)


def weight_of(runner: Trainer) -> Tensor:
    assert isinstance(runner.model, Line)
    return runner.model.weight.detach()


class StopAt:
    """Sends this process a signal after a number of steps, as an operator would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, progress: Progress, total_batches: int, loss: float, rows: int) -> None:
        if progress.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float], best: bool) -> None:
        pass


@pytest.mark.parametrize("step", [1, 5, NUM_BATCHES, 2 * NUM_BATCHES - 1, 3 * NUM_BATCHES])
def test_trainer_resumed_equals_uninterrupted(tmp_path: Path, step: int) -> None:
    whole = trainer(tmp_path / "whole")
    whole.fit()
    stopped = trainer(tmp_path / "stopped")
    stopped.observers = (StopAt(step),)
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = trainer(tmp_path / "stopped")
    progress = resumed.fit()
    assert progress.done
    assert progress.step == 4 * NUM_BATCHES
    assert torch.equal(weight_of(whole), weight_of(resumed))


def test_trainer_finds_the_minimum(tmp_path: Path) -> None:
    """Inverted dropout with rate p on independent inputs of variance 1 is ridge regression: weights shrink by 1 - p."""
    runner = trainer(tmp_path, max_epochs=60)
    runner.fit()
    assert torch.allclose(weight_of(runner), 0.8 * torch.tensor([1.0, -2.0, 0.5]), atol=0.12)


def test_trainer_keeps_the_best_and_stops_out_of_patience(tmp_path: Path) -> None:
    values = iter([0.6, 0.8, 0.7, 0.75, 0.9])
    weights: list[Tensor] = []

    def evaluate() -> Mapping[str, float]:
        weights.append(weight_of(runner).clone())
        return {"auc": next(values)}

    runner = trainer(tmp_path, max_epochs=9, patience=2, evaluate=evaluate)
    progress = runner.fit()
    assert (progress.best, progress.best_epoch, len(weights)) == (0.8, 2, 4)
    assert torch.equal(weight_of(runner), weights[1])


def test_trainer_lower_is_better_for_logloss(tmp_path: Path) -> None:
    values = iter([0.6, 0.5, 0.55])
    runner = trainer(tmp_path, max_epochs=3, evaluate=lambda: {"logloss": next(values)}, metric="logloss")
    assert runner.fit().best_epoch == 2


def test_trainer_refuses_a_metric_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'auc' is not among .*logloss"):
        trainer(tmp_path, evaluate=lambda: {"logloss": 1.0}).fit()


def test_trainer_refuses_a_checkpoint_of_another_config(tmp_path: Path) -> None:
    trainer(tmp_path, max_epochs=1).fit()
    with pytest.raises(ValueError, match="belongs to config"):
        trainer(tmp_path, max_epochs=1, fingerprint="other").fit()


def test_trainer_resumed_with_another_number_of_threads_warns(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    trainer(tmp_path, max_epochs=1).fit()
    torch.set_num_threads(before + 1)
    try:
        with pytest.warns(UserWarning, match=f"with {before} torch threads, there are {before + 1} now"):
            trainer(tmp_path, max_epochs=1).fit()
    finally:
        torch.set_num_threads(before)


def test_trainer_finished_stays_finished(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.fit()
    again = trainer(tmp_path)
    assert again.fit().step == first.progress.step
    assert torch.equal(weight_of(first), weight_of(again))


def test_trainer_names_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    runner = trainer(tmp_path)
    with torch.no_grad():
        weight_of(runner).fill_(float("nan"))
    with pytest.raises(ValueError, match="loss is nan in phase 'train', epoch 0, batch 0"):
        runner.fit()


def test_trainer_names_a_gradient_that_is_not_finite_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    runner = trainer(tmp_path, checkpoint_every_s=0)

    def root(batch: Batch, step: Step) -> Tensor:
        return (runner.model.get_parameter("weight").sum() * (step.index < 2)).square().sqrt().expand(len(batch))

    runner.phases = (replace(runner.phases[0], loss=root),)
    with pytest.raises(ValueError, match="norm of the gradient is nan in phase 'train', epoch 0, batch"):
        runner.fit()
    saved = runner.checkpoints.load("last", prefix="model.") if runner.checkpoints.exists("last") else {}
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())


def test_trainer_ends_a_phase_from_its_best_weights_and_keeps_the_history(tmp_path: Path) -> None:
    """Two phases: each goes back to its own best, then its `on_end` changes the model, and that stays."""
    values = iter([0.9, 0.8, 0.3, 0.2])
    runner = trainer(tmp_path, max_epochs=2, evaluate=lambda: {"auc": next(values)})
    weight = runner.model.get_parameter("weight")
    ended: list[Tensor] = []

    def end() -> None:
        ended.append(weight.detach().clone())
        with torch.no_grad():
            weight.fill_(7.0 + len(ended))

    first = replace(runner.phases[0], name="first", on_end=end)
    runner.phases = (first, replace(first, name="second"))
    progress = runner.fit()
    assert [record["auc"] for record in progress.history] == [0.9, 0.8, 0.3, 0.2]
    assert weight.tolist() == [9.0, 9.0, 9.0]
    assert torch.allclose(ended[1], torch.full((3,), 8.0), atol=1.0)


def test_trainer_keeps_the_last_weights_of_a_phase_that_says_so(tmp_path: Path) -> None:
    """A search phase is not judged: its better first epoch is forgotten, and the phase after it starts from its end."""
    scores = iter([0.9, 0.1, 0.2, 0.3])
    runner = trainer(tmp_path, evaluate=lambda: {"auc": next(scores)})
    train, ends = runner.phases[0], []
    search = replace(train, name="search", until=Until(max_epochs=2), keep_best=False)
    search = replace(search, on_end=lambda: ends.append(weight_of(runner).clone()))
    runner.phases = (search, replace(train, until=Until(max_epochs=2)))
    progress = runner.fit()
    alone = trainer(tmp_path / "alone", max_epochs=2)
    alone.phases = (replace(alone.phases[0], name="search"),)
    alone.fit()
    assert torch.equal(ends[0], weight_of(alone))
    assert (progress.best, progress.best_epoch, progress.phase) == (0.3, 2, 1)


def test_trainer_weights_rows(tmp_path: Path) -> None:
    """A step over weighted rows equals a step over the rows repeated that often."""
    inputs, labels = torch.randn(3, 3), torch.tensor([1.0, -1.0, 2.0])
    weights = torch.tensor([1.0, 0.0, 3.0])
    repeats = torch.tensor([0, 2, 2, 2])
    weighted = Batch(features={"x": inputs}, labels={"y": labels}, weights=weights)
    repeated = Batch(features={"x": inputs[repeats]}, labels={"y": labels[repeats]})
    results = []
    for name, batch in (("weighted", weighted), ("repeated", repeated)):
        runner = trainer(tmp_path / name)
        runner.model.get_submodule("dropout").eval()
        step = Step(seed=0, phase="train", epoch=0, index=0)
        runner._step(runner.phases[0], batch, step)
        results.append(weight_of(runner))
    assert torch.allclose(results[0], results[1], atol=1e-7)


def test_trainer_stopped_during_evaluation_resumes_after_it(tmp_path: Path) -> None:
    def evaluate() -> Mapping[str, float]:
        calls.append(len(calls))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"auc": 0.5 + 0.1 * len(calls)}

    calls: list[int] = []
    with pytest.raises(Interrupted):
        trainer(tmp_path, evaluate=evaluate).fit()
    resumed = trainer(tmp_path, evaluate=evaluate).fit()
    assert len(calls) == 4
    assert [record["epoch"] for record in resumed.history] == [1, 2, 3, 4]
    assert resumed.step == 4 * NUM_BATCHES


def test_trainer_runs_outside_the_main_thread(tmp_path: Path) -> None:
    whole, threaded = trainer(tmp_path / "whole"), trainer(tmp_path / "threaded")
    whole.fit()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(threaded.fit).result().done
    assert torch.equal(weight_of(whole), weight_of(threaded))


def test_trainer_moves_batches_to_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def to(batch: Batch, device: object) -> Batch:
        seen.append(device)
        return batch

    monkeypatch.setattr(Batch, "to", to)
    trainer(tmp_path / "cpu", max_epochs=1).fit()
    assert seen == []
    trainer(tmp_path / "cuda", max_epochs=1, device="cuda").fit()
    assert seen == ["cuda"] * NUM_BATCHES


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [("auc", (0.6, 0.5, 0.7), 3), ("logloss[buy]", (0.6, 0.5, 0.7), 2), ("normalized_entropy", (0.6, 0.5, 0.7), 2)],
)
def test_trainer_knows_which_metrics_should_fall(
    tmp_path: Path, metric: str, values: tuple[float, ...], best: int
) -> None:
    left = iter(values)
    runner = trainer(tmp_path, max_epochs=3, metric=metric, evaluate=lambda: {metric: next(left)})
    assert runner.fit().best_epoch == best


def scheduled(folder: Path, **changes: object) -> Trainer:
    return trainer(folder, dense_schedule=Schedule(ScheduleConfig(kind="cosine", warmup_steps=3), 4), **changes)  # type: ignore[arg-type]


def test_trainer_steps_with_the_learning_rates_of_its_schedule(tmp_path: Path) -> None:
    runner = scheduled(tmp_path)
    seen: list[float] = []
    (optimizer,) = runner.phases[0].optimizers
    optimizer.register_step_pre_hook(lambda stepped, *_: seen.append(stepped.param_groups[0]["lr"]))
    runner.fit()
    schedule = runner.settings.dense_schedule
    assert schedule is not None
    assert seen == [0.05 * schedule.factor(number, NUM_BATCHES) for number in range(4 * NUM_BATCHES)]


def test_trainer_with_a_schedule_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, stopped = scheduled(tmp_path / "whole"), scheduled(tmp_path / "stopped")
    whole.fit()
    stopped.observers = (StopAt(7),)
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = scheduled(tmp_path / "stopped")
    resumed.fit()
    assert torch.equal(weight_of(whole), weight_of(resumed))


def test_trainer_under_bf16_keeps_weights_in_float32(tmp_path: Path) -> None:
    plain, half = trainer(tmp_path / "plain"), trainer(tmp_path / "half", precision="bf16")
    plain.fit()
    half.fit()
    assert weight_of(half).dtype == torch.float32
    assert torch.allclose(weight_of(plain), weight_of(half), atol=0.05)
    assert not torch.equal(weight_of(plain), weight_of(half))
