"""Image files as trees of parts, as their formats define them.

A file that is damaged at random is refused at its first checksum or length. Here lengths and checksums are computed
anew after the damage, so that the code behind those checks is reached too.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Part:
    """A chunk, segment, block or box: what comes before its content, its content, and the parts within it."""

    kind: bytes
    content: bytes = b""
    parts: list[Part] = field(default_factory=list)
    """They follow the content."""

    def walk(self) -> Iterator[Part]:
        """Yield this part and all within it."""
        yield self
        for part in self.parts:
            yield from part.walk()


@dataclass(frozen=True)
class Grammar:
    """How files of a format are taken apart and put together; an undamaged file comes out as it went in."""

    parse: Callable[[bytes], Part]
    write: Callable[[Part], bytes]


# ── PNG: a signature, then chunks with length and checksum ──────────────────────────────────────────────────────


def parse_png(data: bytes) -> Part:
    root, at = Part(data[:8]), 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        root.parts.append(Part(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    return root


def write_png(root: Part) -> bytes:
    chunks = [
        struct.pack(">I", len(part.content))
        + part.kind
        + part.content
        + struct.pack(">I", zlib.crc32(part.kind + part.content))
        for part in root.parts
    ]
    return root.kind + b"".join(chunks)


# ── JPEG: markers, most of them with a length; after a start of scan, its data up to the next marker ────────────

SCAN, END = b"\xff\xda", b"\xff\xd9"


def parse_jpeg(data: bytes) -> Part:
    root, at = Part(data[:2]), 2
    while at + 4 <= len(data) and data[at : at + 2] != END:
        length = int.from_bytes(data[at + 2 : at + 4])
        if at + 2 + length > len(data):
            break
        segment = Part(data[at : at + 2], data[at + 4 : at + 2 + length])
        at += 2 + length
        if segment.kind == SCAN:
            end = at
            while end + 1 < len(data) and (data[end] != 0xFF or data[end + 1] in (0, *range(0xD0, 0xD8))):
                end += 1
            segment.parts.append(Part(b"", data[at:end]))
            at = end
        root.parts.append(segment)
    root.parts.append(Part(b"", data[at:]))
    return root


def write_jpeg(root: Part) -> bytes:
    written = [root.kind]
    for part in root.parts:
        length = struct.pack(">H", min(len(part.content) + 2, 0xFFFF)) if part.kind else b""
        written += [part.kind, length, part.content, *(each.content for each in part.parts)]
    return b"".join(written)


# ── GIF: screen, then extensions and frames, each with its data in blocks of up to 255 bytes ────────────────────


def parse_gif(data: bytes) -> Part:
    palette = 3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0
    at = 13 + palette
    root = Part(data[:6], data[6:at])
    while at < len(data) and data[at] in b"!,":
        begin = at
        at += 2
        if data[begin] == ord(","):
            packed = data[begin + 9]
            at = begin + 10 + (3 << (packed & 7) + 1 if packed & 0x80 else 0) + 1  # and the size of the codes
        content = b""
        head = data[begin:at]
        while at < len(data) and data[at]:
            content += data[at + 1 : at + 1 + data[at]]
            at += 1 + data[at]
        root.parts.append(Part(head[:1], head[1:], [Part(b"", content)]))
        at += 1
    root.parts.append(Part(data[at:]))
    return root


def write_gif(root: Part) -> bytes:
    written = [root.kind, root.content]
    for part in root.parts:
        written += [part.kind, part.content]
        for data in part.parts:
            blocks = [data.content[at : at + 255] for at in range(0, len(data.content), 255)]
            written += [bytes([len(block)]) + block for block in blocks] + [b"\0"]
    return b"".join(written)


# ── WebP: chunks with a length, padded to an even one; a frame of an animation holds chunks itself ──────────────

FRAME_BYTES = 16


def parse_webp(data: bytes) -> Part:
    return Part(data[:4] + data[8:12], b"", _webp_chunks(data[12:]))


def _webp_chunks(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        content = data[at + 8 : at + 8 + length]
        if kind == b"ANMF":
            parts.append(Part(kind, content[:FRAME_BYTES], _webp_chunks(content[FRAME_BYTES:])))
        else:
            parts.append(Part(kind, content))
        at += 8 + length + length % 2
    return parts


def write_webp(root: Part) -> bytes:
    body = root.kind[4:] + b"".join(map(_webp_chunk, root.parts))
    return root.kind[:4] + struct.pack("<I", len(body)) + body


def _webp_chunk(part: Part) -> bytes:
    content = part.content + b"".join(map(_webp_chunk, part.parts))
    return part.kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


# ── AVIF: boxes with a length, many of which hold boxes, some after a head of their own ─────────────────────────

BOX_HEADS = {
    **dict.fromkeys((b"iprp", b"ipco", b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"edts"), 0),
    **dict.fromkeys((b"meta", b"iref"), 4),
    b"iinf": 6,
    b"stsd": 8,
}


def parse_avif(data: bytes) -> Part:
    return Part(b"", b"", _boxes(data))


def _boxes(data: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4]) or len(data) - at
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + max(length, 8)]
        head = BOX_HEADS.get(kind, len(content))
        parts.append(Part(kind, content[:head], _boxes(content[head:])))
        at += max(length, 8)
    return parts


def write_avif(root: Part) -> bytes:
    return b"".join(map(_box, root.parts))


def _box(part: Part) -> bytes:
    content = part.content + write_avif(part)
    return struct.pack(">I", len(content) + 8) + part.kind + content


# ── BMP: two heads, then the palette and the pixels ─────────────────────────────────────────────────────────────


def parse_bmp(data: bytes) -> Part:
    head = 14 + int.from_bytes(data[14:18], "little")
    return Part(data[:2], data[2:14], [Part(b"", data[14:head]), Part(b"", data[head:])])


def write_bmp(root: Part) -> bytes:
    return root.kind + root.content + b"".join(part.content for part in root.parts)


GRAMMARS = {
    "JPEG": Grammar(parse_jpeg, write_jpeg),
    "PNG": Grammar(parse_png, write_png),
    "WEBP": Grammar(parse_webp, write_webp),
    "GIF": Grammar(parse_gif, write_gif),
    "AVIF": Grammar(parse_avif, write_avif),
    "BMP": Grammar(parse_bmp, write_bmp),
}
"""By Pillow's name of the format."""
