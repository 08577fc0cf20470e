"""The click model of the small project with its data prepared, and a table that fails as it is told to."""

from pathlib import Path

from features.prepared import Prepared, prepare
from recsys.config import RunConfig, load_config
from tests.recsys.small_project import write_project

FAULTY = """
import os
import signal

from recsys import DenseTable
from recsys.embedding.dense import RowPerId


class Rows(RowPerId):
    fault = ""

    def rows(self, ids):
        if not self.training:
            return super().rows(ids)
        print("a line of the table", flush=True)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"value": ValueError, "os": OSError}.get(self.fault, RuntimeError)("it broke")


class FaultyTable(DenseTable):
    fault: str = ""

    def build(self, name, readers, seed=0):
        if self.fault == "build":
            raise ValueError("this cannot\\nbe built")
        tables = super().build(name, readers, seed)
        found = {key: Rows(table.name, table.stores[0]) for key, table in tables.items()}
        for table in found.values():
            table.fault = self.fault
        return found
"""


def small_sweep(folder: Path) -> tuple[RunConfig, Prepared]:
    """The config "ctr" of one epoch, and its data, prepared below the folder."""
    project = write_project(folder / "project")
    config = load_config(project / "ctr.toml", ["training.max_epochs=1"])
    return config, prepare(config.data, data_root=None, schema_dir=project, out=folder / "prepared")


def faulty(config: RunConfig, fault: str) -> RunConfig:
    """The config with the table that fails; `write_faulty` has put it on the path."""
    values = config.model_dump(mode="json")
    values["tables"]["specs"] = {"ids": {"method": "faulty:FaultyTable", "embedding_dim": 8, "fault": fault}}
    return RunConfig.model_validate(values)


def write_faulty(folder: Path) -> None:
    """The module of the table, importable once the folder is on the path."""
    (folder / "faulty.py").write_text(FAULTY)
