import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from features.prepared import Prepared, prepare
from recsys.config import ScheduleConfig, load_config
from recsys.run import Run
from recsys.training.schedule import Schedule, make_schedule
from tests.recsys.small_project import write_project

STEPS = 10  # of an epoch


def factors(count: int, max_epochs: int = 4, **settings: object) -> list[float]:
    schedule = make_schedule(ScheduleConfig.model_validate(settings), max_epochs)
    assert schedule is not None
    return [schedule.factor(step, STEPS) for step in range(count)]


def test_constant_without_warmup_is_no_schedule() -> None:
    assert make_schedule(ScheduleConfig(), 4) is None


def test_warmup_rises_in_a_line_and_stays() -> None:
    assert factors(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_one_to_the_floor_over_all_epochs() -> None:
    found = factors(60, kind="cosine", floor=0.1)
    naive = [0.1 + 0.9 * (1 + math.cos(math.pi * min(1, step / 40))) / 2 for step in range(60)]
    assert found == pytest.approx(naive)
    assert (found[0], found[20], found[40], found[59]) == pytest.approx((1.0, 0.55, 0.1, 0.1))


def test_linear_falls_over_its_own_epochs() -> None:
    assert factors(30, kind="linear", decay_epochs=2)[::5] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0, 0.0])


def test_step_multiplies_every_so_many_epochs() -> None:
    found = factors(40, kind="step", factor=0.5, every_epochs=1.5)
    assert [found[step] for step in (0, 14, 15, 29, 30)] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_warmup_multiplies_the_decay() -> None:
    plain, warmed = factors(20, kind="linear"), factors(20, kind="linear", warmup_steps=10)
    assert warmed == pytest.approx([min(1.0, (step + 1) / 10) * left for step, left in enumerate(plain)])


def test_schedule_does_not_divide_by_an_empty_epoch() -> None:
    assert Schedule(ScheduleConfig(kind="cosine"), 3).factor(0, 0) == 1.0


@pytest.mark.parametrize(
    "settings", [{"floor": 0.1}, {"kind": "step", "floor": 0.1}, {"kind": "cosine", "factor": 0.5}]
)
def test_schedule_refuses_settings_without_effect(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="has no effect on kind"):
        ScheduleConfig.model_validate(settings)


# --- in a run ---


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    folder = write_project(tmp_path_factory.mktemp("project"))
    config = load_config(folder / "ctr.toml")
    return folder, prepare(config.data, data_root=None, schema_dir=folder, out=folder / "prepared")


def trained(project: tuple[Path, Prepared], folder: Path, *overrides: str) -> dict[str, Tensor]:
    path, prepared = project
    run = Run.create(load_config(path / "ctr.toml", overrides), folder, prepared)
    run.train()
    model = run.model(served=False)
    assert isinstance(model, nn.Module)
    return dict(model.state_dict())


@pytest.mark.parametrize("part", ["dense", "tables"])
def test_run_trains_what_its_schedule_is_for(project: tuple[Path, Prepared], tmp_path: Path, part: str) -> None:
    section = f"optimizer.{part}.schedule"
    plain = trained(project, tmp_path / "plain")
    without_effect = trained(project, tmp_path / "one", f"{section}.warmup_steps=1")  # its factor is 1 at every step
    cosine = trained(project, tmp_path / "cosine", f"{section}.kind=cosine")
    for name, tensor in plain.items():
        assert torch.equal(without_effect[name], tensor), name
    store = next(name for name in plain if name.startswith("collection.stores."))
    assert not torch.equal(cosine["head.weight"], plain["head.weight"])
    assert not torch.equal(cosine[store], plain[store])
