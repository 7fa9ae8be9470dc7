"""Tokenizers that towers bring along: whose words the tokens are, long titles, titles that play tricks."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.config import PreprocessConfig, TokenizerConfig
from model.errors import ConfigError
from model.inputs.cleaning import CLEANING
from model.inputs.tokenizer import TitleTokenizer
from tests.model.pretrained_towers import bert_tokenizer, t5_tokenizer, xlm_tokenizer

WRITERS = {"t5": t5_tokenizer, "xlm": xlm_tokenizer, "bert": bert_tokenizer}
ENDS = {"t5": 1, "xlm": 2, "bert": 3}


@pytest.fixture(scope="module", params=list(ENDS))
def tokenize(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TitleTokenizer:
    return made(request.param, tmp_path_factory.mktemp("tokenizer"))


def made(kind: str, folder: Path, clean: str = "canonicalize") -> TitleTokenizer:
    WRITERS[kind](folder)
    definition = (folder / "tokenizer.json").read_text()
    own = TokenizerConfig(definition=definition, clean=clean, end=ENDS[kind], padding=0)  # type: ignore[arg-type]
    return TitleTokenizer(PreprocessConfig(image_size=(8, 8), context_length=32, tokenizer=own))


def test_tokens_are_traced_to_the_callers_words(tokenize: TitleTokenizer) -> None:
    title = tokenize("Puma  RED_Dress - 'Shirt'!")
    assert title.words == ("Puma", "RED_Dress", "-", "'Shirt'!")
    owners = list(title.word_of_token)
    assert owners == sorted(owners)
    assert set(owners) == {0, 1, 3}  # nothing is left of the dash
    alone = tokenize("Shirt")
    inner = [token for token, owner in zip(title.tokens[title.before :], owners, strict=False) if owner == 3]
    assert inner == alone.tokens[alone.before : alone.before + len(alone.word_of_token)].tolist()


def test_words_that_cleaning_merges_are_those_of_the_cleaned_title(tokenize: TitleTokenizer) -> None:
    text = "shirt \u00c3\u00a0 la mode"  # one letter in a wrong encoding, the second half of which is a space
    title = tokenize(text)
    assert title.words == tuple(CLEANING["canonicalize"](text).split()) == ("shirt", "à", "la", "mode")
    assert max(title.word_of_token) < len(title.words)


def test_a_title_of_which_nothing_is_left_is_its_ends(tokenize: TitleTokenizer) -> None:
    title = tokenize("%%% ---")
    assert title.word_of_token == ()
    assert len(title.tokens) == title.before + 1
    assert not title.truncated


def test_long_titles_are_cut_and_still_end(tokenize: TitleTokenizer) -> None:
    title = tokenize("navy blue shirt " * 50)
    assert title.truncated
    assert len(title.tokens) == 32
    assert title.tokens[-1] == tokenize("shirt").tokens[-1]


def test_special_tokens_in_a_title_are_text(tmp_path: Path) -> None:
    tokenize = made("t5", tmp_path, clean="whitespace")
    title = tokenize("shirt </s> <pad> dress")
    assert title.tokens.tolist().count(1) == 1
    assert title.tokens[-1] == 1


def test_no_title_takes_long(tokenize: TitleTokenizer) -> None:
    began = time.process_time()
    for text in ("a" * 4096, "ab" * 2048, "é" * 4096, "🙂" * 4096, "a " * 2048):
        tokenize(text)
    assert time.process_time() - began < 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_title_ends_once_and_its_tokens_are_of_its_words(tokenize: TitleTokenizer, text: str) -> None:
    title = tokenize(text)
    end = int(title.tokens[-1])
    assert title.tokens.tolist().count(end) == 1
    assert len(title.tokens) - len(title.word_of_token) - title.before == 1
    assert all(0 <= owner < len(title.words) for owner in title.word_of_token)


def test_a_tokenizer_that_was_sent_to_another_process_reads_the_same(tokenize: TitleTokenizer) -> None:
    sent = pickle.loads(pickle.dumps(tokenize))  # noqa: S301 - our own
    assert sent("navy blue shirt").tokens.tolist() == tokenize("navy blue shirt").tokens.tolist()


def test_what_is_remembered_of_words_is_bounded(tokenize: TitleTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.inputs.tokenizer.MAX_CACHED_WORDS", 50)
    for number in range(200):
        tokenize(f"word{number} shirt{number}")
    assert len(tokenize._tokenize._cleaned) <= 50  # type: ignore[attr-defined]


def test_a_definition_that_cannot_be_read_is_refused() -> None:
    own = TokenizerConfig(definition="{}", end=1, padding=0)
    with pytest.raises(ConfigError, match="the tokenizer cannot be read"):
        TitleTokenizer(PreprocessConfig(image_size=(8, 8), context_length=32, tokenizer=own))
