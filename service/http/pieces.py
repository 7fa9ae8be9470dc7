"""A body's bytes, as they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

PIECE = 64 * 1024


class Pieces:
    """Bytes in pieces of at least 64 KiB (each has a price of its own), which are let go as they are taken."""

    def __init__(self) -> None:
        self._pieces: deque[bytearray] = deque()
        self._nbytes = 0

    def __len__(self) -> int:
        """How many bytes have not been taken yet."""
        return self._nbytes

    def append(self, data: bytes) -> None:
        self._nbytes += len(data)
        if self._pieces and len(self._pieces[-1]) < PIECE:
            self._pieces[-1] += data
        else:
            self._pieces.append(bytearray(data))

    def take(self) -> bytes:
        """Take the next piece; empty if there is none."""
        piece = bytes(self._pieces.popleft()) if self._pieces else b""
        self._nbytes -= len(piece)
        return piece

    def taken(self) -> Iterator[bytes]:
        """Take piece after piece."""
        while self._pieces:
            yield self.take()
