"""Points are counted, logged and failed one at a time."""

from pathlib import Path

import pytest

from features.faults import Plan, fault_points, inject, plan_of, point


def test_without_a_plan_nothing_is_recorded() -> None:
    point("write:a")
    assert fault_points() == []


def test_inject_fails_once_at_its_point_after_the_damage() -> None:
    damaged: list[str] = []
    with inject(2) as points:
        point("write:a", damage=lambda: damaged.append("a"))
        with pytest.raises(OSError, match=r"injected at point 2, rename:a"):
            point("rename:a", damage=lambda: damaged.append("b"))
        point("write:b")
        assert fault_points() == points == ["write:a", "rename:a", "write:b"]
    assert damaged == ["b"]


def test_inject_restores_the_outer_plan() -> None:
    with inject() as outer:
        with inject() as inner:
            point("in")
        point("out")
    assert (inner, outer) == (["in"], ["out"])


def test_plan_logs_labels(tmp_path: Path) -> None:
    plan = plan_of("", str(tmp_path / "log"))
    assert isinstance(plan, Plan)
    plan.reach("write:a", None)
    plan.reach("write:b", None)
    assert (tmp_path / "log").read_text() == "write:a\nwrite:b\n"


def test_plan_of_the_environment() -> None:
    assert plan_of("", None) is None
    plan = plan_of("3:enospc", None)
    assert plan is not None
    assert (plan.number, plan.kind) == (3, "enospc")
