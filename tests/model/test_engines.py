"""Engines: what `auto` takes, why it falls back, and that a damaged or foreign engine folder is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoint.compiled import ENGINE, ENGINES
from model.checkpoint.folder import CALIBRATION, CONFIG, load_checkpoint, write_json
from model.errors import CheckpointError, ConfigError
from model.inference.engines import choose
from model.inference.engines.engine import EngineName, Rows
from model.inference.engines.openvino_engine import OpenVinoEngine
from model.inference.predictor import Predictor

F32 = EngineName.OPENVINO_F32


@pytest.fixture
def carrying(checkpoint_folder: Path, compiled_folder: Path) -> Path:
    """A checkpoint that carries openvino-f32."""
    shutil.copytree(compiled_folder, checkpoint_folder / ENGINES)
    return checkpoint_folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged about the choice of an engine."""
    lines: list[str] = []
    monkeypatch.setattr(choose.log, "warning", lambda text, *values: lines.append(text % values))
    return lines


@pytest.fixture(scope="module")
def engine(compiled_folder: Path) -> OpenVinoEngine:
    return OpenVinoEngine.load(load_checkpoint(compiled_folder.parent, F32))


@pytest.fixture(scope="module")
def threaded(compiled_folder: Path) -> OpenVinoEngine:
    """The same one, whose batches are computed in three slices at most."""
    checkpoint = load_checkpoint(compiled_folder.parent, F32)
    assert checkpoint.compiled is not None
    labels = [len(task.labels) for task in checkpoint.tasks]
    return OpenVinoEngine(checkpoint.compiled, checkpoint.home, labels, end=checkpoint.config.preprocess.end, threads=3)


def test_a_checkpoint_that_carries_an_engine_is_computed_by_it(
    carrying: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "GPU_DEVICES", ())
    info = Predictor.load(carrying).info
    assert (info.engine, info.device, info.dtype) == ("openvino-f32", "cpu", "float32")
    assert info.parameters == Predictor.load(carrying, engine="torch").info.parameters
    assert not said


def test_its_scores_are_not_certified_by_the_calibration_of_pytorch(carrying: Path) -> None:
    write_json(carrying / CALIBRATION, {"version": load_checkpoint(carrying).version, "engine": "of none"})
    assert Predictor.load(carrying, engine=F32).info.target_precisions == ()


@pytest.mark.parametrize("asked", [{"dtype": "bfloat16"}, {"dtype": "float32", "device": "cpu"}])
def test_a_number_format_of_pytorch_means_pytorch(carrying: Path, asked: dict[str, str], said: list[str]) -> None:
    assert Predictor.load(carrying, **asked).info.engine == "torch"
    assert not said
    with pytest.raises(ConfigError, match=r"openvino-f32 cannot be used: the number format .* is PyTorch's"):
        Predictor.load(carrying, **asked, engine=F32)


def test_the_fastest_engine_that_the_processor_can_run_is_taken(
    carrying: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "GPU_DEVICES", ())
    for name in (EngineName.OPENVINO_INT8, EngineName.OPENVINO_BF16):
        (carrying / ENGINES / name).mkdir()
    for flags, taken in (("avx512_bf16 avx512_vnni", "openvino-int8"), ("avx512_bf16", "openvino-bf16")):
        monkeypatch.setattr(choose, "CPU_INFO", cpu_info(tmp_path, flags))
        with pytest.raises(CheckpointError, match=rf"{taken}.engine.json is missing"):
            Predictor.load(carrying)
    monkeypatch.setattr(choose, "CPU_INFO", cpu_info(tmp_path, "avx2"))
    assert Predictor.load(carrying).info.engine == "openvino-f32"
    with pytest.raises(ConfigError, match=r"openvino-int8 cannot be used: .* avx512_vnni, avx_vnni"):
        Predictor.load(carrying, engine="openvino-int8")


def cpu_info(folder: Path, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    return path


@pytest.mark.parametrize("without", ["package", "instructions", "engine"])
def test_falling_back_to_pytorch_is_said_in_one_line(
    carrying: Path, tmp_path: Path, without: str, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(choose, "GPU_DEVICES", ())
    if without == "package":
        monkeypatch.setattr(choose, "find_spec", lambda name: None if name == "openvino" else name)
        reason = "openvino-f32: the package openvino is not installed"
    elif without == "instructions":
        (carrying / ENGINES / F32).rename(carrying / ENGINES / EngineName.OPENVINO_INT8)
        monkeypatch.setattr(choose, "CPU_INFO", cpu_info(tmp_path, "avx2"))
        reason = "openvino-int8: this processor has none of the instructions avx512_vnni, avx_vnni"
    else:
        shutil.rmtree(carrying / ENGINES)
        reason = "carries no other engine"
    assert Predictor.load(carrying).info.engine == "torch"
    (line,) = said
    assert reason in line


def test_pytorch_that_is_missing_is_named(carrying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "find_spec", lambda name: None if name == "torch" else name)
    assert Predictor.load(carrying).info.engine == "openvino-f32"
    with pytest.raises(ConfigError, match=r"torch is not installed; install the extra"):
        Predictor.load(carrying, engine="torch")


@pytest.mark.parametrize("name", ["openvino-int4", "onnx", ""])
def test_an_unknown_engine_is_named(carrying: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown engine '{name}'; use auto, torch, openvino-f32"):
        Predictor.load(carrying, engine=name)


def test_an_engine_that_the_checkpoint_lacks_is_named(checkpoint_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"carries no engine openvino-f32; `cma-clip compile` makes one"):
        Predictor.load(checkpoint_folder, engine=F32)


def _truncate(folder: Path) -> None:
    path = folder / "text.bin"
    path.write_bytes(path.read_bytes()[:-8])


def _foreign(folder: Path) -> None:
    content = json.loads((folder / ENGINE).read_text())
    (folder / ENGINE).write_text(json.dumps({**content, "version": "0123456789ab"}))


def _of_another_build(folder: Path) -> None:
    version = json.loads((folder.parents[1] / CONFIG).read_text())["version"]
    write_json(folder / CALIBRATION, {"version": version, "engine": "0123456789ab"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"text\.bin is not the one that engine\.json describes"),
        (lambda folder: (folder / "fusion.xml").unlink(), r"fusion\.xml cannot be read: No such file"),
        (lambda folder: (folder / ENGINE).unlink(), r"engine\.json is missing"),
        (lambda folder: (folder / ENGINE).write_text("{"), r"engine\.json is damaged"),
        (lambda folder: (folder / ENGINE).write_text('{"format": 1}'), r"engine\.json is damaged: 'grid'"),
        (_foreign, r"was compiled from weights 0123456789ab, but the checkpoint's are"),
        (_of_another_build, r"calibration\.json is of another engine than the network beside it"),
    ],
)
def test_a_damaged_or_foreign_engine_is_refused_by_name(
    carrying: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(carrying / ENGINES / F32)
    with pytest.raises(CheckpointError, match=message):
        Predictor.load(carrying)


def test_nothing_is_reported_to_the_makers_of_openvino() -> None:
    code = (
        "import model.inference.engines.openvino_engine\n"
        "from nncf.telemetry.wrapper import telemetry\n"
        "from openvino.tools.ovc.telemetry_utils import tm\n"
        "print(type(telemetry).__name__, tm.__name__)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this very program
    assert found.stdout.split() == ["MagicMock", "openvino.tools.ovc.telemetry_stub"]


def test_an_engine_under_another_name_is_refused(carrying: Path) -> None:
    (carrying / ENGINES / F32).rename(carrying / ENGINES / "openvino-bf16")
    with pytest.raises(CheckpointError, match=r"is of the engine openvino-f32, but lies in .*bf16"):
        load_checkpoint(carrying, "openvino-bf16")


@settings(max_examples=25)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_a_row_comes_out_the_same_in_any_batch_and_slice(
    engine: OpenVinoEngine, threaded: OpenVinoEngine, kinds: list[int], seed: int
) -> None:
    """Bit 1 of a kind: it has an image, bit 2: a title; of any length, beside any others."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (len(kinds), 3, 24, 16), dtype=np.uint8)
    tokens = np.zeros((len(kinds), int(rng.choice([8, 16]))), np.int64)
    for row in range(len(kinds)):
        end = int(rng.integers(1, tokens.shape[1]))
        tokens[row, :end], tokens[row, end] = rng.integers(1, 49_000, end), 49_407
    for computed in (engine, threaded):
        encoded = computed.encode(computed.place(pixels, tokens))
        together = computed.fuse(encoded, [_rows(row, kind) for row, kind in enumerate(kinds)])
        for row, kind in enumerate(kinds):
            placed = engine.place(
                pixels[row : row + 1] if kind & 1 else None, tokens[row : row + 1] if kind & 2 else None
            )
            (alone,) = engine.fuse(engine.encode(placed), [_rows(0, kind)])
            assert np.allclose(np.concatenate(alone.logits, 1), np.concatenate(together[row].logits, 1), atol=1e-5)
            assert np.allclose(alone.attention, together[row].attention, atol=1e-5)
            assert np.allclose(alone.embeddings, together[row].embeddings, atol=1e-5)


def _rows(row: int, kind: int) -> Rows:
    at = np.array([row], dtype=np.intp)
    return Rows(image=at if kind & 1 else None, text=at if kind & 2 else None)


def test_a_signal_is_handled_after_an_engine_was_freed_in_another_thread() -> None:
    """OpenVINO's plugin frees the signal stack of the thread that loaded it; in a process of its own: it was ended."""
    code = (
        "import gc, os, signal, threading\n"
        "from model.inference.predictor import Predictor\n"
        "held = [Predictor.load('weights/fashion', engine='openvino-f32')]\n"
        "thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))\n"
        "thread.start(); thread.join()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
