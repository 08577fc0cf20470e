"""Named worlds: their pinned content, their seeds, and names that are none."""

import pytest

from features.worlds import WORLDS, generate

HASHES = {
    "demo": "3afd55d8d7d373711e47d9442787c194f9dc6e59ba4ffa337ff45ae38252542c",
    "small": "f4019d1ac034bda6dfe1be00c967f8bcb4cd73f05a3bb39bb560e5aa14aeb702",
}


@pytest.mark.parametrize("name", WORLDS)
def test_world_never_changes(name: str) -> None:
    assert generate(name).content_hash == WORLDS[name].content_hash == HASHES[name]


def test_world_is_a_function_of_its_seed() -> None:
    hashes = [generate("small", seed).content_hash for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_unknown_world_is_named() -> None:
    with pytest.raises(ValueError, match="no world 'dmeo'; there are demo, small"):
        generate("dmeo")
