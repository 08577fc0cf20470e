"""The attribution token of a response: what joins a later click to the answer, and the bundle, that caused it.

Opaque to callers: 41 bytes, a version, the first half of the bundle id, the time and a random id of the response. It
holds nothing of the user and is not a secret.
"""

import secrets
import struct
import time
from dataclasses import dataclass

VERSION = 1
MAX_BYTES = 256
_LAYOUT = struct.Struct(">B16sQ16s")


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """One response: 16 bytes of its bundle's id, when it was made (milliseconds since 1970), 16 random bytes."""

    bundle: bytes
    time_ms: int
    response: bytes

    @staticmethod
    def of(bundle_id: str) -> "Attribution":
        """A new response of this bundle (a SHA-256 in hex), now."""
        now = time.time_ns() // 1_000_000
        return Attribution(bundle=bytes.fromhex(bundle_id)[:16], time_ms=now, response=secrets.token_bytes(16))

    def to_token(self) -> bytes:
        """The bytes that travel."""
        return _LAYOUT.pack(VERSION, self.bundle, self.time_ms, self.response)

    @staticmethod
    def from_token(token: bytes) -> "Attribution":
        """The inverse; ValueError for bytes that are no token of a version known here."""
        if len(token) != _LAYOUT.size or token[0] != VERSION:
            raise ValueError(f"not an attribution token of version {VERSION}: {len(token)} bytes")
        _, bundle, time_ms, response = _LAYOUT.unpack(token)
        return Attribution(bundle=bundle, time_ms=time_ms, response=response)

    def is_of(self, bundle_id: str) -> bool:
        """Whether the response came from this bundle."""
        return bytes.fromhex(bundle_id)[:16] == self.bundle
