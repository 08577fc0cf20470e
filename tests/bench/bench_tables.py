"""Time of a training step of the tables: our fused collection, the bare fbgemm op, and torch's EmbeddingBag.

    make bench      or: python -m tests.bench.bench_tables [--rows 1000000] [--tables 8 26] [--batch 4096] [--dim 64]

A step is forward, backward and update with one id per feature and row. One thread; the candidates are interleaved and
the least CPU time of each counts; what is judged is the ratios. The multiplexed line reads --chunks pieces per
feature out of one store, its peer is the bare op on the same number of accesses of that width; so for the compressed
tables. Served rows are looked up at each precision, forward alone. The sharded lines train on gloo ranks of this
machine, each with --batch / ranks rows; the time is that of the slowest rank.
Memory: each line holds rows x tables x dim floats, EmbeddingBag with Adagrad twice that.
"""

import argparse
import gc
from collections.abc import Callable, Mapping
from functools import partial
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    BoundsCheckMode,
    ComputeDevice,
    EmbeddingLocation,
    OptimType,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from features.batch import Batch
from recsys.compression.factorized import CompositionalTable
from recsys.compression.robe import RobeTable
from recsys.embedding import DenseTable, EmbeddingCollection, RowWiseAdagrad, TableSpec, UnifiedTable
from recsys.embedding.collection import Backend
from recsys.embedding.precision import PRECISIONS, pack, read_rows
from tests.bench.peers import Ids, Step, bags_step, least_ms


def fused_step(
    ids: Ids, spec: TableSpec, columns: Mapping[str, Tensor], grads: list[Tensor], backend: Backend = "fused"
) -> Step:
    """What users get: a batch through the collection."""
    collection = EmbeddingCollection(ids, {"ids": spec}, backend=backend, optimizer=RowWiseAdagrad(lr=0.01))
    batch = Batch(features=columns)
    return lambda: torch.autograd.backward(list(collection(batch).values()), grads)


def bare_step(rows: list[int], dim: int, indices: Tensor, grad: Tensor) -> Step:
    """The op by itself, its inputs ready: one table per entry of `rows`, one id per bag."""
    op = SplitTableBatchedEmbeddingBagsCodegen(
        [(count, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for count in rows],
        optimizer=OptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.01,
        eps=1e-8,
        pooling_mode=PoolingMode.SUM,
        bounds_check_mode=BoundsCheckMode.NONE,
        device=torch.device("cpu"),
    )
    offsets = torch.arange(len(indices) + 1)
    return lambda: op(indices, offsets).backward(grad)


def report(title: str, steps: Mapping[str, Step], repeats: int) -> None:
    """One line per candidate with its ratio to the first."""
    best = least_ms(steps, repeats)
    first = next(iter(best.values()))
    print(title)
    for name, milliseconds in best.items():
        print(f"  {name:<42} {milliseconds:9.2f} ms  {milliseconds / first:6.2f}x")


def run(tables: int, settings: argparse.Namespace) -> None:
    """The collection beside the bare op, then beside EmbeddingBag: two tables at a time fit where three do not."""
    rows, dim, size = settings.rows, settings.dim, settings.batch
    generator = torch.Generator().manual_seed(0)
    columns = {f"f{t}": torch.randint(rows, (size,), generator=generator) for t in range(tables)}
    grads = [torch.randn(size, dim, generator=generator) * 1e-3 for _ in range(tables)]
    shape = f"{tables} tables of {rows:,} x {dim}, batch {size}"
    peers: dict[str, Callable[[], Step]] = {
        "bare fbgemm op": lambda: bare_step(
            [rows] * tables, dim, torch.cat(list(columns.values())), torch.cat(grads, 1)
        ),
        "EmbeddingBag(sparse) and Adagrad": lambda: bags_step(rows, dim, columns, grads),
    }
    for name, peer in peers.items():
        steps = {name: peer()}
        steps["fused collection"] = fused_step(Ids(tables, rows), DenseTable(embedding_dim=dim), columns, grads)
        report(shape, steps, settings.repeats)
        del steps
        gc.collect()
    run_multiplexed(tables, settings)


def run_multiplexed(tables: int, settings: argparse.Namespace) -> None:
    """Chunks out of one store beside the bare op on the same accesses, and beside one wide row each."""
    rows, dim, size, chunks = settings.rows, settings.dim, settings.batch, settings.chunks
    generator = torch.Generator().manual_seed(1)
    half, total, accesses = rows // 2, rows * tables // 2, tables * size * chunks
    columns = {f"f{t}": torch.randint(half, (size,), generator=generator) for t in range(tables)}
    grads = [torch.randn(size, dim, generator=generator) * 1e-3 for _ in range(tables)]
    indices = torch.randint(total * chunks, (accesses,), generator=generator)
    flat = torch.cat(grads).view(accesses, dim // chunks)
    unified = UnifiedTable(num_embeddings=total * chunks, chunk_dim=dim // chunks)
    steps = {
        f"bare op, {accesses:,} accesses": bare_step([total * chunks], dim // chunks, indices, flat),
        f"multiplexed, {chunks} chunks of {dim // chunks}": fused_step(
            Ids(tables, rows, chunks), unified, columns, grads
        ),
        f"one row of {dim} each": fused_step(Ids(tables, half), DenseTable(embedding_dim=dim), columns, grads),
    }
    report(f"{tables} features, batch {size}, {total * chunks:,} rows of {dim // chunks}", steps, settings.repeats)


def run_compressed(tables: int, settings: argparse.Namespace) -> None:
    """Quotient-remainder and ROBE beside the bare op on their own accesses."""
    rows, dim, size = settings.rows, settings.dim, settings.batch
    generator = torch.Generator().manual_seed(0)
    columns = {f"f{t}": torch.randint(rows, (size,), generator=generator) for t in range(tables)}
    grads = [torch.randn(size, dim, generator=generator) * 1e-3 for _ in range(tables)]
    compo = CompositionalTable(embedding_dim=dim, budget="10%")
    robe = RobeTable(embedding_dim=dim, budget="10%", num_chunks=2)
    for name, spec, accesses, width in (
        ("quotient-remainder", compo, 2 * tables * size, dim),
        ("ROBE, two blocks", robe, 2 * tables * size, dim // 2),
    ):
        total = rows * tables // 10 * dim // width
        indices = torch.randint(total, (accesses,), generator=generator)
        flat = torch.randn(accesses, width, generator=generator) * 1e-3
        steps = {
            f"bare op, {accesses:,} accesses of {width}": bare_step([total], width, indices, flat),
            name: fused_step(Ids(tables, rows), spec, columns, grads),
        }
        report(f"{tables} tables of {rows:,} x {dim} at 10 %, batch {size}", steps, settings.repeats)


def run_served(settings: argparse.Namespace) -> None:
    """One lookup of --batch served rows at every precision."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(settings.rows, settings.dim, generator=generator)
    ids = torch.randint(settings.rows, (settings.batch,), generator=generator)
    steps: dict[str, Step] = {}
    for precision in PRECISIONS:
        packed = pack(values, precision)
        steps[precision] = partial(read_rows, packed, ids, precision, settings.dim)
    title = f"a lookup of {settings.batch} served rows out of {settings.rows:,} x {settings.dim}"
    report(title, steps, max(200, settings.repeats))


def sharded_rank(rank: int, world_size: int, folder: str, tables: int, settings: argparse.Namespace) -> None:
    """One rank's steps; rank 0 prints the slowest rank's least CPU time."""
    torch.set_num_threads(1)
    place = f"file://{folder}/{world_size}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world_size)
    generator = torch.Generator().manual_seed(rank)
    size, rows = settings.batch // world_size, settings.rows
    columns = {f"f{t}": torch.randint(rows, (size,), generator=generator) for t in range(tables)}
    grads = [torch.randn(size, settings.dim, generator=generator) * 1e-3 for _ in range(tables)]
    step = fused_step(Ids(tables, rows), DenseTable(embedding_dim=settings.dim), columns, grads, backend="sharded")
    slowest = torch.tensor([least_ms({"": step}, settings.repeats)[""]])
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    if rank == 0:
        print(f"  sharded collection, {world_size} rank{'s' * (world_size > 1):<21} {slowest.item():9.2f} ms a rank")
    dist.destroy_process_group()


def run_sharded(tables: int, settings: argparse.Namespace) -> None:
    """The sharded backend with the same tables at one and two ranks."""
    print(f"{tables} tables of {settings.rows:,} x {settings.dim}, batch {settings.batch} over the ranks")
    with TemporaryDirectory() as folder:
        for world_size in (1, 2):
            spawn(sharded_rank, (world_size, folder, tables, settings), nprocs=world_size)


def main() -> None:
    """Read the flags, run every number of tables."""
    parser = argparse.ArgumentParser(description="Time of a training step of embedding tables, as ratios")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows per table")
    parser.add_argument("--tables", type=int, nargs="+", default=[8, 26])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=20)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    run_served(settings)
    for tables in settings.tables:
        run(tables, settings)
        run_sharded(tables, settings)
    run_compressed(min(settings.tables), settings)


if __name__ == "__main__":
    main()
