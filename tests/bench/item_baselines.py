"""What the item alone says of a click: two baselines beside the click models of a config, on its own test split.

    python -m tests.bench.item_baselines configs/movielens1m_seq_din.toml [--data DIR] [--prepared prepared]

  item popularity   how many rows of train and validation the item has, clicked or not
  item mean         (clicks + m) / (rows + 1) of the item there, with m the mean over all rows: one row's worth of it

Printed are AUC and, where the schema names a group, GAUC. Nothing is learned, so there are no seeds.
"""

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor

from features.prepared import prepare
from features.view import Prepared
from recsys.config import load_config
from recsys.evaluation.ctr import ScoredRows

BATCH = 8192


def columns(prepared: Prepared, *splits: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Item ids, first labels and groups of all rows [N] of splits."""
    item, label = prepared.schema.item, prepared.schema.labels[0].name
    batches = [batch for batch, _ in prepared.view(*splits).loader(BATCH, seed=0, shuffle=False).epoch(0)]
    groups = [batch.group for batch in batches if batch.group is not None]
    ids = torch.cat([batch.ids(item) for batch in batches])
    return ids, torch.cat([batch.labels[label] for batch in batches]), torch.cat(groups) if groups else None


def scores(prepared: Prepared) -> dict[str, Tensor]:
    """Score of every item id, by baseline."""
    ids, labels, _ = columns(prepared, *(name for name in ("train", "validation") if name in prepared.splits))
    num = prepared.encoder.vocabularies[prepared.schema.feature(prepared.schema.item).vocabulary].num_rows
    rows, clicks = ids.bincount(minlength=num).double(), ids.bincount(labels.double(), minlength=num)
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
    ids, labels, group = columns(prepared, "test")
    for name, of_item in scores(prepared).items():
        found = ScoredRows(labels=labels, logits=of_item[ids].float(), group=group).metrics()
        print(f"{name}: " + ", ".join(f"{key} {found[key]:.4f}" for key in ("auc", "gauc") if key in found))


if __name__ == "__main__":
    main()
