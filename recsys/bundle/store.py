"""The bundle store: immutable, content-addressed components, and manifests of them that can be served.

    STORE/components/<sha256>/  component.json (kind, format, token, files with sha256) and the files; shared, immutable
    STORE/bundles/<id>.json     manifest: role -> component, with its kind, format and token; config; immutable
    STORE/notes/<id>.json       metrics, lineage, time: may change, is not verified, is never served
    STORE/labels.json           label -> bundle id, replaced atomically

A component's name is the SHA-256 of its component.json, which names the SHA-256 of every file; a bundle's id is the
SHA-256 of its manifest. So whoever holds an id can prove every byte under it, and a bundle is verified in full before
anything is read from it. This module says nothing about what a component of some kind holds: see `components.py`.

Nothing is ever changed in place. What a killed writer leaves behind is a folder or file that no name points to.
A store may be a folder, or a URI (s3://, gs://, hdfs://, file://): its components are then copied into a verified local
cache when they are opened, and what is published ends with the pointer, labels.json.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features import storage
from recsys.bundle.files import (
    ID,
    RECORD,
    BundleError,
    Component,
    Manifest,
    Role,
    check_hash,
    check_tokens,
    files_in,
    parse_component,
    parse_json,
    parse_record,
    place_of,
    token_groups,
)

FORMAT = 1  # of manifests
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # format n -> a manifest's values in format n + 1
KINDS: dict[str, tuple[int, ...]] = {  # kind of component -> its formats that `recsys.components` knows
    "encoder": (1,),
    "users": (1,),
    "items": (1,),
    "retriever": (1,),
    "index": (1,),
    "fallback": (1,),
    "ranker": (1,),
    "program": (1,),
    "calibrator": (1,),
}
NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle, its files on this machine.

    folders: role -> folder of its component; an optional role of a kind that is not known here is left out.
    """

    id: str
    manifest: Manifest
    folders: Mapping[str, Path]

    @property
    def config(self) -> dict[str, Any]:
        """The settings published with it."""
        return self.manifest.config

    @property
    def roles(self) -> list[str]:
        """The roles that can be read, sorted."""
        return sorted(self.folders)

    def path(self, role: str) -> Path:
        """The folder of the role's files. Raises BundleError when the bundle does not have the role."""
        if role not in self.folders:
            raise BundleError(f"bundle {self.id[:12]} has no {role!r}; it has {self.roles}")
        return self.folders[role]

    def part(self, role: str) -> Role:
        """Component id, kind, format and token of the role. Raises BundleError as `path` does."""
        self.path(role)
        return self.manifest.roles[role]

    def token(self, role: str) -> str:
        """The compatibility token of the role's component, "" when it carries none."""
        return self.part(role).token


class BundleStore:
    """Components, bundles and labels at one place.

    location: a folder, made when first written to, or a URI. kinds: the kinds of component, with their formats, that
    this program reads: a bundle that requires another is refused. cache: where components of a URI are copied to
    (default: the user's cache folder).

    Example: `BundleStore("store").open("stable").path("index")` is a folder whose every byte was verified.
    """

    def __init__(
        self, location: str | Path, *, kinds: Mapping[str, tuple[int, ...]] = KINDS, cache: Path | None = None
    ) -> None:
        self.location = str(location)
        self.kinds = kinds
        self._place = place_of(location, cache)

    # --- writing ---

    def add_component(self, kind: str, write: Callable[[Path], None], token: str = "", format: int = 1) -> str:  # noqa: A002
        """Write a component and return its id; what is there already is not stored twice.

        write: fills the empty folder that it is given. token: what must agree with the other components of a bundle
        (`token_groups`). format: of what this kind holds. Raises BundleError for links or no files.
        """
        _check_name("kind", kind)
        token_groups(token, f"{kind!r} component")
        with self._place.writing() as folder:
            with storage.third_party(f"component {kind}", folder):
                write(folder)
            files = {name: storage.sha256_file(folder / name) for name in files_in(folder)}
            if not files or RECORD in files:
                raise BundleError(
                    f"a {kind!r} component must hold files, and none called {RECORD}; got {sorted(files)}"
                )
            record = Component(kind=kind, format=format, token=token, files=files)
            self._place.keep(folder, record)
        return record.sha256()

    def publish(
        self,
        components: Mapping[str, str],
        config: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        label: str | None = None,
        optional: Sequence[str] = (),
    ) -> str:
        """Write the manifest of a bundle, then its notes, then (last) point `label` at it. Returns the bundle id.

        components: role -> component id. optional: the roles that may be ignored by who does not know their kind.
        Raises BundleError, with nothing written, when a component is not there or tokens disagree.
        """
        unknown = sorted(set(optional) - set(components))
        if unknown:
            raise BundleError(f"optional roles {unknown} are not among the components {sorted(components)}")
        roles = {role: self._role(role, part, role not in optional) for role, part in components.items()}
        manifest = parse_record(Manifest, {"format": FORMAT, "roles": roles, "config": dict(config)}, "manifest")
        check_tokens(manifest, "bundle")
        return self._published(manifest, notes, label)

    def _published(self, manifest: Manifest, notes: Mapping[str, Any] | None, label: str | None) -> str:
        bundle = manifest.sha256()
        noted = None if notes is None else _json(notes, "notes")
        self._place.write(f"bundles/{bundle}.json", manifest.canonical())
        if noted is not None:
            self._place.write(f"notes/{bundle}.json", noted)
        if label is not None:
            self.label(label, bundle)
        return bundle

    def _role(self, role: str, component: str, required: bool) -> Role:
        _check_name("role", role)
        name = f"components/{component}/{RECORD}"
        data = self._place.read(name) if ID.fullmatch(component) else None
        if data is None:
            raise BundleError(f"{self.location}: there is no component {component!r} for role {role!r}")
        record = parse_component(data, component, f"{self.location}/{name}")
        return Role(component=component, kind=record.kind, format=record.format, token=record.token, required=required)

    def label(self, name: str, reference: str) -> None:
        """Point a label at a bundle (another label, an id or its beginning), which is verified in full first."""
        _check_name("label", name)
        bundle = self.open(reference).id
        with self._place.locked():
            self._place.write("labels.json", _json(self.labels() | {name: bundle}, "labels"))

    def migrate(self, reference: str) -> str:
        """Publish a bundle of an older format in the current one, with its notes and labels. Returns the new id."""
        old = self.resolve(reference)
        new = self._published(self.manifest(old), self.notes(old), label=None)
        for name in [name for name, bundle in self.labels().items() if bundle == old != new]:
            self.label(name, new)
        return new

    # --- reading ---

    def labels(self) -> dict[str, str]:
        """Label -> bundle id."""
        where = f"{self.location}/labels.json"
        labels = parse_json(self._place.read("labels.json") or b"{}", where)
        for name, bundle in labels.items():
            if not (isinstance(bundle, str) and ID.fullmatch(bundle)):
                raise BundleError(f"{where}: label {name!r} must name a bundle id, not {bundle!r}")
        return labels

    def bundles(self) -> list[str]:
        """The ids of all bundles, sorted."""
        stems = [name.removesuffix(".json") for name in self._place.names("bundles")]
        return [stem for stem in stems if ID.fullmatch(stem)]

    def notes(self, reference: str) -> dict[str, Any]:
        """What was noted beside a bundle, {} if nothing was; not verified."""
        name = f"notes/{self.resolve(reference)}.json"
        return parse_json(self._place.read(name) or b"{}", f"{self.location}/{name}")

    def resolve(self, reference: str) -> str:
        """The bundle id of a label, of the beginning of exactly one id, or an id itself (which is not looked up)."""
        if ID.fullmatch(reference):
            return reference
        labels, ids = self.labels(), self.bundles()
        if reference in labels:
            return labels[reference]
        found = [bundle for bundle in ids if reference and bundle.startswith(reference)]
        if len(found) == 1:
            return found[0]
        fault = f"begins {len(found)} bundle ids" if found else "is neither a label nor the beginning of a bundle id"
        known = f"labels are {sorted(labels)}, bundles {[bundle[:12] for bundle in ids]}"
        raise BundleError(f"{self.location}: {reference!r} {fault}; {known}")

    def manifest(self, reference: str) -> Manifest:
        """The manifest, its hash checked and an older format upgraded; its components are not looked at."""
        bundle = self.resolve(reference)
        where = f"{self.location}/bundles/{bundle}.json"
        data = self._place.read(f"bundles/{bundle}.json")
        if data is None:
            raise BundleError(f"{where} is missing")
        check_hash(data, bundle, where)
        return parse_record(Manifest, _upgraded(parse_json(data, where), where), where)

    def open(self, reference: str = "stable") -> Bundle:
        """The bundle of a label, an id or the unique beginning of one, after every byte of it was verified.

        Raises BundleError for a file that is missing, altered or not named, for tokens that disagree, and for a
        required component of a kind or format that is not known here; optional ones of these are left out.
        """
        bundle = self.resolve(reference)
        manifest, where = self.manifest(bundle), f"bundle {bundle[:12]}"
        known = [role for role, part in sorted(manifest.roles.items()) if self._is_read(where, role, part)]
        folders = {role: self._verified(where, role, manifest.roles[role]) for role in known}
        check_tokens(manifest, where)
        return Bundle(id=bundle, manifest=manifest, folders=folders)

    def _is_read(self, where: str, role: str, part: Role) -> bool:
        formats = self.kinds.get(part.kind, ())
        if part.format in formats or not part.required:
            return part.format in formats
        if not formats:
            raise BundleError(f"{where}: {role!r} is of unknown kind {part.kind!r}; known are {sorted(self.kinds)}")
        accepted = ", ".join(str(number) for number in formats)
        raise BundleError(f"{where}: {role!r} ({part.kind}) has format {part.format}; accepted: {accepted}")

    def _verified(self, where: str, role: str, part: Role) -> Path:
        if not ID.fullmatch(part.component):
            raise BundleError(f"{where}: {role!r} names {part.component!r}, which is no component id")
        folder, record = self._place.component(part.component)
        if (record.kind, record.format, record.token) != (part.kind, part.format, part.token):
            raise BundleError(f"{where}: {role!r} is not of the kind, format and token that {folder / RECORD} states")
        return folder

    def verify(self) -> list[str]:
        """Every fault, a line each: of labels, manifests and what they name. [] for a whole or an empty store."""
        ids = self.bundles()
        return [fault for bundle in ids for fault in self._faults(bundle)] + self._label_faults(ids)

    def _label_faults(self, ids: Sequence[str]) -> list[str]:
        where = f"{self.location}/labels.json"
        try:
            lost = {name: bundle for name, bundle in self.labels().items() if bundle not in ids}
        except BundleError as error:
            return [str(error)]
        return [f"{where}: {name!r} names {bundle[:12]}, which is not there" for name, bundle in lost.items()]

    def _faults(self, bundle: str) -> list[str]:
        where = f"bundle {bundle[:12]}"
        try:
            manifest = self.manifest(bundle)
            check_tokens(manifest, where)
        except BundleError as error:
            return [str(error)]
        faults = []
        for role, part in sorted(manifest.roles.items()):
            try:
                self._verified(where, role, part)
            except BundleError as error:
                faults.append(str(error))
        return faults


def _upgraded(values: dict[str, Any], where: str) -> dict[str, Any]:
    """A manifest's values in the current format."""
    while values.get("format") in UPGRADES:
        values = UPGRADES[values["format"]](values)
    if values.get("format") != FORMAT:
        accepted = ", ".join(str(number) for number in sorted({*UPGRADES, FORMAT}))
        raise BundleError(f"{where} has format {values.get('format')!r}; accepted: {accepted}")
    return values


def _check_name(what: str, name: str) -> None:
    if not NAME.fullmatch(name) or ID.fullmatch(name):
        raise BundleError(f"{what} {name!r} is not accepted: a letter, then at most 63 of a-z, 0-9, '_', '.', '-'")


def _json(values: Mapping[str, Any], what: str) -> bytes:
    try:
        return json.dumps(values, sort_keys=True, indent=2, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise BundleError(f"{what} must hold JSON values: {error}") from None
