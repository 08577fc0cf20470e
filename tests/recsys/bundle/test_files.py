import json
from hashlib import sha256
from pathlib import Path

import pytest

from recsys.bundle.files import (
    BundleError,
    Component,
    LocalPlace,
    Manifest,
    Place,
    Role,
    check_tokens,
    files_in,
    parse_component,
    parse_json,
    parse_record,
    place_of,
    token_groups,
    verify_component,
)


@pytest.fixture(params=["folder", "uri"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    root = tmp_path / "a store"
    return place_of(root if request.param == "folder" else root.as_uri(), tmp_path / "cache")


def kept(place: Place, text: str = "text") -> Component:
    with place.writing() as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "data").write_text(text)
        files = {"sub/data": sha256(text.encode()).hexdigest()}
        record = Component(kind="index", format=1, token="", files=files)
        place.keep(folder, record)
    return record


def test_small_file_is_read_as_written(place: Place) -> None:
    assert place.read("notes/a.json") is None
    assert place.names("notes") == []
    place.write("notes/a.json", b"one")
    place.write("notes/a.json", b"two")
    place.write("notes/b.json", b"")
    assert place.read("notes/a.json") == b"two"
    assert place.names("notes") == ["a.json", "b.json"]


def test_component_is_kept_once_and_verified(place: Place, tmp_path: Path) -> None:
    record = kept(place)
    assert kept(place) == record
    folder, read = place.component(record.sha256())
    assert read == record
    assert (folder / "sub" / "data").read_text() == "text"
    assert place.names("components") == [record.sha256()]


def test_component_that_is_not_there_is_named(place: Place) -> None:
    with pytest.raises(BundleError, match=r"0+ cannot be fetched|0+/component\.json is missing"):
        place.component("0" * 64)


def test_folder_for_writing_is_removed(place: Place) -> None:
    with place.writing() as folder:
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(KeyError), place.writing() as folder:
        raise KeyError("of the writer")
    assert not folder.exists()


def test_store_may_be_a_link_but_nothing_in_it(tmp_path: Path) -> None:
    real = LocalPlace(tmp_path / "real")
    record = kept(real)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert LocalPlace(tmp_path / "link").component(record.sha256())[1] == record
    (tmp_path / "real" / "labels.json").symlink_to(tmp_path)
    (tmp_path / "real" / "notes").symlink_to(tmp_path)
    for name in ("labels.json", "notes/a.json"):
        with pytest.raises(BundleError, match="is a link; nothing in a store may be one"):
            real.read(name)


def test_uri_keeps_its_query() -> None:
    place = place_of("s3://bucket/store/?region=eu-west-1", None)
    assert place._at("labels.json") == "s3://bucket/store/labels.json?region=eu-west-1"  # type: ignore[attr-defined]


def test_files_in_leaves_out_what_a_killed_writer_left(tmp_path: Path) -> None:
    for name in ("b", "a/c", ".aside-0123456789ab-b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert files_in(tmp_path) == ["a/c", "b"]


def test_unreadable_component_is_named(tmp_path: Path) -> None:
    record = kept(LocalPlace(tmp_path))
    folder = tmp_path / "components" / record.sha256()
    (folder / "component.json").unlink()
    (folder / "component.json").mkdir()
    with pytest.raises(BundleError, match=r"component\.json is missing"):
        verify_component(folder, record.sha256())


def test_record_is_strict_and_its_fault_named() -> None:
    values = {"kind": "index", "format": 1, "token": "", "files": {}}
    assert parse_record(Component, values, "here").model_dump() == values
    for change, fault in (
        ({"format": "1"}, "here: format: Input should be a valid integer"),
        ({"kindd": "x"}, "here: kindd: unknown key 'kindd', did you mean 'kind'"),
        ({"files": {"a": 1}}, "here: files.a: Input should be a valid string"),
    ):
        with pytest.raises(BundleError, match=fault):
            parse_record(Component, values | change, "here")


def test_record_is_canonical_whatever_the_order() -> None:
    one = Component(kind="index", format=1, token="", files={"a": "1", "ä": "2"})
    two = Component(files={"ä": "2", "a": "1"}, token="", format=1, kind="index")
    assert one.canonical() == two.canonical()
    assert one.canonical().startswith(b'{"files":{"a":"1",')
    assert parse_component(one.canonical(), one.sha256(), "here") == one


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"3"])
def test_json_that_is_no_object_is_named(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"here (is not JSON|must hold a JSON object)"):
        parse_json(data, "here")


def test_token_groups() -> None:
    assert token_groups("", "here") == {}
    assert token_groups("abc", "here") == {"": "abc"}
    assert token_groups("vectors:1f items:7", "here") == {"vectors": "1f", "items": "7"}


@pytest.mark.parametrize("token", ["a:", "x:1 x:2", " ", "a  b"])
def test_token_must_be_values_or_groups(token: str) -> None:
    with pytest.raises(BundleError, match=r"here: token .* must be values or group:value"):
        token_groups(token, "here")


def test_tokens_agree_within_a_group_alone() -> None:
    def manifest(**tokens: str) -> Manifest:
        roles = {
            name: Role(component="0" * 64, kind="index", format=1, token=token, required=True)
            for name, token in tokens.items()
        }
        return Manifest(format=1, roles=roles, config={})

    check_tokens(manifest(a="x:1", b="x:1 y:2", c="y:2", d="", e="z"), "here")
    with pytest.raises(BundleError, match="here: 'b' carries the token 'y' '2' but 'c' carries '3'"):
        check_tokens(manifest(a="x:1", b="x:1 y:2", c="y:3"), "here")
    with pytest.raises(BundleError, match="'a' carries the token '1' but 'b' carries '2'"):
        check_tokens(manifest(a="1", b="2"), "here")


def test_config_that_is_not_json_is_refused() -> None:
    for value in (float("nan"), object()):
        with pytest.raises(BundleError, match="manifest must hold JSON values"):
            Manifest(format=1, roles={}, config={"a": value}).canonical()


def test_component_record_of_other_paths_is_refused() -> None:
    for name in ("../index", "/etc/passwd", "a/../b", "a//b", "./a", "a\\b", ""):
        data = json.dumps({"kind": "index", "format": 1, "token": "", "files": {name: "0" * 64}}).encode()
        with pytest.raises(BundleError, match="is not a plain relative path"):
            parse_component(data, sha256(data).hexdigest(), "here")
