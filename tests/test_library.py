"""The library in one import: what `from model import …` gives, and the lines that its documentation shows."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import model
from model import Catalogue, ModelError, Predictor, calibrate, evaluate, label, train
from model.config import ModelConfig, update
from model.errors import UncalibratedTargetError
from model.training.train import default_config
from tests.conftest import draw, write_catalogue

ROOT = Path(__file__).parents[1]


def test_every_name_is_there_and_documented_with_an_example() -> None:
    assert set(model.__all__) <= set(dir(model))
    for function in (calibrate, evaluate, label, train, Catalogue.open, Predictor.classify):
        examples = [line for line in inspect.getdoc(function).splitlines() if line.startswith("    ")]  # type: ignore[union-attr]
        assert any(function.__name__ in line for line in examples), function


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        model.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, model; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603 - ours
    assert printed.stdout.strip() == "set()"


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_first_lines_of_the_page_run(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    exec(code, {})  # noqa: S102 - our own page
    assert "'articleType': 'Shirts'" in capsys.readouterr().out


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(str(ROOT / "weights" / "fashion"), device="cpu")


def test_an_image_may_be_a_path_bytes_or_a_pil_image(predictor: Predictor) -> None:
    path = ROOT / "examples" / "images" / "navy-shirt.jpg"
    with Image.open(path) as image:
        sources = (path, str(path), path.read_bytes(), image.convert("RGB"))
        answers = list(predictor.classify([("Men Navy Blue Shirt", each) for each in sources], batch_size=3))
    assert len(answers) == 4
    assert answers[0] == answers[1] == answers[2]
    assert answers[3]["articleType"].label == answers[0]["articleType"].label


def test_predictions_are_computed_as_they_are_asked_for(predictor: Predictor) -> None:
    asked = []

    def titles() -> object:
        for number in range(100):
            asked.append(number)
            yield f"Men Shirt {number}", None

    answers = predictor.classify(titles(), batch_size=4)  # type: ignore[arg-type]
    next(answers)
    assert len(asked) <= 8


def test_mistakes_are_named(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(UncalibratedTargetError, match=r"0\.8"):
        predictor.classify([("Shirt", None)], target_precision=0.8)
    with pytest.raises(ModelError, match="cannot read image"):
        list(predictor.classify([(None, tmp_path / "nothing.jpg")]))
    with pytest.raises(ModelError, match="cannot be decoded"):
        list(predictor.classify([(None, b"no image")]))
    with pytest.raises(ValueError, match="needs a title or an image"):
        list(predictor.classify([(None, None)]))


def test_from_a_catalogue_to_labels_by_the_library_alone(tmp_path: Path, model_config: ModelConfig) -> None:
    toml = write_catalogue(tmp_path / "shop", 300)
    catalogue = Catalogue.open(str(toml))
    config = update(default_config(catalogue, None), {"optimiser": {"epochs": 2, "batch_size": 32, "workers": 0}})
    checkpoint = train(catalogue, str(tmp_path / "run"), model=model_config, config=config)
    assert calibrate(checkpoint, catalogue, target_precisions=[0.2]).target_precisions == (0.2,)
    evaluation = evaluate(str(checkpoint), catalogue)
    assert evaluation.metrics["situations"]["title"]["listings"] > 0
    assert (checkpoint / "metrics.json").is_file()
    done = label(checkpoint, toml, tmp_path / "labels.csv", target_precision=0.2)
    assert (done.rows, done.failed) == (300, 0)
    listings = [("Plain Red Circle", draw("Red", "Circle"))]
    (answer,) = Predictor.load(checkpoint).classify(listings, target_precision=0.2)
    assert set(answer) == {"colour", "shape"}
    calibrate(checkpoint, catalogue, target_precisions=[0.3])
    assert not (checkpoint / "metrics.json").exists()
