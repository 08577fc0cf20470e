"""The README's code runs: what a newcomer copies must work as it stands."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, holding: str) -> str:
    """The fenced block of the language that holds a text, without its indentation."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", README, flags=re.DOTALL | re.MULTILINE)
    found = [text.replace("\n" + indent, "\n").removeprefix(indent) for indent, text in blocks if holding in text]
    assert len(found) == 1, f"{len(found)} {language} blocks hold {holding!r}"
    return str(found[0])


def test_readme_training_loop_learns(tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text(block("toml", "log1p"))
    (tmp_path / "train.py").write_text(block("python", "class Ranker"))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    run = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    before, after = map(float, re.findall(r"loss ([\d.]+) -> ([\d.]+)", run.stdout)[0])
    assert after < 0.8 * before


def test_readme_names_files_that_exist() -> None:
    names = set(re.findall(r"`((?:features|recsys|serving|tests)/[\w/.]+)`", README))
    assert len(names) >= 5
    assert not [name for name in names if not (ROOT / name).exists()]
