"""Recipes on a small catalogue: whole, interrupted anywhere, changed afterwards, and with every mistake named."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from model.catalogue.listings import Catalogue
from model.checkpoint.folder import CALIBRATION, CONFIG, METRICS, SCOPE, WEIGHTS, load_checkpoint, write_json
from model.checkpoint.weights import read_tensors
from model.errors import ConfigError, TrainingError
from model.network import towers
from model.training import recipe as module
from model.training.recipe import PretrainStage, Recipe, TrainStage, run_recipe
from model.training.trainer import STATE, Trainer
from service.cli import main
from tests.conftest import TINY_BACKBONE, write_catalogue

SETTINGS = """
catalogue = "shop/catalogue.toml"
name = "tiny"

[pretrain]
embed_dim = 16
optimiser = {epochs = 1, batch_size = 16, learning_rate = 1e-3, workers = 0}

[train]
ema_decay = 0.5
fusion = {width = 32, heads = 2}
optimiser = {epochs = 2, batch_size = 16, learning_rate = 1e-2, workers = 0}
"""

STAGES = """
[[stage]]
name = "towers"
kind = "pretrain"
backbone = "tiny"

[[stage]]
name = "first"
kind = "train"

[[stage]]
name = "second"
kind = "train"
keep_heads = true
optimiser = {epochs = 1, learning_rate = 1e-3}

[[stage]]
name = "calibrated"
kind = "calibrate"
target_precision = [0.5]

[[stage]]
name = "evaluated"
kind = "evaluate"
"""


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "BACKBONES", {**towers.BACKBONES, "tiny": TINY_BACKBONE})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a catalogue and of the recipe, whose run is in `whole`."""
    folder = tmp_path_factory.mktemp("recipes")
    write_catalogue(folder / "shop", 240)
    (folder / "recipe.toml").write_text(SETTINGS + STAGES)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Callable[..., Path]:
    def run(out: Path, *changes: tuple[str, str], said: io.StringIO | None = None) -> Path:
        text = SETTINGS + STAGES
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        file = folder / f"{out.name}.toml"
        file.write_text(text)
        return run_recipe(Recipe.load(file), out, console=Console(file=said or io.StringIO(), width=200))

    return run


@pytest.fixture(scope="module")
def whole(folder: Path, run: Callable[..., Path]) -> Path:
    """The final checkpoint of a run that nothing interrupted."""
    return run(folder / "whole")


def same(one: Path, other: Path) -> bool:
    expected, actual = read_tensors(one / WEIGHTS), read_tensors(other / WEIGHTS)
    return (
        expected.keys() == actual.keys()
        and all(torch.equal(expected[key], actual[key]) for key in expected)
        and (one / CALIBRATION).read_text() == (other / CALIBRATION).read_text()
        and load_checkpoint(one).training == load_checkpoint(other).training
    )


def test_one_command_leads_from_a_table_to_a_measured_checkpoint(whole: Path) -> None:
    out = whole.parent
    assert whole == out / "checkpoint"
    assert {path.name for path in whole.iterdir()} == {CONFIG, WEIGHTS, CALIBRATION, SCOPE, METRICS, "README.md"}
    checkpoint = load_checkpoint(whole)
    assert checkpoint.name == "tiny"
    assert (checkpoint.config.fusion.width, checkpoint.config.backbone_name) == (32, "tiny")
    assert checkpoint.training["config"]["keep_heads"]
    assert checkpoint.training["config"]["optimiser"]["batch_size"] == 16
    before = checkpoint.training["initial"]["training"]
    assert before["config"]["optimiser"]["epochs"] == 2
    assert before["initial"]["name"] == "pretrained"
    assert checkpoint.metrics is not None
    # No stage changes what an earlier one made, and what only a resumed run needs is gone.
    assert {path.name for path in (out / "second" / "checkpoint").iterdir()} == {CONFIG, WEIGHTS}
    assert not (out / "calibrated" / "checkpoint" / METRICS).exists()
    assert not list(out.rglob(STATE))


def test_finished_stages_are_skipped_and_an_edited_card_is_kept(
    whole: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole / "README.md").write_text("what a person wrote")
    monkeypatch.setattr(Trainer, "run", None)
    monkeypatch.setattr(module, "calibrate", None)
    monkeypatch.setattr(module, "evaluate", None)
    said = io.StringIO()
    assert run(whole.parent, said=said) == whole
    assert said.getvalue().count("finished already") == 5
    assert (whole / "README.md").read_text() == "what a person wrote"


def copy_of(out: Path, folder: Path, without: Sequence[str] = ()) -> Path:
    """Return a copy of the run `out`, but for some of its folders."""
    return shutil.copytree(out, folder / "copy", ignore=lambda path, _: without if path == str(out) else ())


def at_call(count: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, which is interrupted right before it is called for the `count`-th time."""
    calls = 0

    def wrapped(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise KeyboardInterrupt
        return call(*given, **options)

    return wrapped


INTERRUPTIONS: tuple[tuple[Any, str, int], ...] = (
    (Trainer, "_update", 3),  # within a stage
    (module, "write_json", 2),  # when a stage is done, but not yet recorded
    (module, "_run_stage", 2),  # between two stages
    (Trainer, "_validate_epoch", 2),
    (Trainer, "_update", 3),
    (module, "calibrate", 1),
    (module, "evaluate", 1),
    (module, "_publish", 1),
)


def test_a_recipe_that_was_interrupted_again_and_again_ends_as_if_it_had_not_been(
    whole: Path, tmp_path: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for where, name, count in INTERRUPTIONS:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, at_call(count, getattr(where, name)))
            with pytest.raises(KeyboardInterrupt):
                run(out)
        assert not (out / "checkpoint").exists()
    said = io.StringIO()
    assert same(whole, run(out, said=said))
    assert said.getvalue().count("finished already") == 5
    assert not list(tmp_path.rglob(".*checkpoint*"))


SLOWER = ("epochs = 1, batch_size = 16, learning_rate = 1e-3", "epochs = 1, batch_size = 16, learning_rate = 2e-3")


def test_a_finished_stage_whose_settings_changed_is_refused(whole: Path, run: Callable[..., Path]) -> None:
    out = whole.parent
    with pytest.raises(TrainingError) as raised:
        run(out, ("ema_decay = 0.5", "ema_decay = 0.6"))
    assert f"stage 'first' in {out / 'first'} was run with other settings (config.ema_decay was 0.5, is 0.6)" in str(
        raised.value
    )
    with pytest.raises(TrainingError, match=r"'towers' .*config\.optimiser\.learning_rate was 0\.001, is 0\.002"):
        run(out, SLOWER)
    with pytest.raises(TrainingError, match=r"'calibrated' .*target_precision was \[0\.5\], is \[0\.6\]"):
        run(out, ("[0.5]", "[0.6]"))


def test_an_interrupted_stage_is_refused_where_there_is_something_to_lose(
    whole: Path, tmp_path: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_of(whole.parent, tmp_path, without=("second", "calibrated", "evaluated", "checkpoint"))
    with pytest.raises(TrainingError, match="do not fill one batch"):
        run(out, ("epochs = 1, learning_rate = 1e-3}", "epochs = 1, batch_size = 1600}"))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate_epoch", at_call(1, Trainer._validate_epoch))
        with pytest.raises(KeyboardInterrupt):
            run(out, ("keep_heads = true", "lock_image = true"))
    assert not (out / "second" / STATE).exists()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", at_call(2, write_json))
        with pytest.raises(KeyboardInterrupt):
            run(out)
    with pytest.raises(TrainingError, match=r"stage 'second' .*config\.lock_image was false, is true"):
        run(out, ("keep_heads = true", "lock_image = true"))


def test_another_table_or_another_start_is_refused(
    whole: Path, folder: Path, tmp_path: Path, run: Callable[..., Path]
) -> None:
    other = Catalogue.open(write_catalogue(tmp_path / "other", 120))
    recipe = Recipe.load(folder / "recipe.toml")
    with pytest.raises(TrainingError, match=r"stage 'towers' .*catalogue was"):
        run_recipe(recipe, whole.parent, catalogue=other, console=Console(file=io.StringIO()))
    with pytest.raises(TrainingError, match=r"stage 'second' .*from was"):
        run(whole.parent, ("keep_heads = true", 'keep_heads = true\nfrom = "towers"'))


def test_a_checkpoint_that_is_gone_or_another_is_named(whole: Path, tmp_path: Path, run: Callable[..., Path]) -> None:
    out = copy_of(whole.parent, tmp_path)
    (out / "second" / "checkpoint").rename(out / "kept")
    with pytest.raises(TrainingError, match="its checkpoint is gone"):
        run(out)
    (out / "kept").rename(out / "second" / "checkpoint")
    shutil.rmtree(out / "calibrated" / "checkpoint")
    shutil.copytree(out / "first" / "checkpoint", out / "calibrated" / "checkpoint")
    with pytest.raises(TrainingError, match="is not the one that stage 'calibrated' made"):
        run(out)


def test_the_last_stages_checkpoint_is_published_again_where_it_is_another(
    whole: Path, tmp_path: Path, run: Callable[..., Path]
) -> None:
    shorter = (STAGES[STAGES.index('\n[[stage]]\nname = "evaluated"') :], "")
    final = copy_of(whole.parent, tmp_path) / "checkpoint"
    run(final.parent, shorter)
    assert not (final / METRICS).exists()
    run(final.parent)
    assert (final / METRICS).is_file()


def test_the_command_follows_a_recipe_on_another_catalogue(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SETTINGS + STAGES[: STAGES.index('\n[[stage]]\nname = "second"')]
    (tmp_path / "two.toml").write_text(text)  # names a catalogue that is not there
    out = tmp_path / "out"
    command = ["train", folder / "shop" / "catalogue.toml", "--recipe", tmp_path / "two.toml", "--out", out]
    monkeypatch.setattr("sys.argv", ["cma-clip", *map(str, command)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert capsys.readouterr().out.strip() == str(out / "checkpoint")
    assert load_checkpoint(out / "checkpoint").training["listings"] > 100


# --- the file ----------------------------------------------------------------------------------------------


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "shop.toml"
    path.write_text(text)
    return Recipe.load(path)


FIRST = '[[stage]]\nname = "a"\nkind = "train"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[stage]\n", "Expected"),
        ('name = "x"', "stage is missing"),
        ("stage = []", "stage cannot be []"),
        (FIRST + "\n[other]\n", "has no field 'other'"),
        (
            '[[stage]]\nname = "a"\nkind = "trian"',
            "stage 'a': unknown kind 'trian'; known are pretrain",
        ),
        ('[[stage]]\nname = "a"', "stage 'a': unknown kind None"),
        ('[[stage]]\nkind = "train"', "stage 1: name is missing"),
        ('[[stage]]\nkind = "train"\nname = "../x"', "stage '../x': name cannot be"),
        ('[[stage]]\nkind = "train"\nname = "checkpoint"', "stage 'checkpoint': this name is that of"),
        (FIRST + FIRST, "stage 'a': two stages have this name"),
        (
            FIRST + 'from = "b"\n[[stage]]\nname = "b"\nkind = "train"',
            "stage 'a': from names 'b', but the",
        ),
        (FIRST + 'from = "b"\ninit = "c"', "stage 'a': from and init both say where it starts"),
        ('[[stage]]\nname = "c"\nkind = "calibrate"', "stage 'c': it has to start from a stage of kind train or"),
        (
            FIRST + '[[stage]]\nname = "e"\nkind = "evaluate"',
            "stage 'e': it has to start from a stage of kind calibrate or evaluate, not train",
        ),
        (
            FIRST + '[[stage]]\nname = "c"\nkind = "calibrate"\ntogehter = true',
            "stage 'c': CalibrateStage has no",
        ),
        (FIRST + "backbone = 3", "stage 'a': backbone cannot be 3"),
    ],
)
def test_a_mistake_in_the_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path / 'shop.toml'}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("train", "optimiser = {epoch = 3}", "unknown setting 'optimiser.epoch'; known here: epochs, batch_size"),
        ("train", "embed_dim = 3", "unknown setting 'embed_dim'"),
        ("train", "fusion = {depht = 2}", "unknown setting 'depht'; known here: width"),
        ("train", "fusion = {depth = -2}", "fusion depth cannot be negative"),
        ("train", "ema_decay = 1.5", "ema_decay must be at least 0 and below 1"),
        ("train", "optimiser = {learning_rate = nan}", "optimiser.learning_rate cannot be NaN"),
        ("pretrain", "fusion = {depth = 2}", "unknown setting 'fusion'"),
        ("pretrain", "optimiser = {epochs = 1.5}", "optimiser.epochs cannot be 1.5"),
    ],
)
def test_every_setting_is_checked_before_the_first_stage_runs(
    folder: Path, tmp_path: Path, kind: str, setting: str, message: str
) -> None:
    recipe = load(tmp_path, f'{FIRST}\n[[stage]]\nname = "b"\nkind = "{kind}"\n{setting}')
    catalogue = Catalogue.open(folder / "shop" / "catalogue.toml")
    with pytest.raises(ConfigError) as raised:
        run_recipe(recipe, tmp_path / "out", catalogue=catalogue, console=Console(file=io.StringIO()))
    assert str(raised.value).startswith(f"{recipe.path}: stage 'b': {message}")
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_a_catalogue_wants_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no catalogue"):
        run_recipe(load(tmp_path, FIRST), tmp_path / "out")


def test_a_stage_adds_its_own_settings_to_those_of_its_kind(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "[train]\nema_decay = 0.5\noptimiser = {epochs = 3, workers = 0}\n[pretrain]\nembed_dim = 16\n"
        + FIRST
        + "optimiser = {epochs = 5}\n"
        + '[[stage]]\nname = "b"\nkind = "pretrain"\n',
    )
    assert recipe.name == "shop"
    first, second = recipe.stages
    assert isinstance(first, TrainStage)
    assert isinstance(second, PretrainStage)
    assert first.settings == {"ema_decay": 0.5, "optimiser": {"epochs": 5, "workers": 0}}
    assert second.settings == {"embed_dim": 16}
    assert (first.start, second.start) == (None, "a")


def test_the_recipe_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    (text,) = (block for block in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL) if "[[stage]]" in block)
    recipe = load(tmp_path, text)
    assert [type(stage).__name__ for stage in recipe.stages] == [
        "PretrainStage",
        "TrainStage",
        "CalibrateStage",
        "EvaluateStage",
    ]
    assert recipe.catalogue == tmp_path / "shop.toml"


def test_a_start_is_a_path_beside_the_recipe_or_else_a_tag(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    text = FIRST + 'init = "weights"\n[[stage]]\nname = "b"\nkind = "train"\ninit = "openai"\n'
    first, second = load(tmp_path, text).stages
    assert isinstance(first, TrainStage)
    assert isinstance(second, TrainStage)
    assert (first.init, first.start) == (str(tmp_path / "weights"), None)
    assert (second.init, second.start) == ("openai", None)
