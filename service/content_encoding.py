"""What a `Content-Encoding` header says, for bodies and for fetched images alike."""

from __future__ import annotations

_NOT_COMPRESSED = frozenset({"", "identity", "none", "binary", "utf-8", "utf8", "aws-chunked"})
"""Values that people and object stores write although nothing is encoded: a character set belongs into `Content-Type`,
and `aws-chunked` is how an object was once uploaded."""


def is_compressed(header: str) -> bool:
    """Whether a body is compressed, as far as its header says."""
    return any(coding.strip().lower() not in _NOT_COMPRESSED for coding in header.split(","))
