"""JSON bodies: parsed as by a parser that sees the whole, without ever giving it the whole."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from service.errors import InvalidRequest, PayloadTooLarge
from service.http import json_body
from service.http.json_body import (
    LONG,
    MAX_ESCAPES,
    MAX_JSON_ELEMENTS,
    MAX_STRUCTURE_BYTES,
    MAX_TEXT_BYTES,
    PART,
    SLICE,
    parse_json,
)
from service.http.pieces import Pieces

BASE64 = "abcdefgh" * (PART // 4)  # two parts


def pieces(text: bytes, *, size: int = 100_000) -> Pieces:
    body = Pieces()
    for start in range(0, len(text), size):
        body.append(text[start : start + size])
    return body


def parsed(text: bytes, *, size: int = 100_000) -> Any:
    body = pieces(text, size=size)
    document = asyncio.run(parse_json(body))
    assert len(body) == 0, "the bytes have been let go"
    return document


@pytest.mark.parametrize(
    "document",
    [
        {"title": "a", "image": {"base64": BASE64}},
        {"listings": [{"title": "t" * 4000, "image": {"base64": "x" * n}} for n in range(LONG - 3, LONG + 3)]},
        BASE64,
        [BASE64, BASE64 + "/", "", [[BASE64]]],
        {"a": 'quoted " and \\ and \n' * 2000, "b": "ü😀あ" * 1000, "c": [1.5, None, True, -3e5]},
        {"pad": " " * SLICE, "numbers": list(range(5000))},
        {"escaped": "abcdefgh/=+\n" * (PART // 8)},
    ],
)
@pytest.mark.parametrize("ensure_ascii", [False, True])
@pytest.mark.parametrize("size", [100_000, 977])
def test_documents_are_parsed_as_they_are(document: Any, ensure_ascii: bool, size: int) -> None:
    text = json.dumps(document, ensure_ascii=ensure_ascii, indent=1).replace("/", "\\/").encode()
    assert len(text) > SLICE
    assert parsed(text, size=size) == document


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.text(alphabet='"\\/u00ü😀', min_size=LONG // 2),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
)


@given(JSON, st.integers(1, 300), st.booleans())
@settings(deadline=None, max_examples=50, derandomize=True)
def test_cut_anywhere_nothing_changes(document: Any, size: int, ensure_ascii: bool) -> None:
    text = json.dumps(document, ensure_ascii=ensure_ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "SLICE", size)
        if ensure_ascii:  # parts are cut between characters of ASCII alone
            patch.setattr(json_body, "PART", 2 * size)
        patch.setattr(json_body, "LONG", max(60, size))  # longer than the names
        assert parsed(text, size=size) == from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 16_000_000,
        b'{"a":' * 4_000_000,
        b",".join([b"[" * 150 + b"]" * 150] * 50_000),
        b"[" + b"{}," * MAX_JSON_ELEMENTS + b"{}]",
        b"[" + b'"",' * MAX_JSON_ELEMENTS + b'""]',
        b'{"a":1' + b',"a":1' * MAX_JSON_ELEMENTS + b"}",
        b" " * (MAX_STRUCTURE_BYTES + 1) + b"1",
        b"1" * (MAX_STRUCTURE_BYTES + 1),
        b'"' + b"\\/" * (MAX_ESCAPES + 1) + b'"',
        b'["' + b'","'.join([b"a" * (LONG - 10)] * 2100) + b'"]',
    ],
)
def test_what_would_cost_too_much_never_reaches_the_parser(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(given: bytes) -> None:
        raise AssertionError(f"the parser was given {len(given)} bytes")

    monkeypatch.setattr(json_body, "from_json", refuse)
    with pytest.raises(PayloadTooLarge):
        parsed(text)


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b"a" * MAX_TEXT_BYTES + "😀".encode() + b'"',
        b'"' + b"a" * (3 * PART) + "ü".encode() + b'"',
        b'"' + "あ".encode() * MAX_TEXT_BYTES + b'"',
    ],
)
def test_one_character_does_not_multiply_what_a_long_string_takes(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not base64"):
        parsed(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": "' + b"a" * SLICE,
        b'{"a": "' + b"a" * SLICE + b'\n"}',
        b'{"a": "' + b"a" * SLICE + b'\\x"}',
        b'{"a": "' + b"a" * SLICE + b'"',
        b"[" + b" " * SLICE + b"nan?]",
        b"{" + b" " * SLICE + b"}}",
        b'{"' + b"a" * SLICE + b'": 1}',
        b'["\xff' + b"a" * SLICE + b'"]',
    ],
)
def test_what_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parsed(text)


def test_the_parser_is_given_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def watched(text: bytes) -> Any:
        given.append(len(text))
        return from_json(text)

    monkeypatch.setattr(json_body, "from_json", watched)
    text = json.dumps({"listings": [{"title": "t" * 4000, "image": {"base64": BASE64}}] * 12}).encode()
    assert parsed(text) == from_json(text)
    assert len(text) > 24 * PART
    assert max(given) <= PART + 2 * SLICE


async def test_others_have_their_turn_while_a_body_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "TURN_SECONDS", 0.0)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    waiting = asyncio.create_task(others())
    size = 4_000_000
    await parse_json(pieces(b'"' + b"a" * size + b'"'))
    waiting.cancel()
    assert turns >= size // SLICE


def test_a_string_that_looks_like_a_mark_is_only_a_string() -> None:
    document = ["0" * 32 + "0", "f" * 33, "x" * SLICE]
    assert parsed(json.dumps(document).encode()) == document


# ── pieces ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_body_of_single_bytes_is_not_kept_as_such() -> None:
    body = pieces(b"a" * 200_000, size=1)
    assert len(body) == 200_000
    taken = list(body.taken())
    assert b"".join(taken) == b"a" * 200_000
    assert len(taken) <= 4
    assert body.take() == b""
