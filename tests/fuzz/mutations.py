"""Damage to an image file: of its parts, and of the bytes within them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from random import Random

from tests.fuzz.grammar import GRAMMARS, Part

LARGEST_BYTES = 1_000_000
"""Larger files are cut: the fuzzer looks for what a few bytes can do, and hundreds of them a second."""

NUMBERS = (
    3,
    1000,
    12_000,
    *(2**bits + more for bits in (0, 3, 4, 5, 6, 7, 8, 12, 14, 15, 16, 24, 31, 32) for more in (-1, 0)),
)
"""Where sizes overflow, wrap round or reach a limit."""

HEAD_BYTES = 24
"""Half of the damage is done to the first bytes of a part: sizes, counts and flags stand there."""


def mutated(data: bytes, file_format: str, others: Sequence[bytes], chance: Random) -> bytes:
    """Return a file damaged in one to six places.

    others: files of the same format, whose parts may be put into this one.
    """
    grammar = GRAMMARS[file_format]
    try:
        root = grammar.parse(data)
        other = grammar.parse(chance.choice(others))
    except IndexError:  # too damaged already to be taken apart
        return damaged(data, chance)[:LARGEST_BYTES]
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if chance.random() < 0.35:
            rearrange(root, other, chance)
        else:
            damage(root, chance)
    written = grammar.write(root)
    if chance.random() < 0.1:  # lengths and checksums too
        written = damaged(written, chance)
    return written[:LARGEST_BYTES]


def rearrange(root: Part, other: Part, chance: Random) -> None:
    """Drop, repeat, move or add a part, somewhere in the tree."""
    holders = [part for part in root.walk() if part.parts]
    if not holders:
        return
    parts = chance.choice(holders).parts
    at = chance.randrange(len(parts))
    match chance.randrange(5):
        case 0:
            del parts[at]
        case 1:
            parts[at:at] = [copy.deepcopy(parts[at]) for _ in range(chance.choice((1, 2, 10, 100)))]
        case 2:
            parts.insert(chance.randrange(len(parts)), parts.pop(at))
        case 3:
            parts.insert(at, copy.deepcopy(chance.choice(list(other.walk()))))
        case _:
            parts[at] = copy.deepcopy(chance.choice(list(other.walk())))


def damage(root: Part, chance: Random) -> None:
    """Change the content of a part, or once in a while what it calls itself."""
    part = chance.choice(list(root.walk()))
    if part.kind and (not part.content or chance.random() < 0.05):
        part.kind = damaged(part.kind, chance)
    else:
        part.content = damaged(part.content, chance)


def damaged(data: bytes, chance: Random) -> bytes:
    """Return bytes with a number, bits or a piece of them changed."""
    if not data:
        return chance.randbytes(chance.choice((1, 4, 20)))
    end = min(len(data), HEAD_BYTES) if chance.random() < 0.5 else len(data)
    at = chance.randrange(end)
    match chance.randrange(7):
        case 0 | 1:
            size = chance.choice((1, 2, 4))
            number = chance.choice(NUMBERS) % (1 << 8 * size)
            new = number.to_bytes(size, "big" if chance.random() < 0.5 else "little")
            gone = size
        case 2:
            new, gone = bytes([data[at] ^ 1 << chance.randrange(8)]), 1
        case 3:
            new, gone = chance.randbytes(chance.choice((1, 2, 8))), 0
        case 4:
            new, gone = b"", chance.choice((1, 2, 8, 100))
        case 5:
            new, gone = data[at : at + chance.choice((1, 4, 30))] * chance.choice((2, 10, 1000)), 0
        case _:
            new, gone = b"", len(data)
    return data[:at] + new + data[at + gone :]
