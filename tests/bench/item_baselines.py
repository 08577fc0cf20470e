"""What the item alone says of a click: two baselines beside the click models of a config, on its own test split.

    python -m tests.bench.item_baselines configs/movielens1m_seq_din.toml [--data DIR] [--prepared prepared]

  item popularity   how many rows of train and validation the item has, clicked or not
  item mean         (clicks + m) / (rows + 1) of the item there, with m the mean over all rows: one row's worth of it

Printed are AUC and, where the schema names a group, GAUC. Nothing is learned, so there are no seeds.
"""

import argparse
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from features.prepared import prepare
from features.view import Prepared
from recsys.config import load_config
from recsys.evaluation.ctr import ScoredRows


def columns(prepared: Prepared, *splits: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions of items in the catalogue, first labels and groups of all rows [N] of splits."""
    names = ["item", f"label:{prepared.schema.labels[0].name}", *(["group"] if prepared.schema.group else [])]
    files = [file for split in splits if split in prepared.splits for file in prepared.files(split)]
    table = pa.concat_tables(pq.read_table(file, columns=names) for file in files)
    item, label, *group = (torch.tensor(table[name].to_numpy()) for name in names)
    return item, label, group[0] if group else None


def scores(prepared: Prepared) -> dict[str, Tensor]:
    """Score of every item, by baseline."""
    items, labels, _ = columns(prepared, "train", "validation")
    rows = items.bincount(minlength=prepared.counts["items"]).double()
    clicks = items.bincount(labels.double(), minlength=len(rows))
    return {"item popularity": rows, "item mean": (clicks + labels.double().mean()) / (rows + 1)}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("RECSYS_DATA"))
    parser.add_argument("--prepared", type=Path, default=Path("prepared"))
    args = parser.parse_args()
    data_root = None if args.data is None else Path(args.data)
    config = load_config(args.config)
    prepared = prepare(config.data, data_root=data_root, schema_dir=args.config.parent, out=args.prepared)
    items, labels, group = columns(prepared, "test")
    for name, of_item in scores(prepared).items():
        found = ScoredRows(labels=labels, logits=of_item[items].float(), group=group).metrics()
        print(f"{name}: " + ", ".join(f"{key} {found[key]:.4f}" for key in ("auc", "gauc") if key in found))


if __name__ == "__main__":
    main()
