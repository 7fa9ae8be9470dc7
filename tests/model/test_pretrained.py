"""Starts from pretrained towers: what is read of them, what a checkpoint keeps, and what it answers without a hub."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models

from model.checkpoint.compiled import ENGINE, ENGINES
from model.checkpoint.folder import CONFIG, TOKENIZER, load_checkpoint, provenance, write_json
from model.checkpoint.weights import save_checkpoint
from model.config import CLIP_MEAN, FusionConfig, PreprocessConfig
from model.errors import CheckpointError, ConfigError
from model.inference.engines.engine import EngineName
from model.inference.engines.export import export, write_network
from model.inference.engines.openvino_engine import OpenVinoEngine
from model.inference.engines.torch_engine import TorchEngine
from model.inference.predictor import Predictor
from model.network.towers import VitTower
from model.tasks import Task
from model.training import pretrained
from model.training.initialise import initial_model, initial_network, take_image_tower
from model.training.pretrained import list_backbones, pretrained_weights, read_pretrained
from tests.conftest import write_catalogue
from tests.model.pretrained_towers import FAMILIES, write_towers
from tests.test_commands import run

FUSION = FusionConfig(width=32, depth=1, heads=2, dropout=0.0)

LISTINGS = (
    ("Puma Men Navy Blue T-Shirt", True),
    ("women RED_dress", True),
    ("watch", False),
    (None, True),
    ("running shoes sports leather strap watch belt bag sunglasses", True),
)
"""Titles, and whether each has an image: short ones, one without an image, one without a title, one that is cut."""


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a family, written once."""
    root = tmp_path_factory.mktemp("published")

    def folder(family: str) -> Path:
        path = root / family
        if not path.is_dir():
            write_towers(path, FAMILIES[family])
        return path

    return folder


@pytest.fixture(scope="module")
def checkpoints(
    towers: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, tasks: tuple[Task, ...]
) -> Callable[[str], Path]:
    """Return a checkpoint of ours that starts from a family's towers."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(family: str) -> Path:
        path = root / family
        if not path.is_dir():
            initial = f"local-dir:{towers(family)}"
            model = initial_model(None, initial, fusion=FUSION)
            torch.manual_seed(0)
            network = initial_network(model, tasks, initial)
            save_checkpoint(path, network, name="shop", config=model, tasks=tasks, training={})
        return path

    return folder


def photo(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((90, 120), Image.Resampling.BILINEAR)


def items(predictor: Predictor) -> list[Any]:
    return [predictor.prepare(title, photo(at) if image else None) for at, (title, image) in enumerate(LISTINGS)]


# --- what is read ------------------------------------------------------------------------------------------


def test_what_marqo_publishes_is_read_whole(towers: Callable[[str], Path]) -> None:
    folder = towers("SigLIP, Marqo")
    found = read_pretrained(None, f"local-dir:{folder}")
    assert found.name == folder.name
    own = found.preprocess.tokenizer
    assert own is not None
    assert (own.clean, own.end, own.padding) == ("canonicalize", 1, 1)
    assert found.preprocess == PreprocessConfig(
        image_size=(32, 32),
        context_length=16,
        resize="squash",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        tokenizer=own,
    )
    assert pretrained_weights(found.name, f"local-dir:{folder}") == folder / "open_clip_pytorch_model.bin"


def test_a_hubs_repository_is_read_as_a_folder_is(
    towers: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = towers("SigLIP, Marqo"), []

    def download(repository: str, filename: str = "open_clip_pytorch_model.bin") -> str:
        asked.append((repository, filename))
        if not (folder / filename).is_file():
            raise FileNotFoundError(filename)
        return str(folder / filename)

    monkeypatch.setattr(pretrained, "download_pretrained_from_hf", download)
    found = read_pretrained(None, "hf-hub:Marqo/marqo-fashionSigLIP")
    assert found.name == "Marqo/marqo-fashionSigLIP"
    assert found.preprocess == read_pretrained(None, f"local-dir:{folder}").preprocess
    assert pretrained_weights(found.name, "hf-hub:Marqo/marqo-fashionSigLIP").name == "open_clip_pytorch_model.bin"
    # The tokenizer is that of the repository which the configuration names.
    assert ("timm/ViT-B-16-SigLIP", "tokenizer.json") in asked
    assert provenance("hf-hub:Marqo/marqo-fashionSigLIP") == "hf-hub:Marqo/marqo-fashionSigLIP"


def test_a_tag_brings_its_activation_and_preprocessing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_pretrained("ViT-B-32", "openai").backbone["quick_gelu"] is True
    assert read_pretrained("ViT-B-32", "laion2b_s34b_b79k").backbone["quick_gelu"] is False
    assert read_pretrained("ViT-L-14", "laion2b_s32b_b82k").preprocess.mean == (0.5, 0.5, 0.5)
    core = read_pretrained("PE-Core-B-16", "meta").preprocess
    assert (core.resize, core.interpolation, core.mean) == ("squash", "bilinear", (0.5, 0.5, 0.5))
    small = {"width": 32, "layers": 1, "head_width": 16, "patch_size": 8, "image_size": 16}
    config = {
        "embed_dim": 8,
        "vision_cfg": small,
        "text_cfg": {"context_length": 8, "width": 16, "heads": 2, "layers": 1},
    }
    weights = tmp_path / "weights.pt"
    torch.save(open_clip.CLIP(**config, quick_gelu=True).state_dict(), weights)
    monkeypatch.setattr("model.training.pretrained.backbone_config", lambda _: dict(config))
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(weights))
    model = initial_model("ViT-B-32", "openai")
    network = initial_network(model, (), "openai")
    assert isinstance(network.backbone.image, VitTower)
    for tower in (network.backbone.image.visual, network.backbone.text.text):
        assert type(tower.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_a_file_has_the_preprocessing_on_which_the_backbones_tags_agree(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    mobile = read_pretrained("MobileCLIP-S1", str(tmp_path / "weights.pt")).preprocess
    assert (mobile.mean, mobile.std, mobile.interpolation) == ((0, 0, 0), (1, 1, 1), "bilinear")
    assert read_pretrained("ViT-L-14", str(tmp_path / "weights.pt")).preprocess.mean == CLIP_MEAN  # they don't


def test_weights_come_from_a_file(tmp_path: Path, tasks: tuple[Task, ...]) -> None:
    clip = open_clip.create_model("ViT-S-32-alt", load_weights=False)
    path = tmp_path / "weights.pt"
    torch.save(clip.state_dict(), path)
    backbone = initial_network(initial_model("ViT-S-32-alt", str(path)), tasks, str(path)).backbone
    assert isinstance(backbone.image, VitTower)
    assert torch.equal(backbone.image.visual.conv1.weight, clip.visual.conv1.weight)
    assert torch.equal(backbone.text.text.token_embedding.weight, clip.token_embedding.weight)


def test_towers_read_images_of_another_size(towers: Callable[[str], Path], tasks: tuple[Task, ...]) -> None:
    for family, size, grid in (("SigLIP, Marqo", (48, 32), (6, 4)), ("CLIP", (40, 24), (5, 3))):
        initial = f"local-dir:{towers(family)}"
        model = initial_model(None, initial)
        model = dataclasses.replace(model, preprocess=dataclasses.replace(model.preprocess, image_size=size))
        backbone = initial_network(model, tasks, initial).backbone
        assert backbone.image.grid == grid
        assert backbone.encode_image(torch.randn(1, 3, *size)).embeddings.shape[1] == 1 + grid[0] * grid[1]


def test_what_is_listed_is_what_was_compared_with_open_clip() -> None:
    results = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "backbones.json").read_text())
    compared = results["configurations"]
    listed = {each.name: each for each in list_backbones()}
    assert listed.keys() == compared.keys() == set(open_clip.list_models())
    assert {name for name, each in listed.items() if each.refused is None} == {
        name for name, each in compared.items() if each["now"]["verdict"] != "refused"
    }
    assert listed["ViT-B-16-SigLIP"].tags == ("webli",)
    assert (listed["ViT-SO400M-14-SigLIP"].context_length, listed["ViT-B-32"].tokenizer) == (16, "CLIP")


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "initial", "message"),
    [
        ("ViT-B-32", "no-such-tag", "neither a file nor a pretrained tag of ViT-B-32 .tags: openai"),
        ("no-such", "openai", "unknown backbone"),
        (None, "openai", "openai needs the name of its open_clip model as the backbone: .*ViT-B-32"),
        (None, "runs/no-such-folder", "neither a checkpoint folder, nor a file of weights"),
        ("cma-small", "openai", "openai needs the name of its open_clip model"),
        ("ViT-B-32", "local-dir:somewhere", "says itself what its backbone is"),
        (None, "local-dir:no-such-folder", "there is no folder no-such-folder"),
        ("RN50", "openai", "ModifiedResNet is not supported"),
        ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k", "Hugging Face text towers are not supported"),
    ],
)
def test_what_cannot_be_started_from(backbone: str | None, initial: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        initial_model(backbone, initial)


def test_what_cannot_be_downloaded_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise FileNotFoundError("Failed to download file (x.bin) for a/b. Last error: no network\nand a hint")

    monkeypatch.setattr(pretrained, "download_pretrained_from_hf", fail)
    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    reason = r" cannot be downloaded \(Failed to download file \(x.bin\) for a/b\); where there is no network, .* name "
    folder = "a folder with the repository's files by local-dir:FOLDER$"
    with pytest.raises(ConfigError, match=rf"open_clip_config.json of Marqo/marqo-fashionSigLIP{reason}{folder}"):
        read_pretrained(None, "hf-hub:Marqo/marqo-fashionSigLIP")
    with pytest.raises(ConfigError, match=rf"tokenizer.json of timm/ViT-B-16-SigLIP{reason}{folder}"):
        read_pretrained("ViT-B-16-SigLIP", "webli")
    with pytest.raises(ConfigError, match=rf"the weights of hf-hub:Marqo/x{reason}{folder}"):
        pretrained_weights("Marqo/x", "hf-hub:Marqo/x")
    file = r"the file of weights by its path \(they are those of timm/vit_base_patch32_clip_224.openai\)$"
    with pytest.raises(ConfigError, match=rf"the weights of openai{reason}{file}"):
        pretrained_weights("ViT-B-32", "openai")


def test_a_training_whose_weights_cannot_be_downloaded_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    toml = write_catalogue(tmp_path / "shop", 40)
    start = ("--backbone", "ViT-B-32", "--init", "openai")
    assert run(monkeypatch, "train", toml, "--out", tmp_path / "run", *start) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("cma-clip: the weights of openai cannot be downloaded (no network); where")


def changed(folder: Path, copy: Path, **text: Any) -> str:
    """Copy a folder, with other settings of its text tower."""
    shutil.copytree(folder, copy)
    content = json.loads((copy / pretrained.CONFIG).read_text())
    content["model_cfg"]["text_cfg"] |= text
    (copy / pretrained.CONFIG).write_text(json.dumps(content))
    return f"local-dir:{copy}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_mode": "clips"}, "titles that are tokenized as"),
        ({"tokenizer_kwargs": {"language": "deu"}}, "titles that are tokenized as"),
        ({"tokenizer_kwargs": {"clean": "boil"}}, "titles that are tokenized as"),
        ({"vocab_size": 20}, "has tokens up to .*, and its text tower fewer embeddings"),
        ({"pool_type": "none"}, "not pooled to one token"),
    ],
)
def test_titles_that_cannot_be_read_right_are_refused(
    towers: Callable[[str], Path], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    initial = changed(towers("SigLIP, Marqo"), tmp_path / "towers", **settings)
    with pytest.raises(ConfigError, match=message):
        initial_network(initial_model(None, initial), (), initial)


def test_a_folder_without_a_usable_tokenizer_is_refused(towers: Callable[[str], Path], tmp_path: Path) -> None:
    initial = changed(towers("SigLIP, Marqo"), tmp_path / "towers")
    file = tmp_path / "towers" / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(ConfigError, match="the tokenizer cannot be read"):
        read_pretrained(None, initial)
    Tokenizer(models.WordLevel({"shirt": 0, "</s>": 1}, unk_token="shirt")).save(str(file))  # noqa: S106 - no password
    with pytest.raises(ConfigError, match="has no token that ends a title"):
        read_pretrained(None, initial)
    file.unlink()
    with pytest.raises(
        ConfigError, match=r"there is no tokenizer\.json of timm/ViT-B-16-SigLIP; transformers writes one"
    ):
        read_pretrained(None, initial)


def test_weights_of_other_towers_are_refused(towers: Callable[[str], Path], tmp_path: Path) -> None:
    initial = changed(towers("CLIP"), tmp_path / "towers")
    torch.save({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "towers" / "open_clip_pytorch_model.bin")
    with pytest.raises(ConfigError, match="does not fit the towers"):
        initial_network(initial_model(None, initial), (), initial)
    (tmp_path / "towers" / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match="holds 0 files of weights"):
        pretrained_weights("towers", initial)


# --- what a checkpoint keeps -------------------------------------------------------------------------------


def test_a_checkpoint_keeps_the_tokenizer_in_a_file_of_its_own(checkpoints: Callable[[str], Path]) -> None:
    folder = checkpoints("SigLIP, Marqo")
    stored = json.loads((folder / CONFIG).read_text())["preprocess"]["tokenizer"]
    assert set(stored) == {"clean", "end", "padding", "sha256"}
    own = load_checkpoint(folder).config.preprocess.tokenizer
    assert own is not None
    assert own.definition == (folder / TOKENIZER).read_text()
    again = initial_model(None, str(folder))
    assert again.preprocess.tokenizer == own
    assert not (checkpoints("CLIP") / TOKENIZER).exists()


def test_a_tokenizer_that_is_missing_or_another_one_is_refused(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints("SigLIP, Marqo"), folder)
    shutil.copy(checkpoints("MetaCLIP 2") / TOKENIZER, folder / TOKENIZER)
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not the one that config.json describes"):
        load_checkpoint(folder)
    (folder / TOKENIZER).unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be read: No such file"):
        load_checkpoint(folder)


@pytest.mark.parametrize("family", ["PE-Core", "ConvNeXt", "CLIPA"])
def test_a_checkpoint_whose_tower_was_pooled_otherwise_is_refused(
    checkpoints: Callable[[str], Path], family: str, tmp_path: Path, tasks: tuple[Task, ...]
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(checkpoints(family), folder)
    config = json.loads((folder / CONFIG).read_text())
    assert config["format"] == 2  # which releases that pool by the mean refuse
    (folder / CONFIG).write_text(json.dumps(config | {"format": 1}))
    refused = pytest.raises(CheckpointError, match=r"older release, .* Train it again from the pretrained towers")
    with refused:
        Predictor.load(folder, device="cpu", engine="torch")
    with refused:
        initial_network(initial_model(None, str(folder)), tasks, str(folder))
    with refused:
        take_image_tower(initial_network(initial_model(None, str(folder)), tasks, None).backbone, folder)


@pytest.mark.parametrize("family", ["CLIP", "MobileCLIP-S", "Swin"])
def test_all_other_checkpoints_are_of_the_first_format(checkpoints: Callable[[str], Path], family: str) -> None:
    assert json.loads((checkpoints(family) / CONFIG).read_text())["format"] == 1
    Predictor.load(checkpoints(family), device="cpu", engine="torch")


def test_without_the_library_it_says_what_to_install(
    checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.inputs.tokenizer.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'cma-clip\[tokenizers\]'"):
        Predictor.load(checkpoints("SigLIP, Marqo"), device="cpu", engine="torch")
    Predictor.load(checkpoints("CLIP"), device="cpu", engine="torch")


# --- answers -----------------------------------------------------------------------------------------------

FAMILIES_SERVED = ["SigLIP, Marqo", "SigLIP 2", "CLIPA", "MetaCLIP 2", "MobileCLIP-B", "Swin"]


@pytest.mark.parametrize("family", FAMILIES_SERVED)
def test_a_listing_is_answered_the_same_alone_and_in_a_batch(checkpoints: Callable[[str], Path], family: str) -> None:
    predictor = Predictor.load(checkpoints(family), device="cpu", engine="torch")
    together = predictor.predict(predictor.collate(items(predictor)))
    for item, among in zip(items(predictor), together, strict=True):
        (alone,) = predictor.predict(predictor.collate([item]))
        for task in predictor.tasks:
            one, other = (row.attribute(task.name, target_precision=0.95, top_k=4).candidates for row in (alone, among))
            assert {each.label: each.confidence for each in one} == pytest.approx(
                {each.label: each.confidence for each in other}, abs=1e-5
            )


@pytest.mark.parametrize("family", FAMILIES_SERVED)
def test_the_compiled_network_answers_as_pytorch(checkpoints: Callable[[str], Path], family: str) -> None:
    checkpoint = load_checkpoint(checkpoints(family))
    reference, folder = (
        TorchEngine.load(checkpoint, device="cpu"),
        checkpoint.folder / ENGINES / EngineName.OPENVINO_F32,
    )
    folder.mkdir(parents=True, exist_ok=True)
    compiled = write_network(folder, EngineName.OPENVINO_F32, export(reference, checkpoint), reference.info, checkpoint)
    write_json(folder / ENGINE, compiled.to_json())
    labels, end = [len(task.labels) for task in checkpoint.tasks], checkpoint.config.preprocess.end
    engine = OpenVinoEngine(compiled, folder, labels, end=end, threads=1)
    ours, theirs = Predictor(checkpoint, engine), Predictor(checkpoint, reference)
    found, expected = (each.outputs(each.collate(items(each))) for each in (ours, theirs))
    assert found.keys() == expected.keys()
    for situation, outputs in found.items():
        wanted = expected[situation].raw
        for a, b in zip((*outputs.raw.logits, outputs.raw.attention), (*wanted.logits, wanted.attention), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=0.02)  # weights are kept in half precision


@pytest.mark.parametrize("family", ["SigLIP, Marqo", "SigLIP 2", "CLIPA", "MetaCLIP 2"])
def test_an_explanation_weighs_the_callers_own_words(checkpoints: Callable[[str], Path], family: str) -> None:
    predictor = Predictor.load(checkpoints(family), device="cpu", engine="torch")
    title = "Puma Men Navy_Blue T-Shirt (%) &amp; Watch"
    item = predictor.prepare(title, photo(0), explain=True)
    (answer,) = predictor.predict(predictor.collate([item]))
    explanation = answer.attribute("colour", target_precision=0.95, top_k=1).explanation
    assert explanation is not None
    assert explanation.text is not None
    assert [word.token for word in explanation.text] == title.split()
    assert sum(word.weight for word in explanation.text) == pytest.approx(1)
