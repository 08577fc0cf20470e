"""Reading and writing files: every write, fsync and rename of ours, and one way to open a path or a URI.

A write is made aside, in a sibling whose name starts with ".aside-", synced, renamed, and the folder synced: after a
crash at any point the old content or the new content stands under the name, never a mixture. A leftover sibling of a
killed process is unlocked and can be removed (`remove_leftovers`); one in use is locked by its writer.
A third-party writer (DuckDB, torch's checkpoint writer) writes into a `folder_aside` between the points of
`third_party`. The points are those of `features/faults.py`; its `inject` and `fault_points` can be imported from here.

URIs (s3://, gs://, hdfs://, file://) are opened through pyarrow.fs. What must be mapped or given to other libraries is
copied into a local cache first (`local`). This is not a virtual file system: runs, checkpoints and histories in use are
local paths.
"""

import errno
import fcntl
import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

import pyarrow as pa
import pyarrow.fs

from features.faults import fault_points, inject, point

__all__ = [
    "fault_points", "file_aside", "folder_aside", "inject", "is_uri", "local", "open_input", "put", "remove_leftovers",
    "remove_tree", "replace", "scratch_folder", "sha256_file", "sync_tree", "third_party", "write_bytes", "write_json",
    "write_text",
]  # fmt: skip

ASIDE = ".aside-"
_BLOCK = 1 << 20


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file so that a crash leaves its old content or all of the new.

    Raises OSError as the system does (ENOSPC, EACCES); the old content then still stands and nothing is left beside it.
    """
    path = Path(path)
    with file_aside(path) as aside:
        point(f"write:{path.name}", damage=lambda: _write(aside, data[: len(data) // 2]))
        _write(aside, data)


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """`write_bytes` of JSON with sorted keys, two spaces and a final newline. NaN and infinities raise ValueError."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def file_aside(path: Path | str) -> Iterator[Path]:
    """Yield a sibling (an empty file) to be written by the block; on success it is synced and renamed to `path`.

    Parents of `path` are made. On an error the sibling is removed and what stood at `path` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside_name(path)
    with _naming(path):
        point(f"create:{path.name}")
        with _locked(os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)), _removed_on_error(aside):
            yield aside
            _sync_file(aside, path.name)
            point(f"rename:{path.name}")
            os.replace(aside, path)
        _sync_folder(path.parent, f"of {path.name}")


@contextmanager
def folder_aside(path: Path | str) -> Iterator[Path]:
    """Yield an empty sibling folder; on success all that it holds is synced and it is renamed to `path`.

    Parents of `path` are made. On an error the sibling is removed. Raises FileExistsError if `path` exists: a finished
    folder is never replaced. Leftovers of killed writers of the same path are removed first.
    """
    path = Path(path)
    _refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    aside = _aside_name(path)
    with _naming(path):
        point(f"create:{path.name}")
        aside.mkdir()
        with _locked(os.open(aside, os.O_RDONLY)), _removed_on_error(aside):
            yield aside
            sync_tree(aside)
            point(f"rename:{path.name}")
            _rename_new(aside, path)
        _sync_folder(path.parent, f"of {path.name}")


@contextmanager
def scratch_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty sibling folder of `path` for work in between; it is gone afterwards, or a leftover of `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    aside = _aside_name(path)
    aside.mkdir()
    with _locked(os.open(aside, os.O_RDONLY)):
        try:
            yield aside
        finally:
            _delete(aside)


@contextmanager
def third_party(label: str, folder: Path) -> Iterator[None]:
    """Mark a block in which another library writes into `folder`: points before, half-written and after.

    At the half-written point the files there are cut to half before the fault, as if the writer had died midway. The
    folder must be the sibling of a `folder_aside`, which makes the result durable.
    """
    point(f"before:{label}")
    yield
    point(f"half-written:{label}", damage=lambda: _halve(folder))
    point(f"after:{label}")


def sync_tree(path: Path | str) -> None:
    """Make every file and folder below `path`, and `path` itself, durable; children first, in a fixed order."""
    path = Path(path)
    for child in sorted(path.rglob("*"), reverse=True):
        name = child.relative_to(path).as_posix()
        if child.is_dir():
            _sync_folder(child, name)
        elif child.is_file():
            _sync_file(child, name)
    _sync_folder(path, ".")


def replace(source: Path | str, target: Path | str) -> None:
    """Rename durably; a file at `target` is replaced at once."""
    source, target = Path(source), Path(target)
    point(f"rename:{target.name}")
    os.replace(source, target)
    for folder in {source.parent, target.parent}:
        _sync_folder(folder, f"of {target.name}")


def remove_tree(path: Path | str) -> None:
    """Remove a folder or file; a crash midway leaves it whole or gone under its name. An absent one is no error."""
    path = Path(path)
    aside = _aside_name(path)
    point(f"remove:{path.name}")
    if not path.exists() and not path.is_symlink():
        return
    os.rename(path, aside)
    point(f"removing:{path.name}")
    _delete(aside)


def remove_leftovers(folder: Path | str, name: str | None = None) -> list[Path]:
    """Remove what killed writers left in `folder` (of one name, or all); what a live writer has locked stays."""
    pattern = f"{ASIDE}{'?' * 12}-{'*' if name is None else glob.escape(name)}"
    dead = [aside for aside in sorted(Path(folder).glob(pattern)) if not _in_use(aside)]
    for aside in dead:
        _delete(aside)
    return dead


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hex, read in blocks."""
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_uri(path: Path | str) -> bool:
    """Whether it names a scheme ("s3://...") rather than a local path."""
    return isinstance(path, str) and "://" in path


def open_input(uri: Path | str) -> pa.NativeFile:
    """Open a local path or URI for reading, seekable; the caller closes it. FileNotFoundError if it is absent."""
    filesystem, path = _filesystem(uri)
    return filesystem.open_input_file(path)


def local(path: Path | str, cache: Path | None = None) -> Path:
    """A local path as it is; a URI's file or folder as a verified copy below `cache`.

    A copy is keyed by the URI and the names, sizes and modification times that stand there, so a changed source is
    another copy and a copy in use is never replaced; sizes are checked when it is made and each time it is reused.
    cache: by default RECSYS_CACHE, else ~/.cache/recsys. Raises FileNotFoundError naming what is absent.
    """
    if not is_uri(path):
        return Path(path)
    filesystem, root = _filesystem(path)
    root = root.rstrip("/")
    listing = _listing(filesystem, root)
    sizes = {name: info.size for name, info in listing.items()}
    state = json.dumps(
        [str(path).rstrip("/"), [(name, info.size, info.mtime_ns) for name, info in sorted(listing.items())]]
    )
    copy = (cache or _default_cache()) / sha256(state.encode()).hexdigest()[:24]
    target = copy / Path(root).name
    if copy.exists() and _sizes(target) != sizes:
        remove_tree(copy)
    with suppress(FileExistsError), folder_aside(copy) as aside:
        _fetch(filesystem, listing, aside / target.name)
        if _sizes(aside / target.name) != sizes:
            raise OSError(f"the copy of {path} is incomplete: sizes differ from those at the source")
    return target


def put(source: Path | str, uri: Path | str) -> None:
    """Copy a local file or folder to a path or URI, replacing files of the same names.

    Object stores publish each file when it is complete, and have no atomic folder: the caller writes a pointer last.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"nothing to publish at {source}")
    filesystem, root = _filesystem(uri)
    for file in sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]:
        target = f"{root}/{file.relative_to(source).as_posix()}" if source.is_dir() else root
        _put_file(filesystem, file, target)


def _put_file(filesystem: pa.fs.FileSystem, file: Path, target: str) -> None:
    if isinstance(filesystem, pa.fs.LocalFileSystem):
        with file_aside(target) as aside:
            point(f"write:{file.name}")
            shutil.copyfile(file, aside)
        return
    point(f"write:{file.name}")
    with open(file, "rb") as data, filesystem.open_output_stream(target) as stream:
        shutil.copyfileobj(data, stream, _BLOCK)


def _filesystem(uri: Path | str) -> tuple[pa.fs.FileSystem, str]:
    if not is_uri(uri):
        return pa.fs.LocalFileSystem(), str(uri)
    try:
        return pa.fs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]
    except pa.ArrowInvalid as error:
        raise ValueError(f"cannot open {uri}: {error}; accepted are local paths, file, s3, gs and hdfs URIs") from None


def _listing(filesystem: pa.fs.FileSystem, root: str) -> dict[str, pa.fs.FileInfo]:
    """Files at `root` by relative name; a single file has the name ""."""
    info = filesystem.get_file_info(root)
    if info.type == pa.fs.FileType.NotFound:
        raise FileNotFoundError(f"nothing at {root}")
    if info.type == pa.fs.FileType.File:
        return {"": info}
    found = filesystem.get_file_info(pa.fs.FileSelector(root, recursive=True))
    return {f.path[len(root) :].strip("/"): f for f in found if f.type == pa.fs.FileType.File}


def _fetch(filesystem: pa.fs.FileSystem, listing: dict[str, pa.fs.FileInfo], target: Path) -> None:
    if "" not in listing:
        target.mkdir()
    for name, info in listing.items():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        point(f"fetch:{copy.name}")
        with filesystem.open_input_stream(info.path) as stream, open(copy, "wb") as file:
            shutil.copyfileobj(stream, file, _BLOCK)


def _sizes(path: Path) -> dict[str, int]:
    if path.is_file():
        return {"": path.stat().st_size}
    return {p.relative_to(path).as_posix(): p.stat().st_size for p in path.rglob("*") if p.is_file()}


def _default_cache() -> Path:
    return Path(os.environ.get("RECSYS_CACHE") or Path.home() / ".cache" / "recsys")


def _aside_name(path: Path) -> Path:
    return path.with_name(f"{ASIDE}{token_hex(6)}-{path.name}")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} exists already; a finished folder is never replaced")


def _rename_new(aside: Path, path: Path) -> None:
    """Rename a folder to a name that must be free, also when another process takes it at this moment."""
    _refuse_existing(path)
    try:
        os.rename(aside, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(f"{path} was made by another process meanwhile") from None
        raise


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _sync_file(path: Path, name: str) -> None:
    point(f"fsync:{name}")
    _fsync(path)


def _sync_folder(path: Path, which: str) -> None:
    point(f"fsync-folder:{which}")
    _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Hold a lock on an open sibling, which the system drops when the process dies."""
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the lock was free, and is now held. Where a file system has no locks nothing counts as free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return False
    return True


def _in_use(aside: Path) -> bool:
    try:
        descriptor = os.open(aside, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _removed_on_error(aside: Path) -> Iterator[None]:
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished:
            _delete(aside)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error of the system that names no file (a write to an open one on a full disk) names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _halve(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
