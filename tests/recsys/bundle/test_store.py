import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from features import storage
from recsys.bundle import BundleError, BundleStore, Manifest, Role
from recsys.bundle import store as store_module

CONFIG = {"k": 10, "fallback": {"name": "popularity", "weight": 0.5}}


def writes(**files: str) -> Callable[[Path], None]:
    """A component's writer: file name (with "__" for "/") -> text."""

    def write(folder: Path) -> None:
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write


def published(store: BundleStore, text: str = "one", label: str | None = "stable") -> str:
    components = {
        "index": store.add_component("index", writes(vectors=text, ids__part=text), token=f"vectors:{text}"),
        "retriever": store.add_component("retriever", writes(weights=text), token=f"vectors:{text}"),
    }
    return store.publish(components, CONFIG, {"recall@20": 0.2}, label)


def rewritten(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "store")


def component_folder(store: BundleStore, role: str) -> Path:
    return store.open().path(role)


def test_bundle_gives_back_what_was_published(store: BundleStore) -> None:
    bundle = store.open(published(store))
    assert bundle.roles == ["index", "retriever"]
    assert bundle.config == CONFIG
    assert (bundle.path("index") / "ids/part").read_text() == "one"
    assert bundle.token("index") == "vectors:one"
    assert store.notes("stable") == {"recall@20": 0.2}
    assert store.verify() == []


def test_bundle_id_is_the_hash_of_its_manifest_file(store: BundleStore) -> None:
    bundle = published(store)
    data = Path(store.location, "bundles", f"{bundle}.json").read_bytes()
    assert sha256(data).hexdigest() == bundle
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()


def test_component_is_stored_once(store: BundleStore) -> None:
    first = store.add_component("index", writes(vectors="v"))
    record = Path(store.location, "components", first, "component.json")
    before = record.stat().st_mtime_ns
    assert store.add_component("index", writes(vectors="v")) == first
    assert record.stat().st_mtime_ns == before
    assert os.listdir(Path(store.location, "components")) == [first]


def test_component_id_depends_on_kind_token_format_and_files(store: BundleStore) -> None:
    ids = {
        store.add_component("index", writes(a="v")),
        store.add_component("ranker", writes(a="v")),
        store.add_component("index", writes(a="v"), token="t"),
        store.add_component("index", writes(a="v"), format=2),
        store.add_component("index", writes(b="v")),
        store.add_component("index", writes(a="w")),
    }
    assert len(ids) == 6


def test_bundle_is_found_by_label_id_and_unique_beginning(store: BundleStore) -> None:
    first, second = published(store, "one"), published(store, "two", label="candidate")
    assert store.labels() == {"stable": first, "candidate": second}
    assert store.bundles() == sorted([first, second])
    differ = next(place for place in range(64) if first[place] != second[place])
    assert store.resolve(first[: differ + 1]) == first
    with pytest.raises(BundleError, match=r"'nightly' is neither a label .* labels are \['candidate', 'stable'\]"):
        store.resolve("nightly")
    with pytest.raises(BundleError, match="neither"):
        store.resolve("")


def test_label_moves_and_publishing_again_changes_nothing(store: BundleStore) -> None:
    first, second = published(store, "one"), published(store, "two")
    assert store.labels() == {"stable": second}
    store.label("stable", first[:12])
    assert store.open().id == first
    assert published(store, "one", label=None) == first
    assert store.open().id == first


def test_looking_at_a_place_without_a_store_makes_none(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "typo")
    assert (store.bundles(), store.labels(), store.verify()) == ([], {}, [])
    with pytest.raises(BundleError, match=r"typo: 'stable' is neither a label .* labels are \[\], bundles \[\]"):
        store.open()
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("name", ["", "Stable", "9", "a/b", "..", "a" * 65, "stable\n"])
def test_label_must_be_a_plain_name(store: BundleStore, name: str) -> None:
    bundle = published(store)
    with pytest.raises(BundleError, match=r"label .* is not accepted"):
        store.label(name, bundle)


def test_tokens_of_one_group_must_agree(store: BundleStore) -> None:
    index = store.add_component("index", writes(a="i"), token="items:7 vectors:x")
    retriever = store.add_component("retriever", writes(a="r"), token="vectors:y")
    items = store.add_component("items", writes(a="t"), token="items:7")
    with pytest.raises(BundleError, match="'index' carries the token 'vectors' 'x' but 'retriever' carries 'y'"):
        store.publish({"index": index, "retriever": retriever}, CONFIG)
    assert store.bundles() == []
    assert store.open(store.publish({"index": index, "items": items}, CONFIG)).roles == ["index", "items"]


def test_publish_refuses_what_is_not_there(store: BundleStore) -> None:
    index = store.add_component("index", writes(a="i"))
    for component in ("0" * 64, "../../etc", index[:10]):
        with pytest.raises(BundleError, match="there is no component"):
            store.publish({"index": component}, CONFIG)
    with pytest.raises(BundleError, match=r"optional roles \['ranker'\]"):
        store.publish({"index": index}, CONFIG, optional=["ranker"])
    with pytest.raises(BundleError, match="must hold JSON values"):
        store.publish({"index": index}, {"rate": float("nan")})
    with pytest.raises(BundleError, match="notes must hold JSON values"):
        store.publish({"index": index}, CONFIG, {"when": object()})
    assert store.bundles() == []


# --- damage ---


def test_flipped_byte_anywhere_is_refused(store: BundleStore) -> None:
    published(store)
    root = Path(store.location)
    for path in sorted(p for p in root.glob("[bc]*/**/*") if p.is_file()):
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(BundleError, match=path.name):
                store.open()
            assert len(store.verify()) == 1
        path.write_bytes(data)
    assert store.verify() == []


def test_missing_extra_and_cut_files_are_named(store: BundleStore) -> None:
    published(store)
    folder = component_folder(store, "index")
    (folder / "extra").write_text("x")
    with pytest.raises(BundleError, match=r"extra is not named by component\.json"):
        store.open()
    (folder / "extra").unlink()
    (folder / "vectors").write_text("on")
    with pytest.raises(BundleError, match="vectors was altered"):
        store.open()
    (folder / "vectors").unlink()
    with pytest.raises(BundleError, match="vectors is missing"):
        store.open()
    shutil.rmtree(folder)
    with pytest.raises(BundleError, match=r"component\.json is missing"):
        store.open()


def test_links_are_refused(store: BundleStore, tmp_path: Path) -> None:
    published(store)
    folder = component_folder(store, "index")
    outside = tmp_path / "outside"
    shutil.copy(folder / "vectors", outside)
    (folder / "vectors").unlink()
    (folder / "vectors").symlink_to(outside)
    with pytest.raises(BundleError, match="vectors is a link"):
        store.open()
    (folder / "vectors").unlink()
    shutil.copy(outside, folder / "vectors")
    moved = folder.rename(tmp_path / "moved")
    folder.symlink_to(moved)
    with pytest.raises(BundleError, match="is a link"):
        store.open()


def test_writer_that_leaves_a_link_is_refused(store: BundleStore, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is a link or no plain file"):
        store.add_component("index", lambda folder: (folder / "a").symlink_to(tmp_path))
    assert os.listdir(Path(store.location, "components")) == []


@pytest.mark.parametrize("files", [{}, {"component.json": "x"}])
def test_component_needs_files_of_its_own(store: BundleStore, files: dict[str, str]) -> None:
    with pytest.raises(BundleError, match=r"must hold files, and none called component\.json"):
        store.add_component("index", writes(**files))


def forged(store: BundleStore, manifest: Manifest) -> str:
    """Place a manifest under its true hash, as someone with access to the files could."""
    path = Path(store.location, "bundles", f"{manifest.sha256()}.json")
    path.write_bytes(manifest.canonical())
    return manifest.sha256()


def test_altered_manifest_with_valid_checksums_is_refused(store: BundleStore) -> None:
    bundle, other = published(store, "one"), published(store, "two", label=None)
    path = Path(store.location, "bundles", f"{bundle}.json")
    shutil.copy(Path(store.location, "bundles", f"{other}.json"), path)  # a whole manifest, but another one
    with pytest.raises(BundleError, match=rf"{bundle}\.json was altered"):
        store.open()


def test_manifest_that_mixes_or_misstates_components_is_refused(store: BundleStore) -> None:
    one, two = store.manifest(published(store, "one")), store.manifest(published(store, "two"))
    mixed = one.model_copy(update={"roles": {"index": one.roles["index"], "retriever": two.roles["retriever"]}})
    with pytest.raises(BundleError, match="they were not made for each other"):
        store.open(forged(store, mixed))
    stated = two.roles["retriever"].model_copy(update={"token": "vectors:one"})
    lying = one.model_copy(update={"roles": {"index": one.roles["index"], "retriever": stated}})
    with pytest.raises(BundleError, match="is not of the kind, format and token"):
        store.open(forged(store, lying))
    assert len(store.verify()) == 2


def test_manifest_that_points_outside_is_refused(store: BundleStore) -> None:
    part = store.manifest(published(store)).roles["index"]
    for target in ("../../outside", "/etc", ""):
        roles = {"index": part.model_copy(update={"component": target})}
        with pytest.raises(BundleError, match="is no component id"):
            store.open(forged(store, Manifest(format=1, roles=roles, config={})))


@pytest.mark.parametrize("name", ["../index", "/etc/passwd", "a/../b", "a//b", "./a", "a\\b", ""])
def test_component_record_that_names_other_paths_is_refused(store: BundleStore, name: str) -> None:
    values = {"kind": "index", "format": 1, "token": "", "files": {name: "0" * 64}}
    data = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    component = sha256(data).hexdigest()
    folder = Path(store.location, "components", component)
    folder.mkdir(parents=True)
    (folder / "component.json").write_bytes(data)
    role = Role(component=component, kind="index", format=1, token="", required=True)
    (Path(store.location) / "bundles").mkdir()
    with pytest.raises(BundleError, match="is not a plain relative path"):
        store.open(forged(store, Manifest(format=1, roles={"index": role}, config={})))


def test_labels_that_are_no_labels_are_refused(store: BundleStore) -> None:
    bundle = published(store)
    path = Path(store.location, "labels.json")
    for text, fault in (
        ("[]", "must hold a JSON object"),
        ("{", "is not JSON"),
        ('{"a": "../x"}', "must name a bundle id"),
    ):
        path.write_text(text)
        with pytest.raises(BundleError, match=rf"labels\.json.*{fault}"):
            store.open()
        assert store.open(bundle).id == bundle  # an id needs no labels
        assert len(store.verify()) == 1
    path.write_text(json.dumps({"stable": "0" * 64}))
    with pytest.raises(BundleError, match=r"bundles/0+\.json is missing"):
        store.open()
    assert store.verify() == [f"{store.location}/labels.json: 'stable' names 000000000000, which is not there"]


def test_damaged_component_is_written_again(store: BundleStore) -> None:
    bundle = published(store)
    (component_folder(store, "index") / "vectors").write_text("xxx")
    assert published(store) == bundle
    assert store.verify() == []


# --- kinds and formats ---


def test_unknown_kind_is_refused_when_required_and_ignored_when_optional(tmp_path: Path) -> None:
    writer = BundleStore(tmp_path)
    parts = {
        "index": writer.add_component("index", writes(a="i")),
        "graph": writer.add_component("graph", writes(a="g")),
    }
    required, optional = writer.publish(parts, CONFIG), writer.publish(parts, CONFIG, optional=["graph"])
    with pytest.raises(BundleError, match="'graph' is of unknown kind 'graph'; known are"):
        writer.open(required)
    bundle = writer.open(optional)
    assert bundle.roles == ["index"]
    with pytest.raises(BundleError, match=r"has no 'graph'; it has \['index'\]"):
        bundle.path("graph")
    assert BundleStore(tmp_path, kinds={"index": (1,), "graph": (1,)}).open(required).roles == ["graph", "index"]


def test_unknown_format_of_a_kind_says_what_is_accepted(store: BundleStore) -> None:
    bundle = store.publish({"index": store.add_component("index", writes(a="i"), format=7)}, CONFIG)
    with pytest.raises(BundleError, match=r"'index' \(index\) has format 7; accepted: 1$"):
        store.open(bundle)


def test_unknown_format_of_a_manifest_says_what_is_accepted(store: BundleStore) -> None:
    published(store)
    bundle = forged(store, Manifest(format=9, roles={}, config={}))
    with pytest.raises(BundleError, match=r"has format 9; accepted: 1$"):
        store.open(bundle)


def test_older_manifest_loads_and_migrates(store: BundleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    current = store.manifest(published(store, label=None))
    values = current.model_dump() | {"format": 0, "config": {"length": 10}}
    data = json.dumps(values).encode()
    old = sha256(data).hexdigest()
    Path(store.location, "bundles", f"{old}.json").write_bytes(data)

    def upgraded(manifest: dict[str, object]) -> dict[str, object]:
        return manifest | {"format": 1, "config": CONFIG}

    monkeypatch.setitem(store_module.UPGRADES, 0, upgraded)
    store.label("stable", old)
    assert store.open().config == CONFIG
    new = store.migrate("stable")
    assert new == current.sha256() == store.resolve("stable") == store.migrate(new)


# --- URIs ---


def test_uri_store_is_published_and_read_through_a_cache(tmp_path: Path) -> None:
    uri = (tmp_path / "remote").as_uri()
    writer = BundleStore(uri, cache=tmp_path / "writer")
    bundle = published(writer)
    reader = BundleStore(uri, cache=tmp_path / "reader")
    opened = reader.open()
    assert opened.id == bundle
    assert opened.path("index").is_relative_to(tmp_path / "reader")
    assert reader.bundles() == [bundle]
    assert BundleStore(tmp_path / "remote").verify() == []
    published(writer, "two")
    assert reader.open().id != bundle


def test_uri_store_fetches_a_damaged_copy_again(tmp_path: Path) -> None:
    uri = (tmp_path / "remote").as_uri()
    store = BundleStore(uri, cache=tmp_path / "cache")
    published(store)
    copy = store.open().path("index") / "vectors"
    copy.write_text("xxx")
    assert (store.open().path("index") / "vectors").read_text() == "one"
    rewritten(next((tmp_path / "remote/components").glob("*/vectors")), lambda text: text.upper())
    with pytest.raises(BundleError, match="vectors was altered"):
        store.open()


def test_uri_store_puts_the_pointer_last(tmp_path: Path) -> None:
    store = BundleStore((tmp_path / "remote").as_uri(), cache=tmp_path / "cache")
    with storage.inject() as points:
        published(store)
    puts = [label.removeprefix("rename:") for label in points if label.startswith("rename:")]
    assert puts[-1] == "labels.json"
    assert puts.index("weights") < max(i for i, name in enumerate(puts) if name == "component.json")
