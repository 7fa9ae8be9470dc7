"""The baselines' arithmetic, and both of them on a small catalogue with known answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmarks.bag_of_words import score
from benchmarks.baselines import SHIFT, SIDE, app, convnet, crop_and_flip, majority, multi_task_loss, to_input
from model.catalogue.splits import Part, part_of
from model.tasks import OUT_OF_VOCABULARY, UNLABELLED, Task

COLOURS = {"Red": (200, 20, 20), "Blue": (20, 20, 200)}


def test_score_counts_unknown_labels_as_errors_and_ignores_unlabelled_rows() -> None:
    tasks = [Task(name="colour", labels=("Blue", "Red")), Task(name="kind", labels=("Shirt", "Tie"))]
    labels = np.array([[0, 1], [1, UNLABELLED], [OUT_OF_VOCABULARY, 0], [1, UNLABELLED]])
    scores = score(np.array([[0, 1], [1, 1], [1, 1], [0, 1]]), labels, tasks)
    assert (scores["colour"].accuracy, scores["colour"].rows) == (0.5, 4)
    assert (scores["kind"].accuracy, scores["kind"].rows) == (0.5, 2)


def test_majority_ignores_rows_without_a_label() -> None:
    labels = np.array([[2, UNLABELLED], [2, 0], [1, UNLABELLED], [UNLABELLED, UNLABELLED]])
    assert majority(labels).tolist() == [2, 0]


def test_loss_is_the_sum_of_each_attributes_mean_over_its_labelled_rows() -> None:
    logits = torch.randn(3, 5)
    labels = torch.tensor([[0, 2], [1, UNLABELLED], [1, UNLABELLED]])
    expected = -logits[:, :2].log_softmax(1)[[0, 1, 2], [0, 1, 1]].mean() - logits[0, 2:].log_softmax(0)[2]
    torch.testing.assert_close(multi_task_loss(logits, labels, (2, 3)), expected)
    nothing = torch.full((3, 2), UNLABELLED)
    assert multi_task_loss(logits, nothing, (2, 3)) == 0


def test_crop_and_flip_only_moves_and_mirrors() -> None:
    inside = torch.zeros(64, SIDE, SIDE, 3, dtype=torch.uint8)
    inside[:, 20:30, 20:25] = 255
    moved = crop_and_flip(inside, torch.Generator().manual_seed(0))
    assert (moved.long().sum(dim=(1, 2, 3)) == inside.long().sum(dim=(1, 2, 3))).all()
    columns = {int(row.nonzero()[0]) for row in moved[..., 0].amax(1)}
    shifted = set(range(20 - SHIFT, 20 + SHIFT + 1))
    mirrored = {SIDE - 25 - s for s in range(-SHIFT, SHIFT + 1)}
    assert columns <= shifted | mirrored
    assert columns & shifted
    assert columns & mirrored
    # Outside the image its edge is repeated.
    plain = torch.full((8, SIDE, SIDE, 3), 7, dtype=torch.uint8)
    assert (crop_and_flip(plain, torch.Generator()) == 7).all()


def test_convnet_gives_a_logit_for_each_label_and_every_parameter_a_gradient() -> None:
    model = convnet(5)
    logits = model(to_input(torch.randint(256, (2, SIDE, SIDE, 3), dtype=torch.uint8)))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """A catalogue whose titles and images both show the colour; two test rows have only one of them."""
    rows = ["id,colour,kind,title"]
    without_title, without_image = [n for n in range(80) if part_of(str(n)) is Part.TEST][:2]
    (tmp_path / "photos").mkdir()
    for n in range(80):
        colour = ("Red", "Blue")[n % 2]
        title = "" if n == without_title else f"A {colour} {'shirt' if n % 3 else 'tie'} number {n}"
        rows.append(f"{n},{colour},{'Shirt' if n % 3 else 'Tie'},{title}")
        if n != without_image:
            Image.new("RGB", (60, 80), COLOURS[colour]).save(tmp_path / "photos" / f"{n}.png")
    (tmp_path / "photos" / "0.png").write_bytes(b"no image")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    toml = tmp_path / "catalogue.toml"
    toml.write_text(
        '[catalogue]\ntable = "table.csv"\nid = "id"\ntitle = "title"\n'
        'images = "photos"\nimage = "{id}.png"\nattributes = ["colour", "kind"]\n'
    )
    return toml


def test_title_baseline(catalogue: Path, tmp_path: Path) -> None:
    out = tmp_path / "title.json"
    result = CliRunner().invoke(app, ["title", "--catalogue", str(catalogue), "--out", str(out)])
    assert result.exit_code == 0, result.output
    check_all_with_input_are_predicted_right(json.loads(out.read_text()))


def test_image_baseline(catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.baselines.WIDTHS", (8, 8, 8, 8))
    out = tmp_path / "image.json"
    arguments = ["image", "--catalogue", str(catalogue), "--out", str(out), "--epochs", "10", "--batch-size", "16"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "0.png: the image cannot be decoded" in result.output
    check_all_with_input_are_predicted_right(json.loads(out.read_text()))


def check_all_with_input_are_predicted_right(result: dict[str, Any]) -> None:
    assert result["test_without_input"] == 1
    colour = result["attributes"]["colour"]
    assert colour["rows"] == result["test_listings"] > 5
    # The listing without the input gets the majority label, right or wrong.
    assert round((1 - colour["accuracy"]) * colour["rows"]) <= 1


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["title", "--catalogue", str(tmp_path / "nowhere.toml")])
    assert result.exit_code == 2
    assert result.output.startswith("error: cannot read")
