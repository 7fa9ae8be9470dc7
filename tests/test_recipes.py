"""The recipes that come with the project: each is read, and what it names exists. None is trained here."""

from __future__ import annotations

import io
import re
from pathlib import Path

import open_clip
import pytest
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.network.towers import BACKBONES
from model.training.pretrained import HUB, built_in
from model.training.recipe import Context, Recipe, TrainingStage, TrainStage
from tests.conftest import write_catalogue

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    catalogue = Catalogue.open(write_catalogue(tmp_path_factory.mktemp("recipes") / "shop", 40))
    return Context(catalogue=catalogue, name="shop", device="cpu", console=Console(file=io.StringIO()))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_setting_is_one(path: Path, context: Context) -> None:
    recipe = Recipe.load(path)
    for stage in recipe.stages:
        stage.asked(context)
    trained = [stage for stage in recipe.stages if isinstance(stage, TrainStage)]
    assert trained, "a recipe trains"
    for stage in trained:
        optimiser = stage.config(context.catalogue).optimiser
        if optimiser.micro_batch:
            assert optimiser.batch_size % optimiser.micro_batch == 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_it_starts_from_exists(path: Path, context: Context) -> None:
    """But for what is on a hub: that name has the form of one."""
    for stage in Recipe.load(path).stages:
        if not isinstance(stage, TrainingStage) or stage.start is not None:
            continue
        if stage.init and stage.init.startswith(HUB):
            assert re.fullmatch(r"hf-hub:[\w.-]+/[\w.-]+", stage.init)
            assert stage.backbone is None, "the repository says what it is"
        elif isinstance(stage, TrainStage):
            model = stage.model(context.catalogue, stage.init)
            assert model.backbone_name == stage.backbone or stage.backbone is None
            if stage.backbone not in (None, *BACKBONES):
                assert stage.init in open_clip.list_pretrained_tags_by_model(str(stage.backbone))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_its_comment_proposes_instead_exists(path: Path) -> None:
    for backbone, init in re.findall(r'^#.*`backbone = "(.+?)"` and `init = "(.+?)"`', path.read_text(), re.MULTILINE):
        built_in(backbone, init)


def test_the_documentation_names_each() -> None:
    page = (FOLDER.parent / "docs" / "large-models.md").read_text()
    assert set(re.findall(r"\(\.\./recipes/(.+?)\)", page)) == {path.name for path in RECIPES}
