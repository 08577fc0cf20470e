"""Time of a training step of the tables on a GPU: torch's EmbeddingBag, the plain backend, with fbgemm the fused one.

    make bench-gpu      or: python -m tests.bench.bench_gpu [--rows 1000000] [--tables 8 26] [--batch 4096] [--dim 64]

A step is forward, backward and update with one id per feature and row; least milliseconds between two synchronised
clocks, candidates in turns. What does not import is named and left out.
"""

import argparse
import importlib.util
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from features.batch import Batch
from recsys.embedding import DenseTable, EmbeddingCollection, RowWiseAdagrad, TableSpec, UnifiedTable
from tests.bench.peers import Ids, Step, bags_step


def collection_step(
    ids: Ids, spec: TableSpec, backend: str, columns: Mapping[str, Tensor], grads: list[Tensor]
) -> Step:
    """A batch through a collection on the GPU."""
    collection = EmbeddingCollection(ids, {"ids": spec}, backend=backend, optimizer=RowWiseAdagrad(lr=0.01))  # type: ignore[arg-type]
    placed, batch = collection.to("cuda"), Batch(features=columns)
    return lambda: torch.autograd.backward(list(placed(batch).values()), grads)


def least_ms(steps: Mapping[str, Step], repeats: int) -> dict[str, float]:
    """Milliseconds of the fastest run of each, in turns."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats + 3):
        for name, step in steps.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return best


def run(tables: int, backends: list[str], settings: argparse.Namespace) -> None:
    """All candidates for one number of tables."""
    rows, dim, size = settings.rows, settings.dim, settings.batch
    generator = torch.Generator("cuda").manual_seed(0)
    columns = {f"f{t}": torch.randint(rows, (size,), generator=generator, device="cuda") for t in range(tables)}
    grads = [torch.randn(size, dim, generator=generator, device="cuda") * 1e-3 for _ in range(tables)]
    unified = UnifiedTable(num_embeddings=rows * tables // 2, chunk_dim=dim // 4)
    steps = {"EmbeddingBag(sparse) and Adagrad": bags_step(rows, dim, columns, grads, device="cuda")}
    for backend in backends:
        dense = DenseTable(embedding_dim=dim)
        steps[f"{backend} collection"] = collection_step(Ids(tables, rows, 1), dense, backend, columns, grads)
        steps[f"{backend}, four chunks of {dim // 4}"] = collection_step(
            Ids(tables, rows, 4), unified, backend, columns, grads
        )
    best = least_ms(steps, settings.repeats)
    print(f"{tables} tables of {rows:,} x {dim}, batch {size}, {torch.cuda.get_device_name()}")
    for name, milliseconds in best.items():
        print(f"  {name:<42} {milliseconds:9.3f} ms  {milliseconds / next(iter(best.values())):6.2f}x")


def main() -> None:
    """Read the flags, run every number of tables."""
    parser = argparse.ArgumentParser(description="Time of a training step of embedding tables on a GPU, as ratios")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows per table")
    parser.add_argument("--tables", type=int, nargs="+", default=[8, 26])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=50)
    settings = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here: nothing was measured")
    backends = ["plain"]
    if importlib.util.find_spec("fbgemm_gpu") is None:
        print("fbgemm-gpu is not installed: the fused backend is left out")
    else:
        backends.append("fused")
    for tables in settings.tables:
        run(tables, backends, settings)


if __name__ == "__main__":
    main()
