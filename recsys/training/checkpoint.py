"""Checkpoints: named tensors and a JSON description, whole on disk or not there, loadable at any number of ranks.

A folder of checkpoints holds, for each tag ("last", "best"), a pointer `<tag>.json` to one folder `<tag>-<number>`:

    shard-<rank>.safetensors   what that rank held: its part of the split tensors; from rank 0 also what all ranks share
    index.json                 which box of which tensor lies in which shard, the shards' SHA-256, the description

Each rank writes its own shard into a folder aside. When all have succeeded, rank 0 writes the index, renames the
folder, moves the pointer, removes the folder before it: a process killed anywhere leaves the old checkpoint or the new.
Loading checks every byte first, then copies the overlap of each saved box with the box that this rank asks for: the
number of ranks and the sharding may differ from those of saving. All ranks see one file system.

Not torch.distributed.checkpoint: its safetensors form has neither an index nor checksums, and was seen to load a table
without the rows of a lost shard, and a flipped byte, without a word. What it takes (DTensor) is taken here too.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from features import storage
from recsys import distributed

FORMAT = 1
TAG = re.compile(r"[a-z][a-z0-9_]*")

Index = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Box:
    """The part of a tensor that one rank holds: `values` fill [offset, offset + values.shape) of `shape`.

    writer: whether this rank saves it; of ranks that hold the same values only one does.
    """

    values: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    writer: bool


def box_of(name: str, tensor: Tensor) -> Box:
    """The part of a tensor that this rank holds: all of a plain one, a block of a DTensor split over one mesh axis.

    Raises ValueError for a DTensor over several mesh axes or of partial sums.
    """
    if not isinstance(tensor, DTensor):
        whole = tuple(tensor.shape)
        return Box(values=tensor.detach(), shape=whole, offset=(0,) * len(whole), writer=distributed.rank() == 0)
    shape, local = tuple(tensor.shape), tensor.to_local().detach()
    if len(tensor.placements) != 1 or not isinstance(tensor.placements[0], Shard | Replicate):
        raise ValueError(f"tensor {name!r}: a checkpoint takes a DTensor on one mesh axis, got {tensor.placements}")
    coordinate, placement = tensor.device_mesh.get_coordinate(), tensor.placements[0]
    if coordinate is None:
        return Box(values=local.new_empty((0, *shape[1:])), shape=shape, offset=(0,) * len(shape), writer=False)
    if isinstance(placement, Replicate):
        return Box(values=local, shape=shape, offset=(0,) * len(shape), writer=coordinate[0] == 0)
    block = -(-shape[placement.dim] // tensor.device_mesh.size())
    start = min(block * coordinate[0], shape[placement.dim])
    if local.shape[placement.dim] != min(block, shape[placement.dim] - start):
        raise ValueError(f"tensor {name!r}: {tuple(local.shape)} is no even block of {shape} on {tensor.device_mesh}")
    offset = tuple(start if axis == placement.dim else 0 for axis in range(len(shape)))
    return Box(values=local, shape=shape, offset=offset, writer=True)


class Checkpoints:
    """The checkpoints of one run, in a folder of their own. Every method is called by all ranks."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def exists(self, tag: str) -> bool:
        """Whether a checkpoint of that tag has been saved."""
        return self._pointer(tag).exists()

    def save(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], tag: str = "last") -> None:
        """Write tensors (plain: equal on all ranks; DTensor: each rank its part) and a JSON description under a tag.

        The one saved before under the tag is removed once the new one stands. Tensors come back bit for bit.
        Raises OSError on all ranks when writing fails on one, ValueError for a description that holds NaN or infinity;
        the checkpoint before then stands.
        """
        description = json.loads(json.dumps(dict(meta), allow_nan=False))
        boxes = {name: box_of(name, tensor) for name, tensor in tensors.items()}
        with ExitStack() as stack:
            name, aside = distributed.together(lambda: self._begin(tag, stack))[0]
            shards = distributed.together(lambda: write_shard(aside, boxes))
            index = index_of(shards, description)
            distributed.together(lambda: self._publish(tag, name, stack, aside, index))

    def meta(self, tag: str) -> dict[str, Any]:
        """The JSON description saved under a tag."""
        _, index = self._open(tag)
        return dict(index["meta"])

    def content_hash(self, tag: str) -> str:
        """SHA-256 (hex) of the tensors saved under a tag: equal ones, saved by as many ranks, have the same."""
        _, index = self._open(tag)
        digests = {name: file["sha256"] for name, file in index["files"].items()}
        return sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    def load(
        self,
        tag: str,
        into: Mapping[str, Tensor] | None = None,
        *,
        prefix: str = "",
        grown: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """The tensors saved under a tag, whole, or, with `into`, copied into this rank's part of those given.

        prefix: only tensors whose names start with it. `into` holds just these names, with the saved shapes and types.
        grown: names of tensors that may have more rows than were saved; those keep the values that they have.
        Raises ValueError naming what is missing, too many or different, and the file that is lost or damaged.
        """
        folder, index = self._open(tag)
        saved = {name: entry for name, entry in index["tensors"].items() if name.startswith(prefix)}
        targets = empty_like_saved(saved) if into is None else dict(into)
        check_targets(folder, saved, targets, grown)
        distributed.together(lambda: verify_shards(folder, index["files"]))
        boxes = {name: box_of(name, tensor) for name, tensor in targets.items()}
        read_shards(folder, saved, boxes)
        return targets

    # --- pointer and index ---

    def _pointer(self, tag: str) -> Path:
        if not TAG.fullmatch(tag):
            raise ValueError(f"a checkpoint's tag is lower-case letters, digits and _, got {tag!r}")
        return self.folder / f"{tag}.json"

    def _target(self, tag: str) -> dict[str, Any]:
        """The pointer's content: the folder's name and the SHA-256 of its index."""
        pointer = self._pointer(tag)
        if not pointer.exists():
            raise ValueError(f"there is no checkpoint {tag!r} in {self.folder}")
        target = read_json(pointer, ("folder", "index_sha256"))
        if not re.fullmatch(rf"{tag}-[0-9]+", str(target["folder"])):
            raise ValueError(f"checkpoint file {pointer} is damaged: it names folder {target['folder']!r}")
        return target

    def _open(self, tag: str) -> tuple[Path, Index]:
        """The folder that the pointer names, and its index, verified."""
        target = self._target(tag)
        folder = self.folder / target["folder"]
        path = folder / "index.json"
        if not path.is_file():
            raise ValueError(f"checkpoint file {path} is missing")
        found = storage.sha256_file(path)
        if found != target["index_sha256"]:
            raise ValueError(f"checkpoint file {path} is damaged: its SHA-256 is {found}, not {target['index_sha256']}")
        index = read_json(path, ("format", "meta", "files", "tensors"))
        if index["format"] != FORMAT:
            raise ValueError(f"checkpoint file {path} has format {index['format']}, this version reads {FORMAT}")
        return folder, index

    # --- writing, on rank 0 ---

    def _begin(self, tag: str, stack: ExitStack) -> tuple[str, Path]:
        """The name of a new folder, and a folder aside that gets this name when the stack is closed."""
        if distributed.rank() != 0:
            return "", self.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_stale(tag)
        current: str = self._target(tag)["folder"] if self.exists(tag) else f"{tag}-0"
        name = f"{tag}-{int(current.rpartition('-')[2]) + 1}"
        return name, stack.enter_context(storage.folder_aside(self.folder / name))

    def _publish(self, tag: str, name: str, stack: ExitStack, aside: Path, index: Index) -> None:
        """Finish the folder, then let the pointer name it, then remove the one before."""
        if distributed.rank() != 0:
            return
        storage.write_json(aside / "index.json", index)
        digest = storage.sha256_file(aside / "index.json")
        stack.close()
        storage.write_json(self._pointer(tag), {"folder": name, "index_sha256": digest})
        self._remove_stale(tag)

    def _remove_stale(self, tag: str) -> None:
        """Remove what killed writers left, and the tag's folders that its pointer does not name."""
        storage.remove_leftovers(self.folder)
        current = self._target(tag)["folder"] if self.exists(tag) else ""
        for path in sorted(self.folder.glob(f"{tag}-*")):
            if path.name != current:
                storage.remove_tree(path)


# --- shards ---


def write_shard(folder: Path, boxes: Mapping[str, Box]) -> Index:
    """Write what this rank holds; returns the file's name, size and SHA-256, and every tensor's type, shape and box."""
    values = unaliased({name: box.values for name, box in boxes.items() if box.writer and box.values.numel()})
    shard: Index = {"tensors": {name: _describe(box, name in values) for name, box in boxes.items()}}
    if not values:
        return shard
    path = folder / f"shard-{distributed.rank()}.safetensors"
    try:
        with storage.third_party(path.name, folder):
            save_file(values, path)
    except SafetensorError as error:
        raise OSError(f"checkpoint file {path} could not be written: {error}") from error
    return shard | {"file": path.name, "bytes": path.stat().st_size, "sha256": storage.sha256_file(path)}


def _describe(box: Box, written: bool) -> dict[str, Any]:
    dtype = str(box.values.dtype).removeprefix("torch.")
    described: dict[str, Any] = {"dtype": dtype, "shape": list(box.shape)}
    if written:
        described["box"] = {"offset": list(box.offset), "size": list(box.values.shape)}
    return described


def unaliased(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, copied where they share memory: the form that safetensors writes."""
    seen: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu()
        memory = plain.untyped_storage()
        shared = memory.data_ptr() in seen or memory.nbytes() != plain.numel() * plain.element_size()
        alone[name] = plain.clone(memory_format=torch.contiguous_format) if shared else plain.contiguous()
        seen.add(memory.data_ptr())
    return alone


def index_of(shards: Sequence[Index], meta: Mapping[str, Any]) -> Index:
    """The index of a checkpoint from what every rank wrote. Raises ValueError when ranks disagree about a tensor."""
    tensors: dict[str, dict[str, Any]] = {}
    for shard in shards:
        for name, described in shard["tensors"].items():
            form = {"dtype": described["dtype"], "shape": described["shape"]}
            entry = tensors.setdefault(name, form | {"pieces": []})
            if form != {key: entry[key] for key in form}:
                raise ValueError(f"ranks hold tensor {name!r} as {form} and as {entry['dtype']} {entry['shape']}")
            if "box" in described:
                entry["pieces"].append({"file": shard["file"], **described["box"]})
    files = {shard["file"]: {"bytes": shard["bytes"], "sha256": shard["sha256"]} for shard in shards if "file" in shard}
    return {"format": FORMAT, "world_size": len(shards), "meta": dict(meta), "files": files, "tensors": tensors}


def verify_shards(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Check size and SHA-256 of this rank's share of the files. Raises ValueError naming the first that is wrong."""
    for name in sorted(files)[distributed.rank() :: distributed.world_size()]:
        path, expected = folder / name, files[name]
        if not path.is_file():
            raise ValueError(f"checkpoint file {path} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise ValueError(f"checkpoint file {path} is damaged: it has {size} bytes, not {expected['bytes']}")
        found = storage.sha256_file(path)
        if found != expected["sha256"]:
            raise ValueError(f"checkpoint file {path} is damaged: its SHA-256 is {found}, not {expected['sha256']}")


def empty_like_saved(saved: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Whole tensors of the saved shapes and types, to be filled."""
    return {name: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"])) for name, entry in saved.items()}


def check_targets(
    folder: Path, saved: Mapping[str, Mapping[str, Any]], targets: Mapping[str, Tensor], grown: Collection[str] = ()
) -> None:
    """Raise ValueError unless names, shapes and types are those saved; of the grown, rows may be more."""
    missing, unknown = sorted(targets.keys() - saved.keys()), sorted(saved.keys() - targets.keys())
    if missing or unknown:
        raise ValueError(f"checkpoint {folder} lacks tensors {missing} and holds {unknown}, which are not asked for")
    for name, target in targets.items():
        shape = list(target.shape)
        if name in grown and shape:
            shape[0] = min(shape[0], saved[name]["shape"][0])
        came = (str(target.dtype).removeprefix("torch."), shape)
        if came != (saved[name]["dtype"], saved[name]["shape"]):
            entry = saved[name]
            raise ValueError(f"tensor {name!r} is {entry['dtype']} {entry['shape']} in checkpoint {folder}, not {came}")


def read_shards(folder: Path, saved: Mapping[str, Mapping[str, Any]], boxes: Mapping[str, Box]) -> None:
    """Copy into every box its overlap with the saved pieces. Raises ValueError when these do not fill it."""
    filled = dict.fromkeys(boxes, 0)
    for file in sorted({piece["file"] for entry in saved.values() for piece in entry["pieces"]}):
        with safe_open(folder / file, framework="pt") as shard:
            for name, piece in _pieces_in(file, saved):
                filled[name] += _copy_overlap(shard, name, piece, boxes[name])
    for name, box in boxes.items():
        wanted = _shared(box, saved[name]["shape"])
        if filled[name] != wanted:
            raise ValueError(f"checkpoint {folder} holds {filled[name]} of {wanted} values of {name!r}")


def _shared(box: Box, shape: Sequence[int]) -> int:
    """How many values of a box lie within a tensor of that shape."""
    ends = zip(box.offset, box.values.shape, shape, strict=True)
    return prod(max(0, min(start + size, end) - start) for start, size, end in ends)


def _pieces_in(file: str, saved: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, entry in saved.items():
        yield from ((name, piece) for piece in entry["pieces"] if piece["file"] == file)


def _copy_overlap(shard: Any, name: str, piece: Mapping[str, Any], box: Box) -> int:
    """Copy the values that the piece and the box share; returns their number."""
    starts = [max(pair) for pair in zip(piece["offset"], box.offset, strict=True)]
    ends = zip(piece["offset"], piece["size"], box.offset, box.values.shape, strict=True)
    sizes = [min(a + n, b + m) - start for start, (a, n, b, m) in zip(starts, ends, strict=True)]
    if any(size <= 0 for size in sizes):
        return 0
    source = _slices(starts, sizes, piece["offset"])
    values = shard.get_slice(name)[source] if source else shard.get_tensor(name)
    box.values[_slices(starts, sizes, box.offset)].copy_(values)
    return int(values.numel())


def _slices(starts: Sequence[int], sizes: Sequence[int], offset: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s - o, s - o + n) for s, n, o in zip(starts, sizes, offset, strict=True))


def read_json(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON object in a file; ValueError naming the file when it is none or lacks a key."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"checkpoint file {path} is damaged: {error}") from error
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise ValueError(f"checkpoint file {path} is damaged: it lacks one of {list(keys)}")
    return content
