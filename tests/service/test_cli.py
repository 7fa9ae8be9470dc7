"""The commands: what they print, and that a mistake is one line and exit status 2."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from model.catalogue.listings import ReadReport
from model.errors import CatalogueError, CheckpointError
from model.inference.bulk import Labelling, LabellingInterrupted
from model.inference.cluster import Cluster
from service import app as app_module
from service import cli
from service.commands import predict as predict_command
from tests.service.conftest import encoded
from tests.service.fake_predictor import FakePredictor
from tests.service.test_lifecycle import ROOT, replica


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_command, "load_predictor", lambda settings: FakePredictor())
    monkeypatch.setenv("COLUMNS", "160")


def run(*arguments: str) -> Any:
    """Run a command in this process; its mistakes come out as exceptions, which `main` turns into one line."""
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=True)


def failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Run `main` on arguments that are a mistake; return the one line."""
    monkeypatch.setattr(sys, "argv", ["cma-clip", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("command", [[], ["check"], ["serve"], ["predict"], ["bench"]])
def test_help_is_printed(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"cma-clip {project['version']}\n")


@pytest.mark.parametrize("command", ["audit", "calibrate", "label", "serve"])
def test_only_training_runs_in_several_processes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """As each would do all of the work, and write the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert failed(capsys, monkeypatch, command) == (
        f"cma-clip: {command} runs in one process, and WORLD_SIZE says 2: start it without torchrun; several processes "
        "can pretrain and train\n"
    )
    assert run("train", "--list-backbones").exit_code == 0


def test_serve_has_a_flag_for_each_setting() -> None:
    text = run("serve", "--help").output
    for flag in ("--max-batch-size", "--image-hosts", "--allow-private-image-hosts", "--drain-seconds", "--api-keys"):
        assert flag in text


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("--port", "INTEGER"),
        ("--max-image-bytes", "INTEGER"),
        ("--drain-seconds", "FLOAT"),
        ("--checkpoint", "PATH"),
        ("--image-hosts", "LIST"),
        ("--host", "TEXT"),
    ],
)
def test_flags_are_shown_with_their_types(flag: str, kind: str) -> None:
    text = run("serve", "--help").output
    assert re.search(rf"{flag} +{kind} ", text), text


def test_a_flag_without_a_value_has_no_type() -> None:
    assert re.search(r"--allow-private-image-hosts +--no-allow", run("serve", "--help").output)


@pytest.mark.parametrize(
    "given", [["--attributes", "season, baseColour"], ["--attribute", "season", "--attribute", "baseColour"]]
)
def test_predict_answers_the_attributes_that_are_asked_for(tmp_path: Path, given: list[str]) -> None:
    result = run("predict", "--title", "Navy shirt", "--json", *given)
    assert result.exit_code == 0, result.exception
    assert list(json.loads(result.output)["attributes"]) == ["season", "baseColour"]


def test_an_attribute_that_the_checkpoint_does_not_know_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = failed(capsys, monkeypatch, "predict", "--title", "Navy shirt", "--attributes", "colour")
    assert said == "cma-clip: unknown attribute 'colour'; the checkpoint predicts baseColour, season\n"


@pytest.mark.parametrize(
    ("rows", "then"), [(1200, "they are kept in out.csv.partial, and the same"), (0, "nothing is")]
)
def test_ctrl_c_in_label_is_one_line(monkeypatch: pytest.MonkeyPatch, rows: int, then: str) -> None:
    def interrupted(*_arguments: Any, **_options: Any) -> None:
        raise LabellingInterrupted(rows, 5000, "out.csv.partial")

    monkeypatch.setattr("model.inference.label.label", interrupted)
    result = run("label", "shop.toml", "--out", "out.csv")
    assert result.exit_code == 130
    assert result.stderr.startswith(f"cma-clip: interrupted: {rows:,} of about 5,000 rows are finished; {then}")
    assert result.stderr.count("\n") == 1


def test_label_warns_of_missing_images(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ReadReport("table.csv")
    for number in range(10):
        report.images.add(None if number else "0.jpg")
    done = Labelling(rows=10, failed=1, resumed=0, report=report)
    asked: dict[str, Any] = {}
    monkeypatch.setattr("model.inference.label.label", lambda *_, **options: asked.update(options) or done)
    result = run("label", "shop.toml", "--out", "out.csv", "--allow-missing-images", "--attributes", "season,usage")
    assert "warning: 1 of the 10 images that the table names (10%) were not found, such as 0.jpg" in result.stderr
    assert (asked["allow_missing_images"], asked["attributes"]) == (True, ["season", "usage"])


def test_label_where_not_one_image_is_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ReadReport("table.csv")
    report.images.add("0.jpg")
    done = Labelling(rows=1, failed=1, resumed=0, report=report)
    monkeypatch.setattr("model.inference.label.label", lambda *_, **__: done)
    result = run("label", "shop.toml", "--out", "out.csv")
    assert result.exit_code == 1
    assert "no listing could be labelled: not one image is there, such as 0.jpg; --allow-missing" in result.stderr


def test_label_on_a_cluster_passes_on_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def label_on_cluster(checkpoint: Path, catalogue: Path, out: str, cluster: Cluster, **options: Any) -> Labelling:
        asked.update(options, out=out, cluster=cluster)
        return Labelling(rows=2, failed=0, resumed=0, report=ReadReport("table.csv"))

    monkeypatch.setattr("model.inference.cluster.label_on_cluster", label_on_cluster)
    options = ("--ray", "auto", "--workers", "3", "--decoders", "5", "--threads", "2", "--format", "csv")
    result = run("label", "shop.toml", "--out", "s3://bucket/labels/", *options)
    assert result.exit_code == 0, result.exception
    assert asked["cluster"] == Cluster(address="auto", workers=3, decoders=5, threads=2)
    assert (asked["out"], asked["part_format"]) == ("s3://bucket/labels/", "csv")
    assert "s3://bucket/labels/: 2 rows, 0 of them with an error" in result.stderr
    with asked["open_fetch"]() as fetch, pytest.raises(CatalogueError, match=r"http://127\.0\.0\.1/1\.jpg: "):
        fetch("http://127.0.0.1/1.jpg")  # by the rules of the service: no private address


def test_workers_are_for_clusters(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = failed(capsys, monkeypatch, "label", "shop.toml", "--out", "labels.csv", "--workers", "2")
    assert said == (
        "cma-clip: --workers and --decoders are for --ray; on one machine --threads says how many compute\n"
    )


def test_predict_prints_a_table(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(encoded())
    result = run("predict", str(photo), "--title", "Navy shirt")
    assert result.exit_code == 0, result.exception
    for expected in ("Base colour", "Season", "█"):
        assert expected in result.output


def test_predict_prints_what_the_service_would_answer(tmp_path: Path) -> None:
    result = run("predict", "--title", "Navy shirt", "--json", "--top-k", "1", "--target-precision", "0.9")
    body = json.loads(result.output)
    assert body["attributes"]["season"]["target_precision"] == 0.9
    assert len(body["attributes"]["season"]["candidates"]) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["predict"], "--title"),
        (["predict", "/no/such/photo.jpg"], "No such file"),
        (["predict", __file__], "accepted formats"),
        (["predict", "--title", "a", "--target-precision", "0.5"], "0.9, 0.95, 0.99"),
        (["serve", "--port", "http"], "CMA_CLIP_PORT"),
        (["serve", "--api-keys", "", "--max-queue", "0"], "CMA_CLIP_MAX_QUEUE"),
        (["bench"], "--title"),
        (["bench", "http://127.0.0.1:1", "--title", "a"], "nobody answers"),
        (["bench", "nonsense", "--title", "a"], "not the address"),
        (["bench", "http://127.0.0.1:1", "--image", "/no/such/photo.jpg"], "No such file"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named in failed(capsys, monkeypatch, *arguments)


def test_a_broken_checkpoint_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: object) -> None:
        raise CheckpointError("weights/x: config.json is missing")

    monkeypatch.setattr(predict_command, "load_predictor", broken)
    line = failed(capsys, monkeypatch, "predict", "--title", "a")
    assert line == "cma-clip: weights/x: config.json is missing\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "no/such/folder"), "there is no checkpoint folder no/such/folder"),
        (
            ("--checkpoint", str(ROOT / "weights/fashion"), "--engine", "openvino-int8"),
            "carries no engine openvino-int8",
        ),
    ],
)
def test_a_wrong_checkpoint_is_named_before_the_service_listens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["cma-clip", "serve", "--port", "0", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]
    assert captured.out == ""  # the log, which would say that it listens


def test_predict_and_the_service_have_one_limit_on_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has its own, fixed one, which `predict` must turn off as the service does."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    photo = tmp_path / "photo.png"
    photo.write_bytes(encoded(size=(60, 80)))
    result = run("predict", str(photo))
    assert result.exit_code == 0, result.exception


def test_only_building_the_application_changes_settings_of_libraries() -> None:
    program = textwrap.dedent("""
        import sys
        from PIL import AvifImagePlugin, Image  # which only the workers decode images with
        from starlette.formparsers import MultiPartParser

        def settings():
            return Image.MAX_IMAGE_PIXELS, AvifImagePlugin.DEFAULT_MAX_THREADS, MultiPartParser.spool_max_size

        before = settings()
        from service import app, cli
        from service.settings import Settings
        assert settings() == before
        app.create_app(Settings(), lambda _: None)
        assert settings() == (*before[:2], sys.maxsize)
    """)
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)  # noqa: S603 - our own program


# ── the real process ─────────────────────────────────────────────────────────────────────────────────────────────

MAIN = textwrap.dedent("""
    from model.errors import CheckpointError
    from service import app, cli
    from tests.service.fake_predictor import FakePredictor

    def load(settings):
        if settings.device == "broken":  # what is found out only while the network is being loaded
            raise CheckpointError(f"{settings.checkpoint}: model.safetensors is damaged")
        return FakePredictor()

    app.load_predictor = load
    cli.main()
""")


def serve(*flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", MAIN, "serve", *flags],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "CMA_CLIP_API_KEYS": "sesame1,shop:sesame2",
            "CMA_CLIP_CALLBACK_SECRET": "sesame of callbacks",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_serve_prints_what_it_uses_and_no_keys() -> None:
    process = serve("--port", "0", "--max-batch-size", "7")
    assert process.stdout is not None
    lines: list[str] = []
    while "ready" not in (line := process.stdout.readline()):
        assert line, lines
        lines.append(line)
    process.send_signal(signal.SIGTERM)
    text = "".join(lines) + process.communicate(timeout=30)[0]
    assert process.returncode == 0
    assert ["CMA_CLIP_MAX_BATCH_SIZE", "7"] in [line.split() for line in lines]
    assert ["CMA_CLIP_API_KEYS", "key-1,", "shop"] in [line.split() for line in lines]
    assert "sesame" not in text


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--device", "broken"], "model.safetensors is damaged"), (["--target-precision", "0.8"], "0.8")],
)
def test_a_start_that_fails_says_why_and_ends(flags: list[str], named: str) -> None:
    process = serve("--port", "0", *flags)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    last = text.splitlines()[-1]
    assert last.startswith("cma-clip: ")
    assert named in last
    assert "Traceback" not in text


def test_a_port_that_is_taken_says_so() -> None:
    with replica(0.0) as server:
        process = serve("--port", str(server.port))
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert (
            text.splitlines()[-1] == f"cma-clip: cannot listen on 127.0.0.1 port {server.port}: Address already in use"
        )


def test_the_real_loader_refuses_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("model.inference.predictor")
    from service.settings import load_settings  # noqa: PLC0415

    with pytest.raises(CheckpointError):
        app_module.load_predictor(load_settings(checkpoint=tmp_path, device="cpu"))
