"""Any text gets the tokens that open_clip's tokenizer gives it, without torch."""

from __future__ import annotations

import html.entities
import sys

import numpy as np
import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.inputs.byte_pairs import MERGES, PIECES, BytePairs

PAIRS = BytePairs()
REFERENCE = open_clip.SimpleTokenizer()

ENTITIES = st.sampled_from(sorted(html.entities.html5)).map("&{}".format)
WORDS = st.sampled_from(
    ["navy", "T-Shirt", "WOMEN'S", "we'll", "I’D", "don't", "2012", "100%", "(M/L)", "<end_of_text>"]
)
EMOJI = st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF)
LETTERS = st.characters(categories=["L", "M", "N"])
MOJIBAKE = st.text(max_size=8).map(lambda text: text.encode("utf-8", "ignore").decode("cp1252", "ignore"))
TITLES = st.lists(st.one_of(WORDS, ENTITIES, EMOJI, MOJIBAKE, st.text(LETTERS, max_size=8), st.text()), max_size=30)


def expected(text: str) -> list[int]:
    """Return open_clip's tokens; those of start and end are for the title's own ends alone."""
    special = {REFERENCE.sot_token_id, REFERENCE.eot_token_id}
    return [token for token in REFERENCE.encode(text) if token not in special]


@given(TITLES, st.sampled_from(["", " ", "\u00a0", "_"]))
def test_tokens_are_open_clips(parts: list[str], separator: str) -> None:
    text = separator.join(parts)
    assert list(PAIRS.encode(text)) == expected(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \t\u3000\x1c ",
        "&amp;amp;quot;navy&nbsp;blue&quot;",
        "ΣΑΣ İstanbul STRASSE ﬁne \u212aelvin",
        "it'ſ a <ſtart_of_text> <END_OF_TEXT> <start_of_text>x",
        "cafÃ© â€œ13â€\x9d 🧥👩‍👩‍👧 ٣٤ ½ ①",
        "\ud800 a lone surrogate",
        "x" * 300 + "é" * 300 + "!" * 300,
    ],
)
def test_odd_text_too(text: str) -> None:
    assert list(PAIRS.encode(text)) == expected(text)


def test_every_character_is_counted_as_the_kind_that_open_clip_counts_it_as() -> None:
    text = "".join(f"a{chr(code)}1'{chr(code)} " for code in (*range(0x20000), *range(0x20000, sys.maxunicode, 97)))
    assert PIECES.findall(text) == REFERENCE.pat.findall(text)


def test_the_merges_are_clips() -> None:
    merges = sorted(REFERENCE.bpe_ranks, key=REFERENCE.bpe_ranks.__getitem__)
    tokens = [[REFERENCE.encoder[left], REFERENCE.encoder[right]] for left, right in merges]
    assert np.load(MERGES).tolist() == tokens
    assert (PAIRS.start, PAIRS.end) == (REFERENCE.sot_token_id, REFERENCE.eot_token_id)
