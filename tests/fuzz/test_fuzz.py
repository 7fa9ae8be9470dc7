"""The fuzzer: it takes files apart and puts them together again, finds what it should, and finds nothing at present."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from benchmarks.hostile_images import gif_claiming
from model.errors import ImageSizeError, UndecodableError
from model.inputs.pool import DecodePool, Kill
from tests.fuzz.__main__ import DECODED, LIMITS, Fuzzer
from tests.fuzz.grammar import GRAMMARS
from tests.fuzz.mutations import mutated
from tests.fuzz.seeds import Seed, all_seeds, honest, kept

HONEST = list(honest())


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    fuzzer = Fuzzer(tmp_path_factory.mktemp("findings"))
    with fuzzer.pool:
        yield fuzzer


@pytest.mark.parametrize("seed", HONEST, ids=lambda seed: seed.name)
def test_honest_files_are_decoded_and_come_out_of_their_grammar_as_they_were(seed: Seed, fuzzer: Fuzzer) -> None:
    grammar = GRAMMARS[seed.file_format]
    assert grammar.write(grammar.parse(seed.data)) == seed.data
    assert fuzzer.try_file(seed.data) == DECODED


def test_there_are_files_of_every_format() -> None:
    assert {seed.file_format for seed in HONEST} == set(GRAMMARS) == {seed.file_format for seed in kept()}


@pytest.mark.parametrize("file_format", GRAMMARS)
def test_the_same_chance_makes_the_same_files_of_which_some_are_still_images(file_format: str) -> None:
    files = [seed.data for seed in HONEST if seed.file_format == file_format]

    def some(seed: int) -> list[bytes]:
        chance = Random(seed)
        return [mutated(chance.choice(files), file_format, files, chance) for _ in range(60)]

    assert some(1) == some(1) != some(2)
    opened: Counter[bool] = Counter()
    for data in some(1):
        try:
            with Image.open(io.BytesIO(data), formats=[file_format]) as image:
                opened[image.width > 0] += 1
        except Exception:
            opened[False] += 1
    assert min(opened[True], opened[False]) >= 6


def test_nothing_is_found_among_the_files_that_once_were_trouble_and_in_some_damaged_ones(fuzzer: Fuzzer) -> None:
    for seed in kept():
        fuzzer.try_file(seed.data)
    chance, seeds = Random(1), all_seeds()
    for _ in range(200):
        seed = chance.choice(seeds)
        others = [other.data for other in seeds if other.file_format == seed.file_format]
        fuzzer.try_file(mutated(seed.data, seed.file_format, others, chance))
    assert fuzzer.findings == []


class Troubled(DecodePool):
    """Loses a worker, or raises."""

    def __init__(self, fuzzer: Fuzzer, reason: Kill | None, error: Exception) -> None:
        super().__init__(2, memory=1)
        self._fuzzer, self._reason, self._error = fuzzer, reason, error

    def decode(self, *_: Any) -> Any:
        if self._reason is not None:
            self._fuzzer.note_kill(self._reason)
        raise self._error


@pytest.mark.parametrize(
    ("reason", "error", "found"),
    [
        (Kill.CRASH, UndecodableError("crash"), True),
        (Kill.WALL_TIME, UndecodableError("hang"), True),
        (Kill.CPU_TIME, UndecodableError("long"), False),
        (Kill.MEMORY, UndecodableError("memory"), False),
        (None, ImageSizeError("large"), False),
        (None, ZeroDivisionError("bug"), True),
    ],
)
def test_crashes_and_hangs_and_other_exceptions_are_findings_that_are_kept(
    reason: Kill | None, error: Exception, found: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fuzzer = Fuzzer(tmp_path)
    fuzzer.pool = Troubled(fuzzer, reason, error)
    fuzzer.try_file(b"GIF89a")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"GIF89a"] * found
    assert len(fuzzer.findings) == found
    assert ("R0lGODlh" in capsys.readouterr().out) == found


def test_an_image_over_the_limit_is_refused(fuzzer: Fuzzer) -> None:
    data = gif_claiming(LIMITS.max_pixels // 1000, 1001)
    assert fuzzer.try_file(data).startswith("ImageSizeError")
