"""Fuzz the decoder of images: damaged files of all six formats, through real decode workers, for a while.

    python -m tests.fuzz [--minutes 2] [--seed 1]
    python -m tests.fuzz FILE ...        what the decoder makes of these files

Every file must be decoded or refused. A worker that crashes or hangs, or any other exception, is a finding: the file is
kept in the folder `build/fuzz`, and once it is mended, in `tests/fuzz/seeds`. To run out of the memory or the CPU time
that an image of its size may take is no finding, since that is how such files are refused.

Damaged files that are decoded all the same are damaged further. With the same seed and workers, the same files come in
the same order.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from model.errors import ImageError
from model.inputs.limits import Limits
from model.inputs.pool import DecodePool, Kill, memory_for
from model.inputs.worker import Fitting
from tests.fuzz.mutations import mutated
from tests.fuzz.seeds import Seed, all_seeds

LIMITS = Limits(max_pixels=4_000_000)
RESIZING = Fitting(image_size=(128, 96), resize="longest", fill=255, interpolation="bicubic", framing="product")
WORKERS = 2
FINDINGS = Path("build/fuzz")
DECODED = "decoded"
SHOWN_BYTES = 3000
"""A finding of at most this size is also printed, for machines from which no file comes back."""

MOST_FILES = 300
"""How many files of a format are kept to be damaged further."""


class Fuzzer:
    """The decode workers, and what they made of the files so far."""

    def __init__(self, findings: Path = FINDINGS) -> None:
        self._folder = findings
        self.outcomes: Counter[str] = Counter()
        self.findings: list[str] = []
        self._lock = threading.Lock()
        self._killed = threading.local()
        self.pool = DecodePool(WORKERS, memory=memory_for(LIMITS.max_pixels), on_kill=self.note_kill)

    def note_kill(self, reason: Kill) -> None:
        """Remember why a worker was lost, in the thread that waits for it."""
        self._killed.reason = reason

    def try_file(self, data: bytes) -> str:
        """Decode a file; return what came of it in a few words, and keep the file if it is a finding."""
        self._killed.reason = None
        finding = None
        try:
            image = self.pool.decode(data, LIMITS, RESIZING).image
            said = DECODED
            if image.pixels.shape != (3, *RESIZING.image_size):
                finding = f"pixels of shape {image.pixels.shape}"
        except ImageError as error:
            said = f"{type(error).__name__}: {error}"
        except Exception as error:
            said = finding = f"{type(error).__name__}: {error}"
        reason: Kill | None = self._killed.reason
        if reason in (Kill.CRASH, Kill.WALL_TIME):
            finding = f"a worker was lost ({reason}): {said}"
        with self._lock:
            self.outcomes[f"killed: {reason}" if reason else said.partition(":")[0]] += 1
            if finding is not None:
                self._keep(data, finding)
        return said

    def _keep(self, data: bytes, finding: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / hashlib.sha256(data).hexdigest()[:12]
        path.write_bytes(data)
        self.findings.append(f"{path}: {finding}")
        print(f"finding: {finding}\n  again with: python -m tests.fuzz {path}", flush=True)
        if len(data) <= SHOWN_BYTES:
            print(f"  which is: echo {base64.b64encode(data).decode()} | base64 -d >{path}", flush=True)

    def fuzz(self, seeds: Iterable[Seed], chance: Random, end: float) -> None:
        """Try damaged files until the clock reaches `end`."""
        files: dict[str, list[bytes]] = {}
        for seed in seeds:
            files.setdefault(seed.file_format, []).append(seed.data)
        formats = sorted(files)
        while time.monotonic() < end:
            file_format = chance.choice(formats)
            known = files[file_format]
            data = mutated(chance.choice(known), file_format, known, chance)
            if self.try_file(data) == DECODED and len(known) < MOST_FILES and data not in known:
                known.append(data)


def main(
    replay: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="only decode these files")] = None,
    minutes: Annotated[float, typer.Option(min=0, help="duration")] = 2.0,
    seed: Annotated[int, typer.Option(help="another one tries other files")] = 1,
) -> None:
    """Print what came of the files; exit status 1 if there are findings."""
    fuzzer = Fuzzer()
    with fuzzer.pool:
        if replay:
            for path in replay:
                print(f"{path}: {fuzzer.try_file(path.read_bytes())}")
        else:
            end = time.monotonic() + 60 * minutes
            lanes = [
                threading.Thread(target=fuzzer.fuzz, args=(all_seeds(), Random(f"{seed} {lane}"), end))
                for lane in range(WORKERS)
            ]
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.join()
    print(
        f"{fuzzer.outcomes.total()} files:",
        *(f"{count} {name}" for name, count in fuzzer.outcomes.most_common()),
        sep="\n  ",
    )
    if fuzzer.findings:
        sys.exit("failed:\n  " + "\n  ".join(fuzzer.findings))


if __name__ == "__main__":
    typer.run(main)
