"""Named worlds: their pinned content, their seeds, and names that are none."""

import pytest

from features.worlds import WORLDS, generate, open_world

HASHES = {
    "demo": "3afd55d8d7d373711e47d9442787c194f9dc6e59ba4ffa337ff45ae38252542c",
    "small": "f4019d1ac034bda6dfe1be00c967f8bcb4cd73f05a3bb39bb560e5aa14aeb702",
    "bigids": "b577774d222c452190e7834c6d6fe1010d8df802aa3cbd964cba42ca0489a574",
    "bigids_small": "ab326ddbfa1c814c2e8d6609a63b9f659452515028a777b4c66afe152ea1bb53",
    "planted": "00b9f68615cbb1d64343fad02f936b44bd083beb5baf34cf242e554d32a4400a",
    "planted_small": "40ecfad30ae3f026a787fc2e83ac258915b56ecf18562af35aa0eccc689d08b6",
}


LARGE = pytest.param("bigids", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [LARGE if name == "bigids" else name for name in WORLDS])
def test_world_never_changes(name: str) -> None:
    assert open_world(name).content_hash == WORLDS[name].content_hash == HASHES[name]


@pytest.mark.parametrize("name", ["small", "bigids_small"])
def test_world_is_a_function_of_its_seed(name: str) -> None:
    hashes = [open_world(name, seed).content_hash for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_world_without_tables_is_not_generated_whole() -> None:
    with pytest.raises(ValueError, match="'bigids_small' has no tables, only a stream"):
        generate("bigids_small")


def test_unknown_world_is_named() -> None:
    with pytest.raises(ValueError, match="no world 'dmeo'; there are demo, small"):
        generate("dmeo")
