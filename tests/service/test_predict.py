"""`cma-clip predict` with a fake predictor: the table, the tinted words and the heat map."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from model.inference.predictions import (
    Abstention,
    AttributePrediction,
    Explanation,
    Frame,
    ImageExplanation,
    ListingWarning,
    TokenWeight,
)
from service.cli import main
from service.commands import heat_map
from service.commands import predict as oneshot
from service.commands.names import REASONS
from service.schemas import AttributeReply, ClassifyReply
from tests.service.conftest import encoded
from tests.service.fake_predictor import (
    CONTEXT,
    DISAGREEING,
    UNFAMILIAR,
    WHOLE,
    FakePrediction,
    FakePredictor,
)

WEIGHTS = {"Turtle": 0.05, "Navy": 0.6, "Blue": 0.3, "Shirt": 0.05}
TITLE = " ".join(WEIGHTS)


@dataclass(frozen=True, slots=True)
class ExplainingPrediction(FakePrediction):
    """Is based on the lower right corner of what it saw, and on two words."""

    frame: Frame = WHOLE

    def attribute(self, name: str, **options: Any) -> AttributePrediction:
        prediction = FakePrediction.attribute(self, name, **options)
        if prediction.explanation is None:
            return prediction
        grid = ImageExplanation(2, 2, [[0.0, 0.0], [0.0, 1.0]], self.frame)
        words = tuple(TokenWeight(word, weight) for word, weight in WEIGHTS.items())
        explanation = Explanation(
            image=grid if self.listing.pixel else None,
            text=words if self.listing.title else None,
        )
        return replace(prediction, confidence=0.7, threshold=0.5, abstention=None, explanation=explanation)


class ExplainingPredictor(FakePredictor):
    def __init__(self, frame: Frame = WHOLE) -> None:
        super().__init__()
        self.frame = frame

    def predict(self, batch: Any) -> Any:
        return [ExplainingPrediction(prediction.listing, self.frame) for prediction in super().predict(batch)]


@pytest.fixture(autouse=True)
def predictor(monkeypatch: pytest.MonkeyPatch) -> FakePredictor:
    predictor = ExplainingPredictor()
    monkeypatch.setattr(oneshot, "load_predictor", lambda settings: predictor)
    return predictor


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded((250, 250, 250), size=(60, 80)))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["cma-clip", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def reply_of(
    title: str | None = TITLE, *, image: bool = True, explain: bool = True, frame: Frame = WHOLE
) -> ClassifyReply:
    predictor = ExplainingPredictor(frame)
    prepared = predictor.prepare(title, Image.new("RGB", (60, 80)) if image else None, explain=explain)
    (prediction,) = predictor.predict(predictor.collate([prepared]))
    predictions = {
        task.name: prediction.attribute(task.name, target_precision=0.95, top_k=3) for task in predictor.tasks
    }
    return ClassifyReply.of(None, predictor.info, prediction, predictions)


def refused(title: str, *, bare: bool = False) -> ClassifyReply:
    """What the plain fake answers for a title beside an image."""
    predictor = FakePredictor(bare=bare)
    (prediction,) = predictor.predict([predictor.prepare(title, Image.new("RGB", (60, 80)))])
    predictions = {
        task.name: prediction.attribute(task.name, target_precision=0.9, top_k=3) for task in predictor.tasks
    }
    return ClassifyReply.of(None, predictor.info, prediction, predictions)


def drawn(reply: ClassifyReply, width: int = 140, **options: Any) -> str:
    console = Console(width=width, **options)
    with console.capture() as captured:
        oneshot.draw(reply, console)
    return captured.get()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_figures_are_never_cut_and_alternatives_never_left_out(width: int) -> None:
    reply = reply_of()
    shown = drawn(reply, width)
    for attribute in reply.attributes.values():
        assert isinstance(attribute, AttributeReply)
        assert all(
            candidate.label in " ".join(shown.split())
            for candidate in attribute.candidates
            if candidate.confidence >= 0.01
        )
    lines = shown.splitlines()
    for name in ("Base colour", "Season"):
        (line,) = [line for line in lines if line.strip().startswith(name) and "accepted" in line]
        assert "70.0%" in line
        assert line.count("%") >= 2
        assert "…" not in line


def test_the_reason_why_a_label_is_not_accepted_is_in_the_table() -> None:
    attribute = reply_of().attributes["season"]
    for reason in Abstention:
        refused = attribute.model_copy(update={"accepted": False, "abstention": reason})
        for width in (80, 140):
            shown = drawn(reply_of().model_copy(update={"attributes": {"season": refused}}), width)
            (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["Season"] and "70.0%" in line]
            assert REASONS[reason] in line
            assert "accepted" not in line


def test_what_the_answer_is_from_and_how_familiar_is_said_below_the_table() -> None:
    assert "Answered from image and title; familiarity 0.5; agreement of image and title 0.75\n" in drawn(reply_of())
    assert "Answered from the title alone; familiarity 0.5\n" in drawn(reply_of(image=False))
    assert "Answered from the image alone; familiarity 0.5\n" in drawn(reply_of(title=None))
    for remark in ("Unfamiliar", "Contradictory", "scope gate", "title", "profile"):
        assert remark not in drawn(reply_of(title=None))


def test_unfamiliar_and_contradictory_listings_are_named() -> None:
    assert "Unfamiliar: unlike the listings" in drawn(refused(UNFAMILIAR))
    assert "familiarity 0.001" in drawn(refused(UNFAMILIAR))
    assert "contradict each other on Season." in drawn(refused(f"season {DISAGREEING}"))
    assert "contradict each other on Base colour, Season." in drawn(refused(f"shirt {DISAGREEING}"))
    assert "Contradictory" not in drawn(refused(f"{UNFAMILIAR} {DISAGREEING}"))


def test_a_checkpoint_without_a_scope_gate_is_named() -> None:
    shown = drawn(refused("shirt", bare=True))
    assert "has no scope gate" in shown
    assert "familiarity" not in shown


def test_warnings_are_written_out() -> None:
    shown = " ".join(drawn(reply_of().model_copy(update={"warnings": list(ListingWarning)}), 80).split())
    assert all(said in shown for said in oneshot.WARNINGS.values())
    assert "its end was cut" in drawn(refused("word " * (CONTEXT + 1)))


def test_the_threshold_is_marked_on_the_bar() -> None:
    (line,) = [line for line in drawn(reply_of()).splitlines() if line.split()[:1] == ["Season"] and "accepted" in line]
    bar = next(part for part in line.split() if "┃" in part)
    assert bar == "█" * 10 + "┃" + "█" * 3 + "░" * 6


def test_words_are_tinted_by_weight_and_the_heaviest_are_named() -> None:
    shown = drawn(reply_of(), force_terminal=True, color_system="standard", legacy_windows=False)
    shown = shown.partition("based on")[2]
    styles = {word: shown.split(word)[0].rpartition("\x1b[")[2] for word in WEIGHTS}
    assert styles == {"Turtle": "2m", "Navy": "1;37;45m", "Blue": "1;35m", "Shirt": "2m"}
    plain = drawn(reply_of(), color_system=None)
    assert plain.count(TITLE) == 2  # once per attribute
    assert plain.count("Navy 60%, Blue 30%") == 2


def test_nothing_is_said_of_words_unless_asked_for() -> None:
    assert "based on" not in drawn(reply_of(explain=False))
    assert "based on" not in drawn(reply_of(title=None))


def test_explain_prints_what_the_service_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], image_file: Path
) -> None:
    assert run(monkeypatch, image_file, "--title", TITLE, "--json") == 0
    assert "explanation" not in json.loads(capsys.readouterr().out)["attributes"]["season"]
    assert run(monkeypatch, image_file, "--title", TITLE, "--explain", "--json") == 0
    explanation = json.loads(capsys.readouterr().out)["attributes"]["season"]["explanation"]
    assert explanation["image"] == {
        "rows": 2,
        "columns": 2,
        "weights": [[0.0, 0.0], [0.0, 1.0]],
        "frame": {"left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0},
    }
    assert explanation["text"][1] == {"token": "Navy", "weight": 0.6}


def test_the_heat_map_is_a_png_with_a_panel_per_attribute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], image_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "heat.png"
    assert run(monkeypatch, image_file, "--heat-map", out) == 0
    assert "Base colour" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"
        gap, width, height = heat_map.GAP, 240, 320  # of an image of 60 x 80 in a panel of 320 x 320
        assert sheet.size == (gap + 2 * (width + gap), gap + heat_map.CAPTION + height + gap)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--title", "x", "--heat-map", "heat.png"), "--heat-map needs an image"),
        (("photo.png", "--heat-map", "nowhere/heat.png"), "cannot write nowhere/heat.png: No such file"),
    ],
)
def test_a_heat_map_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    image_file: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(image_file.parent)
    assert run(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


# ── where the heat lies ─────────────────────────────────────────────────────────────────────────────────────


def redness(sheet: Image.Image) -> np.ndarray[Any, Any]:
    """How much redder than green each pixel of the first panel's image is."""
    left, upper = heat_map.GAP, heat_map.GAP + heat_map.CAPTION
    pixels = np.asarray(sheet, dtype=int)[upper : upper + 320, left : left + 320]
    return np.asarray(pixels[..., 0] - pixels[..., 1])


def test_heat_lies_on_the_patch_that_weighed() -> None:
    image = Image.new("RGB", (100, 100), "grey")
    red = redness(heat_map.draw(image, reply_of()))
    assert red[270, 270] > 100
    assert abs(red[50, 50]) < 5


def test_heat_does_not_lie_on_empty_ground_and_the_image_keeps_its_colours() -> None:
    image = Image.new("RGB", (100, 100), "white")
    image.paste("navy", (20, 20, 80, 80))
    panel = np.asarray(heat_map.draw(image, reply_of()))[heat_map.GAP + heat_map.CAPTION :, heat_map.GAP :]
    assert tuple(panel[300, 300]) == (255, 255, 255)  # the patch that weighed most, but no product
    assert panel[240, 240, 0] > 100
    assert tuple(panel[80, 80]) == (0, 0, 128)


def test_padding_is_part_of_what_was_seen_and_cropped_edges_are_not() -> None:
    image = Image.new("RGB", (100, 50), "black")
    padded = np.asarray(heat_map.draw(image, reply_of(frame=Frame(0, -0.5, 1, 1.5))))
    first = padded[heat_map.GAP + heat_map.CAPTION :, heat_map.GAP :]
    assert tuple(first[20, 20]) == (255, 255, 255)
    assert tuple(first[160, 20]) == (0, 0, 0)
    image.paste("white", (0, 0, 25, 50))
    cropped = np.asarray(heat_map.draw(image, reply_of(frame=Frame(0.25, 0, 0.75, 1))))
    assert tuple(cropped[heat_map.GAP + heat_map.CAPTION + 5, heat_map.GAP + 5]) == (0, 0, 0)


@pytest.mark.parametrize("frame", [Frame(0, -30000, 1, 30001), Frame(0.5, 0, 0.5 + 1 / 60000, 1)])
def test_a_very_long_image_costs_no_more(frame: Frame) -> None:
    sheet = heat_map.draw(Image.new("RGB", (60000, 1), "red"), reply_of(frame=frame))
    assert max(sheet.size) < 1000
