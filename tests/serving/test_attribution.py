"""The attribution token: a round trip, bounded, and silent about users."""

import pytest

from serving.attribution import MAX_BYTES, Attribution

BUNDLE = "ab" * 32


def test_token_round_trips() -> None:
    attribution = Attribution.of(BUNDLE)
    assert Attribution.from_token(attribution.to_token()) == attribution
    assert attribution.is_of(BUNDLE)
    assert not attribution.is_of("cd" * 32)


def test_token_is_short_and_new_each_time() -> None:
    tokens = {Attribution.of(BUNDLE).to_token() for _ in range(100)}
    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {41}
    assert MAX_BYTES >= 41


@pytest.mark.parametrize("token", [b"", b"\x01", b"\x02" + bytes(40), bytes(300)])
def test_token_of_another_form_is_refused(token: bytes) -> None:
    with pytest.raises(ValueError, match="not an attribution token of version 1"):
        Attribution.from_token(token)
