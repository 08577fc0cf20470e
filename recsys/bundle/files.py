"""The files of a bundle store: the records in them, how a component is verified, and where they lie (`Place`).

Not here: what a bundle is for, labels, and which bundles may be opened (`store.py`).
"""

import fcntl
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow.fs
from pydantic import BaseModel, ConfigDict, ValidationError

from features import storage
from features.spec import describe

ID = re.compile(r"[0-9a-f]{64}")
RECORD = "component.json"
R = TypeVar("R", bound="Record")


class BundleError(ValueError):
    """A store, bundle or component that is not what it says. The message is one line and names the file."""


class Record(BaseModel):
    """A frozen JSON file whose SHA-256 is its name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def canonical(self) -> bytes:
        """UTF-8 JSON with sorted keys and no spaces: what is written and hashed."""
        values = self.model_dump()
        try:
            text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BundleError(f"{type(self).__name__.lower()} must hold JSON values: {error}") from None
        return text.encode()

    def sha256(self) -> str:
        """SHA-256 of the canonical form, hex."""
        return sha256(self.canonical()).hexdigest()


class Component(Record):
    """component.json. format: of what this kind holds. token: see `token_groups`. files: relative path -> SHA-256."""

    kind: str
    format: int
    token: str
    files: dict[str, str]


class Role(Record):
    """One component in a manifest. required: who does not know its kind or format must refuse the bundle."""

    component: str
    kind: str
    format: int
    token: str
    required: bool


class Manifest(Record):
    """bundles/<id>.json. format: of manifests. config: the settings that a server needs, JSON values."""

    format: int
    roles: dict[str, Role]
    config: dict[str, Any]


def token_groups(token: str, where: str) -> dict[str, str]:
    """A compatibility token as {group: value}: "vectors:1f3a items:77" has two groups, a bare value the group "".

    Components of one bundle that have a group in common must have the same value there.
    """
    groups: dict[str, str] = {}
    for part in token.split(" ") if token else []:
        group, _, value = part.rpartition(":")
        if not value or group in groups:
            raise BundleError(f"{where}: token {token!r} must be values or group:value, each group once")
        groups[group] = value
    return groups


def check_tokens(manifest: Manifest, where: str) -> None:
    """Raise BundleError naming the two roles that do not belong together."""
    first: dict[str, tuple[str, str]] = {}
    for role, part in sorted(manifest.roles.items()):
        for group, value in token_groups(part.token, where).items():
            other, expected = first.setdefault(group, (role, value))
            if value != expected:
                name = f" {group!r}" if group else ""
                fault = f"{other!r} carries the token{name} {expected!r} but {role!r} carries {value!r}"
                raise BundleError(f"{where}: {fault}; they were not made for each other")


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object, or BundleError."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise BundleError(f"{where} must hold a JSON object")
    return values


def parse_record(kind: type[R], values: dict[str, Any], where: str) -> R:
    """The values as that kind of record, or BundleError naming the key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise BundleError(f"{where}: {describe(error, kind)}") from None


def check_hash(data: bytes, expected: str, where: str) -> None:
    """Raise BundleError unless the SHA-256 of the data is the expected one."""
    if sha256(data).hexdigest() != expected:
        raise BundleError(f"{where} was altered: its SHA-256 is not {expected[:12]}...")


def files_in(folder: Path) -> list[str]:
    """Relative paths of all files below a folder, sorted, but for what a killed writer left aside.

    Links and special files raise BundleError.
    """
    names = []
    for path in sorted(path for path in folder.rglob("*") if not path.name.startswith(storage.ASIDE)):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise BundleError(f"{path} is a link or no plain file; a component holds plain files only")
        if path.is_file():
            names.append(path.relative_to(folder).as_posix())
    return names


def verify_component(folder: Path, component: str) -> Component:
    """Check every byte of a component's folder against its id. Raises BundleError naming what is wrong."""
    try:
        return _verify(folder, component)
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error}") from None


def _verify(folder: Path, component: str) -> Component:
    path = folder / RECORD
    if folder.is_symlink() or not path.is_file() or path.is_symlink():
        raise BundleError(f"{path} is missing")
    record = parse_component(path.read_bytes(), component, str(path))
    present = set(files_in(folder)) - {RECORD}
    for name, expected in sorted(record.files.items()):
        if name not in present:
            raise BundleError(f"{folder / name} is missing")
        if storage.sha256_file(folder / name) != expected:
            raise BundleError(f"{folder / name} was altered: its SHA-256 is not {expected[:12]}...")
    extra = sorted(present - set(record.files))
    if extra:
        raise BundleError(f"{folder / extra[0]} is not named by {RECORD}")
    return record


def parse_component(data: bytes, component: str, where: str) -> Component:
    """The record in component.json, which must have the component's id as its hash and name plain relative paths."""
    check_hash(data, component, where)
    record = parse_record(Component, parse_json(data, where), where)
    for name in record.files:
        plain = PurePosixPath(name)
        if name != plain.as_posix() or plain.is_absolute() or {"..", "."} & set(plain.parts) or "\\" in name:
            raise BundleError(f"{where}: {name!r} is not a plain relative path")
    return record


class Place(ABC):
    """Where a store lies: a folder, or a URI. Names are relative to it, with "/"."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The bytes of a small file, None when it is not there."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Replace a small file at once."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder; [] when it is not there."""

    @abstractmethod
    def component(self, component: str) -> tuple[Path, Component]:
        """The folder of a component on this machine, and its record, after every byte was verified."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Path]:
        """A folder to write a component into while its id is not known; it is removed at the end."""

    @abstractmethod
    def keep(self, folder: Path, record: Component) -> None:
        """Store what was written in `folder` (which may be emptied), unless a whole component has that id already."""

    @abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Hold back other writers of labels.json, where that is possible."""


def place_of(location: str | Path, cache: Path | None) -> Place:
    """A URI is a `RemotePlace`, anything else a `LocalPlace`."""
    return RemotePlace(str(location), cache) if storage.is_uri(location) else LocalPlace(Path(location))


class LocalPlace(Place):
    """A folder of this machine. It may itself be a link; nothing below it may."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes | None:
        """See `Place`. Raises BundleError when it is a link, or not readable."""
        path = self._path(name)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error}") from None

    def write(self, name: str, data: bytes) -> None:
        """See `Place`."""
        storage.write_bytes(self._path(name), data)

    def names(self, folder: str) -> list[str]:
        """See `Place`."""
        path = self._path(folder)
        return sorted(child.name for child in path.iterdir()) if path.is_dir() else []

    def component(self, component: str) -> tuple[Path, Component]:
        """See `Place`."""
        folder = self._path(f"components/{component}")
        return folder, verify_component(folder, component)

    def writing(self) -> AbstractContextManager[Path]:
        """See `Place`."""
        return _scratch(self._path("components"))

    def keep(self, folder: Path, record: Component) -> None:
        """See `Place`. A damaged component of that id is replaced."""
        target = self._path(f"components/{record.sha256()}")
        if target.exists():  # one that another writer is about to rename here must not be taken for a damaged one
            with suppress(BundleError):
                verify_component(target, target.name)
                return
            storage.remove_tree(target)
        with suppress(FileExistsError), storage.folder_aside(target) as aside:
            for child in sorted(folder.iterdir()):
                storage.replace(child, aside / child.name)
            storage.write_bytes(aside / RECORD, record.canonical())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See `Place`."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, name: str) -> Path:
        path = self.root / name
        for part in (path, *path.parents[: len(PurePosixPath(name).parts) - 1]):
            if part.is_symlink():
                raise BundleError(f"{part} is a link; nothing in a store may be one")
        return path


class RemotePlace(Place):
    """A URI. Components are copied into a cache when they are read; small files are read where they stand.

    Object stores have no locks: of two writers that change labels.json at once the last one wins.
    """

    def __init__(self, uri: str, cache: Path | None) -> None:
        self.uri = urlsplit(uri)
        self.cache = cache

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        try:
            with storage.open_input(self._at(name)) as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BundleError(f"{self._at(name)} cannot be read: {error}") from None

    def write(self, name: str, data: bytes) -> None:
        """See `Place`."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / PurePosixPath(name).name
            storage.write_bytes(path, data)
            storage.put(path, self._at(name))

    def names(self, folder: str) -> list[str]:
        """See `Place`."""
        filesystem, path = pyarrow.fs.FileSystem.from_uri(self._at(folder))
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def component(self, component: str) -> tuple[Path, Component]:
        """See `Place`. A damaged copy is fetched again, once."""
        folder = self._fetched(component)
        with suppress(BundleError):
            return folder, verify_component(folder, component)
        storage.remove_tree(folder.parent)
        folder = self._fetched(component)
        return folder, verify_component(folder, component)

    def _fetched(self, component: str) -> Path:
        uri = self._at(f"components/{component}")
        try:
            return storage.local(uri, self.cache)
        except OSError as error:
            raise BundleError(f"{uri} cannot be fetched: {error}") from None

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """See `Place`."""
        with TemporaryDirectory() as folder, _scratch(Path(folder)) as scratch:
            yield scratch

    def keep(self, folder: Path, record: Component) -> None:
        """See `Place`. component.json is put last: where it stands, the component is complete."""
        where = f"components/{record.sha256()}"
        if self.read(f"{where}/{RECORD}") == record.canonical():
            return
        for name in record.files:
            storage.put(folder / name, self._at(f"{where}/{name}"))
        self.write(f"{where}/{RECORD}", record.canonical())

    def locked(self) -> AbstractContextManager[None]:
        """See `Place`."""
        return nullcontext()

    def _at(self, name: str) -> str:
        return self.uri._replace(path=f"{self.uri.path.rstrip('/')}/{name}").geturl()


class _Finished(Exception):  # noqa: N818
    """Leaves `_scratch` by the way on which its folder is removed."""


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A locked folder aside, removed at the end, or by the next writer when this process is killed."""
    with suppress(_Finished), storage.folder_aside(folder / "component") as aside:
        yield aside
        raise _Finished
