"""`recsys prepare` says what looks like leakage, a line each, whether it prepares or finds what was prepared."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.recsys.cli.conftest import call

SCHEMA = 'name = "log"\n[features.shop]\ntable = "ids"\n[features.verdict]\ntable = "ids"\n[labels.click]\n'
CONFIG = """
[data]
name = "log"
source = "csv"
path = "log.csv"
schema = "schema.toml"
split = { kind = "order" }

[model]
name = "lr"

[tables.ids]
method = "dense"
embedding_dim = 1
"""


@pytest.mark.parametrize("json", [False, True])
def test_prepare_warns_of_leakage_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, json: bool) -> None:
    monkeypatch.chdir(tmp_path)
    click = np.random.default_rng(0).integers(0, 2, 1000)
    log = pd.DataFrame({"shop": np.arange(1000) % 9, "verdict": np.where(click > 0, "yes", "no"), "click": click})
    log.to_csv("log.csv", index=False)
    Path("schema.toml").write_text(SCHEMA)
    Path("config.toml").write_text(CONFIG)
    for _ in range(2):
        result = call("prepare", "config.toml", "--data", ".", *(["--json"] if json else []))
        assert result.exit_code == 0
        warned = [line for line in result.stderr.splitlines() if "warning:" in line]
        assert len(warned) == 1
        assert warned[0].startswith("warning: feature 'verdict' alone orders the train rows by label 'click'")
        assert not json or len(result.stdout.splitlines()) == 1
