"""Checkpoints: bit-exact, whole or absent, damage named, and the same at any number of ranks."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Partial

from features import storage
from recsys import distributed
from recsys.training.checkpoint import Checkpoints, unaliased
from tests.recsys.two_ranks import run_on_two_ranks

META: dict[str, Any] = {"epoch": 3, "best": 0.1 + 0.2, "history": [{"auc": 0.75}], "name": "π"}


def sample_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "stores.user": torch.randn(7, 5, generator=generator),
        "dense.bias": torch.randn(3, generator=generator).bfloat16(),
        "dense.half": torch.randn(2, 2, generator=generator).half(),
        "counts": torch.randint(-(2**62), 2**62, (4,), generator=generator),
        "step": torch.tensor(seed + 2**40),
        "flag": torch.tensor([True, False]),
        "generator": generator.get_state(),
        "nothing": torch.empty(0, 5),
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    }


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bytes_of(found[name]) == bytes_of(tensor), name


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# --- round trip ---


def test_checkpoint_round_trip_is_exact(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert not checkpoints.exists("last")
    checkpoints.save(sample_tensors(), META)
    assert checkpoints.exists("last")
    assert checkpoints.meta("last") == META
    assert_same_bits(checkpoints.load("last"), sample_tensors())


def test_checkpoint_loads_into_tensors_in_place(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"weight": torch.ones(3, 2), "step": torch.tensor(4)}, {})
    wide, step = torch.zeros(3, 4), torch.tensor(0)
    loaded = checkpoints.load("last", into={"weight": wide[:, :2], "step": step})
    assert wide.tolist() == [[1.0, 1.0, 0.0, 0.0]] * 3
    assert step.item() == 4
    assert loaded["step"] is step


def test_checkpoint_of_views_and_tied_tensors_is_exact(tmp_path: Path) -> None:
    memory = torch.arange(24.0).view(4, 6)
    tensors = {"left": memory[:, :3], "top": memory[:2], "across": memory.T, "whole": memory, "again": memory}
    Checkpoints(tmp_path).save(tensors, {})
    assert_same_bits(Checkpoints(tmp_path).load("last"), tensors)


def test_unaliased_copies_only_what_shares_memory() -> None:
    alone, shared = torch.ones(2), torch.zeros(2)
    made = unaliased({"alone": alone, "shared": shared, "again": shared})
    assert made["alone"].data_ptr() == alone.data_ptr()
    assert len({tensor.data_ptr() for tensor in made.values()}) == 3


def test_checkpoint_prefix_selects_names(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"model.a": torch.ones(1), "optimizer.a": torch.zeros(1)}, {})
    assert list(checkpoints.load("last", prefix="model.")) == ["model.a"]
    checkpoints.load("last", into={"optimizer.a": torch.zeros(1)}, prefix="optimizer.")


def test_checkpoint_loads_into_tensors_of_more_rows(tmp_path: Path) -> None:
    """What is beyond the saved rows stays; more rows are refused where they are not expected, and fewer always."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"x": torch.arange(6.0).view(3, 2), "n": torch.tensor(4)}, {})
    into = {"x": torch.full((5, 2), -1.0), "n": torch.tensor(0)}
    checkpoints.load("last", into=into, grown=("x", "n"))
    assert into["x"].tolist() == [[0, 1], [2, 3], [4, 5], [-1, -1], [-1, -1]]
    assert int(into["n"]) == 4
    with pytest.raises(ValueError, match=r"tensor 'x' is float32 \[3, 2\]"):
        checkpoints.load("last", into=into)
    for shape in ((2, 2), (5, 3)):
        with pytest.raises(ValueError, match=r"tensor 'x' is float32 \[3, 2\]"):
            checkpoints.load("last", into=into | {"x": torch.zeros(shape)}, grown=("x",))


def test_checkpoint_content_hash_is_of_the_tensors_alone(tmp_path: Path) -> None:
    one, two = Checkpoints(tmp_path / "one"), Checkpoints(tmp_path / "two")
    one.save({"x": torch.ones(2)}, {"seconds": 1.5})
    two.save({"x": torch.ones(2)}, {"seconds": 2.5})
    assert one.content_hash("last") == two.content_hash("last")
    two.save({"x": torch.zeros(2)}, {"seconds": 2.5})
    assert one.content_hash("last") != two.content_hash("last")


def test_checkpoint_without_tensors_keeps_its_description(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save({}, META)
    assert Checkpoints(tmp_path).meta("last") == META
    assert Checkpoints(tmp_path).load("last") == {}


def test_checkpoint_keeps_one_folder_per_tag(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in range(4):
        checkpoints.save({"x": torch.tensor(number)}, {"number": number})
        if number % 2 == 0:
            checkpoints.save({"x": torch.tensor(-number)}, {"number": -number}, tag="best")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-2", "best.json", "last-4", "last.json"]
    assert (checkpoints.meta("last"), checkpoints.meta("best")) == ({"number": 3}, {"number": -2})


# --- refusals ---


def refused(load: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        load()
    return str(caught.value)


def test_checkpoint_names_what_differs_from_the_template(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"a": torch.ones(2, 3), "b": torch.ones(1)}, {})
    text = refused(lambda: checkpoints.load("last", into={"a": torch.ones(2, 3), "c": torch.ones(1)}))
    assert "lacks tensors ['c'] and holds ['b']" in text
    text = refused(lambda: checkpoints.load("last", into={"a": torch.ones(3, 2), "b": torch.ones(1)}))
    assert "'a' is float32 [2, 3] in checkpoint" in text
    text = refused(lambda: checkpoints.load("last", into={"a": torch.ones(2, 3), "b": torch.ones(1).long()}))
    assert "'b' is float32 [1]" in text
    assert "('int64', [1])" in text


def test_checkpoint_refuses_bad_tags_and_absent_ones(tmp_path: Path) -> None:
    assert "got '../last'" in refused(lambda: Checkpoints(tmp_path).exists("../last"))
    assert f"there is no checkpoint 'last' in {tmp_path}" in refused(lambda: Checkpoints(tmp_path).meta("last"))


def test_checkpoint_refuses_nan_in_the_description(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({}, {"best": 1.0})
    refused(lambda: checkpoints.save({}, {"best": float("nan")}))
    assert checkpoints.meta("last") == {"best": 1.0}


def test_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save({}, {})
    index = tmp_path / "last-1" / "index.json"
    storage.write_json(index, json.loads(index.read_text()) | {"format": 2})
    storage.write_json(tmp_path / "last.json", {"folder": "last-1", "index_sha256": storage.sha256_file(index)})
    assert "has format 2, this version reads 1" in refused(lambda: Checkpoints(tmp_path).meta("last"))


@pytest.mark.parametrize("file", ["last.json", "last-1/index.json", "last-1/shard-0.safetensors"])
def test_every_damage_of_a_checkpoint_names_the_file(tmp_path: Path, file: str) -> None:
    Checkpoints(tmp_path).save(sample_tensors(), META)
    path = tmp_path / file
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x51]) + whole[place + 1 :])
        assert str(tmp_path) in refused(lambda: Checkpoints(tmp_path).load("last"))
    path.write_bytes(whole[: len(whole) // 2])
    assert file in refused(lambda: Checkpoints(tmp_path).load("last"))
    path.unlink()
    assert file.removesuffix(".json") in refused(lambda: Checkpoints(tmp_path).load("last")).replace("'last'", "last")


# --- faults ---


def save_twice(folder: Path) -> list[str]:
    """A first checkpoint, then one under `inject`; returns the points of the second."""
    Checkpoints(folder).save(sample_tensors(0), {"number": 0})
    with storage.inject() as points:
        Checkpoints(folder).save(sample_tensors(1), {"number": 1})
    return points


def saved_number(folder: Path) -> int:
    """Which of the two checkpoints loads; description and tensors must be of the same one."""
    number = int(Checkpoints(folder).meta("last")["number"])
    assert_same_bits(Checkpoints(folder).load("last"), sample_tensors(number))
    return number


def test_checkpoint_faults_cover_every_step(tmp_path: Path) -> None:
    points = save_twice(tmp_path)
    for label in ("half-written:shard-0.safetensors", "fsync:shard-0.safetensors", "write:index.json"):
        assert label in points
    assert points.index("rename:last-2") < points.index("write:last.json") < points.index("remove:last-1")


def test_checkpoint_survives_a_kill_at_every_point(tmp_path: Path) -> None:
    points = save_twice(tmp_path / "recorded")
    numbers = [saved_number(killed_at(tmp_path / str(number), number)) for number in range(1, len(points) + 1)]
    moved = points.index("rename:last.json") + 1
    assert numbers == [0] * moved + [1] * (len(points) - moved)


def killed_at(folder: Path, number: int) -> Path:
    Checkpoints(folder).save(sample_tensors(0), {"number": 0})
    child = os.fork()
    if child == 0:
        with storage.inject(number, "kill"):
            Checkpoints(folder).save(sample_tensors(1), {"number": 1})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    return folder


def test_checkpoint_after_a_kill_can_be_saved_and_leaves_nothing(tmp_path: Path) -> None:
    for number in range(1, len(save_twice(tmp_path / "recorded")) + 1):
        folder = killed_at(tmp_path / str(number), number)
        Checkpoints(folder).save(sample_tensors(5), {"number": 5})
        assert saved_number(folder) == 5
        assert len(list(folder.iterdir())) == 2, points_left(folder)


def points_left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_checkpoint_survives_a_full_disk_at_every_point(tmp_path: Path) -> None:
    for number in range(1, len(save_twice(tmp_path / "recorded")) + 1):
        folder = tmp_path / str(number)
        Checkpoints(folder).save(sample_tensors(0), {"number": 0})
        with storage.inject(number, "enospc"), pytest.raises(OSError, match="no space left"):
            Checkpoints(folder).save(sample_tensors(1), {"number": 1})
        assert saved_number(folder) in (0, 1)


# --- two ranks ---


def test_checkpoint_of_two_ranks_reshards(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "one").save(global_tensors(), META)
    run_on_two_ranks(check_resharding, str(tmp_path))
    assert Checkpoints(tmp_path / "two").meta("last") == META
    assert_same_bits(Checkpoints(tmp_path / "two").load("last"), global_tensors())
    assert_same_bits(Checkpoints(tmp_path / "failed").load("last"), {"x": torch.ones(3)})


def global_tensors() -> dict[str, Tensor]:
    return {
        "rows": torch.arange(35.0).view(7, 5),
        "columns": torch.arange(12.0).view(3, 4).bfloat16(),
        "few": torch.ones(1, 3),
        "momentum": torch.arange(7.0),
        "second": torch.arange(6).view(3, 2),
        "copied": torch.tensor([1.5, 2.5]),
        "shared": torch.tensor(9),
    }


def split_tensors(values: Mapping[str, Tensor], rows: int, columns: int, owner: int) -> dict[str, Tensor]:
    """The tensors as DTensors: split by the given axis where it can be, one whole on `owner`, one replicated."""
    world, alone = DeviceMesh("cpu", [0, 1]), [DeviceMesh("cpu", [rank]) for rank in range(2)]
    return {
        "rows": block(values["rows"], world, rows),
        "columns": block(values["columns"], world, columns),
        "few": block(values["few"], world, 0),
        "momentum": block(values["momentum"], world, 0),
        "second": block(values["second"], alone[owner], 0),
        "copied": from_local(values["copied"].clone(), values["copied"], world, Replicate()),
        "shared": values["shared"].clone(),
    }


def block(values: Tensor, mesh: DeviceMesh, axis: int) -> Tensor:
    coordinate = mesh.get_coordinate()
    size = -(-values.shape[axis] // mesh.size())
    start = min((coordinate[0] if coordinate else 0) * size, values.shape[axis])
    length = min(size, values.shape[axis] - start) if coordinate else 0
    padded = torch.zeros(*values.shape[:-1], values.shape[-1] + 3, dtype=values.dtype)[..., : values.shape[-1]]
    padded.copy_(values)  # a view that is not contiguous, as the unpadded columns of a store are
    return from_local(padded.narrow(axis, start, length), values, mesh, Shard(axis))


def from_local(local: Tensor, whole: Tensor, mesh: DeviceMesh, placement: Shard | Replicate) -> Tensor:
    return DTensor.from_local(local, mesh, [placement], run_check=False, shape=whole.shape, stride=whole.stride())


def check_resharding(folder: str) -> None:
    values = global_tensors()
    two, one = Checkpoints(Path(folder) / "two"), Checkpoints(Path(folder) / "one")
    for _ in range(2):
        two.save(split_tensors(values, rows=0, columns=1, owner=1), META)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in values.items()}
    for checkpoints in (one, two):
        expected = split_tensors(values, rows=1, columns=0, owner=0)
        found = checkpoints.load("last", into=split_tensors(zeros, rows=1, columns=0, owner=0))
        for name, tensor in expected.items():
            assert torch.equal(local(found[name]), local(tensor)), name
        assert_same_bits(checkpoints.load("last"), values)
    check_unknown_placement(two)
    check_failing_rank(Path(folder) / "failed")
    check_damage_on_all_ranks(Path(folder) / "damaged")


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def check_unknown_placement(checkpoints: Checkpoints) -> None:
    partial = DTensor.from_local(torch.ones(2), DeviceMesh("cpu", [0, 1]), [Partial()], run_check=False)
    assert "tensor 'p': a checkpoint takes" in refused(lambda: checkpoints.save({"p": partial}, {}))


def check_failing_rank(folder: Path) -> None:
    """A full disk on one rank: all ranks raise, and the checkpoint before stands."""
    mesh = DeviceMesh("cpu", [0, 1])
    Checkpoints(folder).save({"x": block(torch.ones(3), mesh, 0)}, {})
    for failing in range(2):
        number = 1 if distributed.rank() == failing else None
        with storage.inject(number, "enospc"), pytest.raises(OSError, match="no space left"):
            Checkpoints(folder).save({"x": block(torch.zeros(3), mesh, 0)}, {})
    assert torch.equal(Checkpoints(folder).load("last")["x"], torch.ones(3))


def check_damage_on_all_ranks(folder: Path) -> None:
    """A shard that one rank finds damaged is an error on all."""
    Checkpoints(folder).save({"x": block(torch.ones(3), DeviceMesh("cpu", [0, 1]), 0)}, {})
    if distributed.rank() == 0:
        os.truncate(folder / "last-1" / "shard-1.safetensors", 20)
    distributed.barrier()
    assert "shard-1.safetensors is damaged" in refused(lambda: Checkpoints(folder).load("last"))


def test_checkpoint_survives_a_killed_rank(tmp_path: Path) -> None:
    run_on_two_ranks(check_killed_rank, str(tmp_path), killed=1)
    assert torch.equal(Checkpoints(tmp_path).load("last")["x"], torch.ones(3))


def check_killed_rank(folder: str) -> None:
    """Rank 1 dies with its shard half-written: rank 0 fails and publishes nothing."""
    mesh = DeviceMesh("cpu", [0, 1])
    Checkpoints(folder).save({"x": block(torch.ones(3), mesh, 0)}, {})
    with storage.inject(2 if distributed.rank() == 1 else None, "kill"), pytest.raises(RuntimeError):
        Checkpoints(folder).save({"x": block(torch.zeros(3), mesh, 0)}, {})
    os._exit(0)
