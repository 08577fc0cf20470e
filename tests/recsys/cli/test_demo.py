"""`recsys demo`: what it needs, and (slow) that its table says what the project promises."""

import json
from pathlib import Path

import pytest

from tests.recsys.forked import Forker

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def test_demo_names_the_configs_that_it_misses(tmp_path: Path) -> None:
    with Forker(tmp_path) as forker:
        ended = forker.run("demo")
    assert ended.code == 2
    assert "has no demo.toml" in ended.err


@pytest.mark.slow
def test_demo_beats_its_baselines(tmp_path: Path) -> None:
    with Forker(tmp_path) as forker:
        ended = forker.run("demo", "--configs", str(CONFIGS), "--json")
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 1
    found = json.loads(ended.out)
    assert all(row["recall@20 - Popularity"].startswith("+") for row in found["retrieval"][1:])
    assert int(found["ranking"][1]["gap closed"].rstrip("%")) >= 50
    assert len(found["known"]) == len(found["new"]) == len(found["clicks"]) == 5
