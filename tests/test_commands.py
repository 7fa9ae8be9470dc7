"""The whole way by the console script's own commands: pretrain, train, calibrate, evaluate, predict, label."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli import main
from tests.conftest import draw, write_catalogue


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["cma-clip", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_from_catalogue_to_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = write_catalogue(tmp_path / "shop", 300)
    small = ("--set", "optimiser.batch_size=32", "--set", "optimiser.workers=0")
    tiny = ("--backbone", "cma-tiny", "--epochs", 1, *small)
    assert run(monkeypatch, "pretrain", toml, "--out", tmp_path / "towers", *tiny) == 0
    start = tmp_path / "towers" / "checkpoint"
    assert capsys.readouterr().out.strip() == str(start)
    trained = tmp_path / "run" / "checkpoint"
    faster = ("--epochs", 2, "--set", "ema_decay=0.5", "--set", "optimiser.learning_rate=3e-3")
    options = ("--name", "shop", "--init", start, *small, *faster, "--set", "fusion.depth=2")
    assert run(monkeypatch, "train", toml, "--out", tmp_path / "run", *options) == 0
    config = json.loads((trained / "config.json").read_text())
    assert config["training"]["initial"]["name"] == "pretrained"
    assert config["fusion"]["depth"] == 2

    assert run(monkeypatch, "evaluate", trained, toml) == 2
    assert "not calibrated yet" in capsys.readouterr().err
    assert run(monkeypatch, "calibrate", trained, toml, "--target-precision", 0.5, "--target-precision", 0.8) == 0
    scores, plots = tmp_path / "scores.npz", tmp_path / "plots"
    assert run(monkeypatch, "evaluate", trained, toml, "--scores", scores, "--plots", plots) == 0
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["situations"]["title"]["attributes"]["colour"]["accuracy"] > 0.9
    assert "| colour |" in (trained / "README.md").read_text()
    assert scores.is_file()
    assert list(plots.glob("*.png"))
    capsys.readouterr()

    assert run(monkeypatch, "calibrate", trained, toml, "--target-precision", 0.5) == 0
    assert "run `cma-clip evaluate`" in capsys.readouterr().err
    assert not (trained / "metrics.json").exists()

    photo = tmp_path / "photo.png"
    draw("Red", "Circle").save(photo)
    asked = ("--title", "Plain Red Circle", "--checkpoint", trained, "--target-precision", 0.5)
    assert run(monkeypatch, "predict", photo, *asked, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["attributes"]["colour"]["label"] == "Red"
    assert run(monkeypatch, "predict", photo, *asked) == 0
    assert "Red" in capsys.readouterr().out

    out = tmp_path / "labels.csv"
    assert run(monkeypatch, "label", toml, "--out", out, "--checkpoint", trained, "--target-precision", 0.5) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"sku-{number}" for number in range(300)]
    colour = ["colour", "colour_confidence", "colour_accepted", "colour_abstention", "colour_image_weight"]
    assert list(rows[0])[:6] == ["id", *colour]
    assert list(rows[0])[-2:] == ["familiarity", "error"]
    assert not any(row["error"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nowhere.toml", "--out", "run"), "nowhere.toml"),
        (("train", "shop.toml", "--out", "run", "--set", "epochs"), "--set takes name=value"),
        (("train", "shop.toml", "--out", "run", "--set", "epochs=1"), "unknown setting 'epochs'"),
        (("train", "shop.toml", "--out", "run", "--backbone", "nope"), "unknown backbone 'nope'"),
        (("train", "shop.toml", "--out", "run", "--set", "optimiser.learning_rate=NaN"), "cannot be NaN"),
        (("train", "--out", "run"), "name the catalogue's TOML file, or a --recipe"),
        (("train", "--out", "run", "--recipe", "nowhere.toml"), "nowhere.toml cannot be read: No such file"),
        (("train", "--out", "run", "--recipe", "x.toml", "--epochs", "3"), "--epochs cannot be combined with --recipe"),
        (("train", "--out", "run", "--recipe", "x.toml", "--set", "a=1"), "--set cannot be combined with --recipe"),
        (("calibrate", "nowhere", "shop.toml"), "there is no checkpoint folder"),
        (("evaluate", "nowhere", "shop.toml", "--plots", "shop.toml"), "plots need a folder"),
        (("evaluate", "nowhere", "shop.toml", "--scores", "no/x.npz"), "there is no folder no"),
        (("predict", "--checkpoint", "nowhere", "--title", "x"), "there is no checkpoint folder"),
        (("label", "shop.toml", "--out", "x.csv", "--checkpoint", "nowhere"), "there is no checkpoint folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_catalogue(tmp_path / "shop", 2)
    (tmp_path / "shop.toml").write_text((tmp_path / "shop" / "catalogue.toml").read_text())
    (tmp_path / "table.csv").write_text((tmp_path / "shop" / "table.csv").read_text())
    (tmp_path / "images").symlink_to(tmp_path / "shop" / "images")
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("cma-clip: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(("module", "extra"), [("tensorboard", "train"), ("torch", "train"), ("nncf", "compile")])
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, module: str, extra: str
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr("model.catalogue.listings.Catalogue.open", missing)
    assert run(monkeypatch, "train", tmp_path / "shop.toml", "--out", tmp_path / "run") == 2
    assert (
        capsys.readouterr().err
        == f"cma-clip: this needs {module}; install the extra: pip install 'cma-clip[{extra}]'\n"
    )


SLOW_IMPORT = """
import sys, time
from service.console import main

class Slow:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "service.cli":
            print("importing", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow)
main()
"""


def test_ctrl_c_ends_a_command_that_is_still_being_imported_with_one_line() -> None:
    with subprocess.Popen(  # noqa: S603 - this project's program
        [sys.executable, "-c", SLOW_IMPORT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (128 + signal.SIGINT, "cma-clip: ended by SIGINT\n")
