"""The study on a catalogue small enough to train on in seconds: networks, corruptions, figures, skipping, report."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.checkpoint.folder import CALIBRATION, load_checkpoint, write_part
from model.checkpoint.weights import save_checkpoint
from model.config import ModelConfig, override
from model.device import training_precision
from model.errors import ConfigError
from model.evaluation import scores
from model.inputs.augment import AugmentConfig
from model.inputs.dataset import ListingDataset, collate
from model.network.cma_clip import CMAClip
from model.network.towers import Backbone, TokenSequence, build_backbone
from model.situations import Situation
from model.tasks import Task
from model.training.config import TrainConfig
from model.training.initialise import initial_model, initial_network
from model.training.objective import TrainingLoss
from model.trust.calibration import AttributeCalibration, Calibration, Certificate, softmax
from research.study import runs, shipped, study
from research.study.__main__ import PAGE, RESULTS
from research.study.answers import Answers, ImageCache, Inference, TestPart, load_answers, save_answers
from research.study.cells import all_cells, condition_cells, read_cells, weight_cells, write_cells
from research.study.conditions import clean, predict_clean, predict_corrupted
from research.study.corruptions import CORRUPTIONS, IMAGES, TITLES, Corruption, another
from research.study.encoded import EncodedImages, EncodedListings, GivenTokens
from research.study.findings import points
from research.study.networks import PooledClip, pooled_clip
from research.study.references import late_fusion, majority_answers, title_answers
from research.study.report import KEPT, render, write_report
from research.study.results import Results
from research.study.runs import RUNS, Run
from research.study.shipped import measure_shipped
from research.study.study import Study, all_names, repeat_names
from tests.conftest import draw


@pytest.fixture
def pooled(model_config: ModelConfig, tasks: tuple[Task, ...]) -> PooledClip:
    torch.manual_seed(0)
    network = pooled_clip(model_config, tasks, None)
    assert isinstance(network, PooledClip)
    return network.eval()


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory, model_config: ModelConfig) -> Path:
    """A checkpoint of towers alone, as `cma-clip pretrain` leaves it."""
    torch.manual_seed(1)
    backbone = build_backbone(model_config.backbone, model_config.preprocess)
    folder = tmp_path_factory.mktemp("towers") / "checkpoint"
    save_checkpoint(
        folder, nn.ModuleDict({"backbone": backbone}), name="towers", config=model_config, tasks=(), training={}
    )
    return folder


@pytest.fixture(scope="module")
def part(catalogue: Catalogue, tasks: tuple[Task, ...]) -> TestPart:
    return TestPart(catalogue, tasks)


def encoded(backbone: Backbone, n: int) -> tuple[TokenSequence, TokenSequence]:
    torch.manual_seed(3)
    tokens = torch.tensor([[49406, 320 + row, 49407, 0] for row in range(n)])
    return backbone.encode_image(torch.randn(n, 3, 24, 16)), backbone.encode_text(tokens)


# --- the fine-tuned CLIP -----------------------------------------------------------------------------------


@torch.no_grad()
def test_an_absent_modality_is_exact_in_the_pooled_network(pooled: PooledClip) -> None:
    nn.init.normal_(pooled.absent)
    image, text = encoded(pooled.backbone, 3)
    rows = torch.tensor([True, False, True])
    corrupted = TokenSequence(torch.where(rows[:, None, None], text.embeddings, torch.nan), text.mask, text.pooled)
    mixed, alone, both = pooled(image, corrupted.keep(rows)), pooled(image, None), pooled(image, text)
    for t in range(2):
        torch.testing.assert_close(mixed.logits[t][1], alone.logits[t][1])
        torch.testing.assert_close(mixed.logits[t][rows], both.logits[t][rows])
        assert not torch.equal(alone.logits[t], both.logits[t])
    assert mixed.modality_attention[:, 0].tolist() == [[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]
    assert pooled(None, text).modality_attention[0, 1].tolist() == [0.0, 1.0]


def test_every_parameter_of_the_pooled_network_gets_a_gradient(
    catalogue: Catalogue,
    tasks: tuple[Task, ...],
    model_config: ModelConfig,
    train_config: TrainConfig,
    pooled: PooledClip,
) -> None:
    dataset = ListingDataset(catalogue, catalogue.listings[:16], tasks, model_config.preprocess)
    batch = collate([dataset[i] for i in range(16)])
    torch.autograd.backward(
        TrainingLoss(train_config, dataset.transform)(cast(CMAClip, pooled.train()), batch, 0.5)["total"]
    )
    without = [name for name, p in pooled.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in pooled.parameters() if p.grad is not None)


def test_all_networks_start_from_the_same_towers(towers: Path, tasks: tuple[Task, ...]) -> None:
    initial = initial_model(None, str(towers))
    states = {run.name: run.build(run.model(initial), tasks, str(towers)).backbone.state_dict() for run in RUNS}
    for name, state in states.items():
        assert state.keys() == states["cma-clip"].keys()
        differing = {key for key in state if not torch.equal(state[key], states["cma-clip"][key])}
        assert bool(differing) == (name == "no-pretraining")
        assert not any(key.startswith("image.") for key in differing)
    assert all(run.config(1).lock_image for run in RUNS)


# --- images that are encoded once ------------------------------------------------------------------------


@pytest.fixture
def images(towers: Path, tasks: tuple[Task, ...], tmp_path: Path) -> EncodedImages:
    network = initial_network(initial_model(None, str(towers)), tasks, str(towers))
    return EncodedImages(tmp_path / "encoded", network.backbone, torch.device("cpu"), Console(file=io.StringIO()))


@pytest.mark.parametrize("augment", [None, AugmentConfig(crop=0.6, corrupted_images=0.5)], ids=["plain", "varied"])
def test_an_encoded_image_trains_as_the_image_does(
    catalogue: Catalogue,
    tasks: tuple[Task, ...],
    towers: Path,
    images: EncodedImages,
    train_config: TrainConfig,
    augment: AugmentConfig | None,
) -> None:
    model = initial_model(None, str(towers))
    listings = [dataclasses.replace(x, image=None if n == 2 else x.image) for n, x in enumerate(catalogue.listings[:9])]
    varied = [augment] * 2 if augment else None
    arguments: dict[str, Any] = {"tasks": tasks, "preprocess": model.preprocess, "augment": varied, "seed": 5}
    found = []
    plain = ListingDataset(catalogue, listings, **arguments)
    for dataset in (plain, EncodedListings(images, plain)):
        torch.manual_seed(0)
        network = initial_network(model, tasks, str(towers))
        if dataset is not plain:
            network.backbone = GivenTokens(network.backbone.image, network.backbone.text)
        network.backbone.lock_image()
        dataset.set_epoch(1)
        torch.manual_seed(0)
        batch = collate([dataset[i] for i in range(9)])
        with training_precision(torch.device("cpu")):
            loss = TrainingLoss(train_config, dataset.transform)(network.train(), batch, 0.5)["total"]
        torch.autograd.backward(loss)
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        found.append((loss.item(), gradients["sequence_attention.project_image.1.weight"]))
    assert found[1][0] == pytest.approx(found[0][0], rel=2e-3)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0.05, atol=2e-3)


def test_encoded_images_are_kept_by_epoch_and_variation(
    catalogue: Catalogue, tasks: tuple[Task, ...], images: EncodedImages, model_config: ModelConfig
) -> None:
    def tokens(epoch: int, augment: AugmentConfig | None) -> list[float]:
        listings = catalogue.part(Part.TRAIN)
        varied = [augment] * 2 if augment else None
        plain = ListingDataset(catalogue, listings, tasks, model_config.preprocess, augment=varied)
        dataset = EncodedListings(images, plain)
        dataset.set_epoch(epoch)
        pixels = dataset[0].pixels
        assert pixels is not None
        return [float(value) for value in np.ravel(pixels)]

    varied, milder = AugmentConfig(crop=0.5), AugmentConfig(crop=0.9)
    given = {str(tokens(epoch, augment)) for epoch in (0, 1) for augment in (varied, milder)}
    assert len(given) == 4
    assert tokens(0, None) == tokens(1, None)
    files = {path.name: path.stat().st_mtime_ns for path in images.folder.iterdir()}
    assert len(files) == 5
    assert tokens(1, varied) == tokens(1, dataclasses.replace(varied, title_dropout=0.0))
    assert {path.name: path.stat().st_mtime_ns for path in images.folder.iterdir()} == files


def test_images_of_the_test_part_are_encoded_once_for_all_networks(
    part: TestPart, network: CMAClip, model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, cache = part.subset(4), ImageCache()

    def answers(cache: ImageCache | None) -> dict[str, Answers]:
        inference = Inference(network, model_config.preprocess, torch.device("cpu"), cache=cache)
        return dict(predict_corrupted(inference, part, rows, supported=tuple(Situation)))

    plain, first = answers(None), answers(cache)
    monkeypatch.setattr(Inference, "encode_images", None)
    second = answers(cache)
    assert plain.keys() == first.keys() == second.keys()
    for key, each in plain.items():
        for logits, again, once_more in zip(each.logits, first[key].logits, second[key].logits, strict=True):
            assert (logits == again).all()
            assert (logits == once_more).all()


# --- the list of runs --------------------------------------------------------------------------------------


def test_the_runs_are_what_the_study_is_about() -> None:
    assert len({run.name for run in RUNS}) == len(RUNS)
    by_name = {run.name: run for run in RUNS}
    assert {"cma-clip", "cma-clip-plain", "clip-finetuned", "clip-finetuned-same-recipe"} <= set(by_name)
    assert by_name["clip-finetuned"].config(4) == by_name["cma-clip-plain"].config(4)
    assert by_name["clip-finetuned-same-recipe"].config(4) == by_name["cma-clip"].config(4)
    assert [run.name for run in RUNS if run.text == "random"] == ["no-pretraining"]
    for name, repeats in runs.REPEATS.items():
        original = by_name[name].config(4)
        seeds = [repeat.config(4).optimiser.seed for repeat in repeats]
        assert [original.optimiser.seed, *seeds] == list(range(runs.SEEDS))
        for repeat in repeats:
            other = repeat.config(4)
            assert override(other, {"optimiser.seed": "0"}) == original


def test_every_run_has_the_same_budget_of_steps(model_config: ModelConfig) -> None:
    optimisers = {run.config(3).optimiser for run in RUNS}
    assert len(optimisers) == 1
    assert optimisers.pop().epochs == 3
    plain = dataclasses.replace(RUNS[0], training=runs.PLAIN).config(1)
    assert (plain.weights.image_and_title, plain.weights.image, plain.weights.title) == (1, 0, 0)
    assert (plain.modality_dropout, plain.mismatched_titles, plain.mismatched_images) == (0, 0, 0)
    augment = plain.augment
    assert (augment.title_dropout, augment.label_word_dropout, augment.corrupted_images, augment.blank_images) == (
        0,
    ) * 4
    assert augment.crop < 1
    neither = next(run for run in RUNS if run.name == "no-attention").model(model_config).fusion
    assert (neither.depth, neither.modality_attention, neither.width) == (0, False, model_config.fusion.width)


# --- corruptions -------------------------------------------------------------------------------------------

TITLE = "Plain Blue Square number 7 of the old Reds"


def listing(number: int = 1, title: str = TITLE) -> Listing:
    labels = {"colour": "Blue", "shape": "Square"}
    return Listing(id=f"sku-{number}", title=title, image="x.png", labels=labels, group=title, part=Part.TEST)


@pytest.mark.parametrize("corruption", TITLES, ids=lambda corruption: corruption.name)
def test_corrupted_titles_depend_on_the_seed_and_the_listing_alone(corruption: Corruption[str]) -> None:
    other = "Fancy Green Circle"
    for strength in corruption.strengths:
        corrupted = [corruption(TITLE, listing(n), other, strength) for n in range(40)]
        assert corrupted == [corruption(TITLE, listing(n), other, strength) for n in range(40)]
    assert any(each != TITLE for each in corrupted)
    reseeded = dataclasses.replace(corruption, seed=1)
    middle = corruption.strengths[1]
    changed = [reseeded(TITLE, listing(n), other, middle) for n in range(40)]
    if corruption.strengths[-1] == middle:
        return
    assert changed != [corruption(TITLE, listing(n), other, middle) for n in range(40)]


@pytest.mark.parametrize("corruption", IMAGES, ids=lambda corruption: corruption.name)
def test_corrupted_images_depend_on_the_seed_and_the_listing_alone_and_stay_as_they_were(
    corruption: Corruption[Image.Image],
) -> None:
    own, other = draw("Blue", "Square", 1), draw("Red", "Circle", 2)
    before = own.tobytes()
    for strength in corruption.strengths:
        for n in range(5):
            corrupted = corruption(own, listing(n), other, strength)
            assert corrupted.mode == "RGB"
            assert corrupted.tobytes() == corruption(own, listing(n), other, strength).tobytes()
    assert corrupted.tobytes() != before
    assert own.tobytes() == before


def differing(corruption: Corruption[Any], given: Any, other: Any, strength: float) -> float:
    """How far the input of 30 listings is from what it was."""
    total = 0.0
    for n in range(30):
        corrupted = corruption(given, listing(n), other, strength)
        if isinstance(given, str):
            kept = [word for word in given.split() if word in corrupted.split()]
            total += len(given.split()) - len(kept) + max(0, len(corrupted.split()) - len(given.split()))
        else:
            same_size = corrupted.resize(given.size)
            total += float(np.abs(np.asarray(same_size, float) - np.asarray(given, float)).mean())
    return total


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
def test_stronger_corruptions_change_more(corruption: Corruption[Any]) -> None:
    is_title = corruption in TITLES
    given = TITLE if is_title else draw("Blue", "Square", 1)
    other = "Fancy Green Circle for men" if is_title else draw("Red", "Circle", 2)
    distances = [differing(corruption, given, other, strength) for strength in corruption.strengths]
    assert distances == sorted(distances)
    assert distances[0] < distances[-1]


def test_milder_corruption_is_part_of_the_stronger() -> None:
    by_name = {corruption.name: corruption for corruption in TITLES}
    for n in range(30):
        kept = [set(by_name["words dropped"](TITLE, listing(n), "", share).split()) for share in (0.25, 0.5, 1.0)]
        assert kept[0] >= kept[1] >= kept[2]
        assert len(kept[2]) == 1
    drop = by_name["label words removed"]
    assert drop(TITLE, listing(), "", 1.0) == "Plain number 7 of the old Reds"
    assert drop("blue squares", listing(), "", 1.0) == ""
    assert {by_name["no title"](TITLE, listing(n), "", 1.0) for n in range(9)} == {""}
    assert by_name["mismatched title"](TITLE, listing(), "Other", 1.0) == "Other"
    mixed = by_name["words added"](TITLE, listing(), "Fancy Green", 1.0).split()
    assert len(mixed) == 2 * len(TITLE.split())
    assert [word for word in mixed if word not in ("Fancy", "Green")] == TITLE.split()


DRAWN = {
    "words dropped": 2993595990,
    "typos": 1138720377,
    "words added": 998605654,
    "label words removed": 1923157497,
    "no title": 2744370987,
    "mismatched title": 1190935691,
    "noise": 448251114,
    "crop": 590311631,
    "occlusion": 1563654390,
    "colour cast": 4053850826,
    "blank image": 2060397046,
    "mismatched image": 277570417,
}
"""Checksums of what the committed figures were measured on; JPEG and blur draw nothing."""


@pytest.mark.parametrize("name", DRAWN)
def test_the_draws_are_those_of_the_committed_figures(name: str) -> None:
    corruption = next(each for each in CORRUPTIONS if each.name == name)
    cases = [(listing(n), strength) for n in range(9) for strength in corruption.strengths]
    if corruption in TITLES:
        drawn = "\n".join(corruption(TITLE, x, "Fancy Green Circle", strength) for x, strength in cases).encode()
    else:
        pixels = (np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8) for seed in (1, 2))
        own, other = map(Image.fromarray, pixels)
        drawn = b"".join(corruption(own, x, other, strength).tobytes() for x, strength in cases)
    assert zlib.crc32(drawn) == DRAWN[name]


def test_another_listing_is_another_title_and_always_the_same() -> None:
    listings = [listing(n, title=f"Title {n // 2}") for n in range(20)]
    for own in listings:
        drawn = another(own, listings)
        assert drawn.title != own.title
        assert drawn is another(own, listings)


# --- inference and figures -----------------------------------------------------------------------------------


def test_the_test_part_holds_the_listings_with_both_modalities(part: TestPart, catalogue: Catalogue) -> None:
    assert len(part.listings) == len(catalogue.part(Part.TEST)) > 10
    assert part.labels.shape == (len(part.listings), 2)
    assert part.subset(5).tolist() == part.subset(5).tolist()
    assert set(part.subset(5)) < set(part.subset(9))
    assert len(part.subset(10_000)) == len(part.listings)


def test_inference_answers_as_the_network_does(part: TestPart, network: CMAClip, model_config: ModelConfig) -> None:
    inference = Inference(network, model_config.preprocess, torch.device("cpu"))
    answers = dict(predict_clean(inference, part, tuple(Situation)))
    one = part.listings[3]
    with torch.inference_mode():
        pixels = torch.from_numpy(inference.transform(part.image(one)))[None]
        image = network.backbone.encode_image(inference.transform.normalise(pixels))
        text = network.backbone.encode_text(torch.from_numpy(inference.tokenize(one.title or "").tokens)[None])
        expected = network(image, text)
    for t in range(2):
        assert answers[clean(Situation.IMAGE_AND_TITLE)].logits[t][3] == pytest.approx(
            expected.logits[t][0].numpy(), abs=1e-5
        )
    assert (answers[clean(Situation.IMAGE)].attention == [1, 0]).all()
    assert (answers[clean(Situation.TITLE)].attention == [0, 1]).all()


def test_a_corrupted_modality_reaches_only_networks_that_use_it(
    part: TestPart, network: CMAClip, model_config: ModelConfig
) -> None:
    inference = Inference(network, model_config.preprocess, torch.device("cpu"))
    rows = part.subset(6)
    both = dict(predict_corrupted(inference, part, rows, supported=tuple(Situation)))
    assert set(both) == {
        "image_and_title/uncorrupted/0",
        *(f"image_and_title/{each.name}/{strength:g}" for each in CORRUPTIONS for strength in each.strengths),
    }
    title = dict(predict_corrupted(inference, part, rows, supported=(Situation.IMAGE_AND_TITLE, Situation.TITLE)))
    assert {key.split("/")[1] for key in title} == {"uncorrupted", *(corruption.name for corruption in TITLES)}
    # Without a title, only the image counts; a network that uses titles alone is given an empty one.
    image = dict(predict_corrupted(inference, part, rows, supported=(Situation.IMAGE_AND_TITLE, Situation.IMAGE)))
    no_title, image_alone = both["image_and_title/no title/1"], image["image_and_title/uncorrupted/0"]
    assert no_title.logits[0] == pytest.approx(image_alone.logits[0], abs=1e-5)
    assert (title["image_and_title/no title/1"].attention == [0, 1]).all()


def test_answers_survive_the_disk(tmp_path: Path) -> None:
    given = {"a/b's/0.5": Answers(logits=(np.eye(3, dtype=np.float32),), attention=np.ones((3, 1, 2), np.float32))}
    save_answers(tmp_path / "answers.npz", given)
    loaded = load_answers(tmp_path / "answers.npz")
    assert loaded.keys() == given.keys()
    assert (loaded["a/b's/0.5"].logits[0] == np.eye(3)).all()
    assert loaded["a/b's/0.5"].attention.shape == (3, 1, 2)


def noisy(part: TestPart, noise: float) -> Answers:
    """Right answers but for noise, the more confident the likelier right."""
    generator = np.random.default_rng(0)
    logits = []
    for t, task in enumerate(part.tasks):
        scored = generator.normal(0, noise, (len(part.listings), len(task.labels)))
        scored[np.arange(len(part.listings)), part.labels[:, t].clip(0)] += 2
        logits.append(scored.astype(np.float32))
    return Answers(logits=tuple(logits), attention=np.full((len(part.listings), 2, 2), 0.5, np.float32))


def test_figures_are_those_of_brute_force(part: TestPart) -> None:
    answers, rows = noisy(part, 1.5), np.arange(len(part.listings))
    cells = condition_cells(part, rows, answers, weighs=True, detail="full")
    recalls = []
    for t, task in enumerate(part.tasks):
        probabilities = softmax(answers.logits[t], 1.0)
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == part.labels[:, t]
        best = 0.0
        for threshold in confidence:
            accepted = confidence >= threshold
            if right[accepted].mean() >= 0.9:
                best = max(best, (right & accepted).sum() / len(rows))
        figures = cells["attributes"][task.name]
        assert figures["accuracy"][0] == pytest.approx(right.mean(), abs=1e-5)
        assert figures["recall_at_90"][0] == pytest.approx(best, abs=1e-5)
        assert figures["accuracy"][1] <= figures["accuracy"][0] <= figures["accuracy"][2]
        assert figures["image_weight"] == 0.5
        recalls.append(best)
    assert cells["attributes"]["mean"]["recall_at_90"][0] == pytest.approx(np.mean(recalls), abs=1e-5)
    assert len(cells["resamples"]["accuracy"]["mean"]) == 200
    short = condition_cells(part, rows, answers, weighs=False, detail="values")
    assert "resamples" not in short
    assert len(short["attributes"]["colour"]["accuracy"]) == 1
    assert "image_weight" not in short["attributes"]["colour"]
    comparable = condition_cells(part, rows, answers, weighs=False, detail="comparable")
    assert comparable["resamples"]["accuracy"] == {"mean": cells["resamples"]["accuracy"]["mean"]}
    assert np.mean(cells["resamples"]["accuracy"]["mean"]) / 10_000 == pytest.approx(
        cells["attributes"]["mean"]["accuracy"][0], abs=0.05
    )


def test_two_runs_are_resampled_alike(part: TestPart) -> None:
    rows = np.arange(len(part.listings))
    one = condition_cells(part, rows, noisy(part, 1.0), weighs=False, detail="full")
    two = condition_cells(part, rows, noisy(part, 1.0), weighs=False, detail="full")
    assert one["resamples"] == two["resamples"]


def test_bootstrap_keeps_groups_whole() -> None:
    group = np.repeat(np.arange(10), 3)
    counts = scores.bootstrap(lambda rows: np.bincount(rows, minlength=30), group, resamples=20)
    assert counts.shape == (20, 30)
    assert (counts.sum(axis=1) == 30).all()
    assert (counts.reshape(20, 10, 3) == counts.reshape(20, 10, 3)[:, :, :1]).all()


def test_weights_are_compared_where_one_modality_alone_is_right(part: TestPart) -> None:
    n = len(part.listings)
    right, wrong = noisy(part, 0.0), noisy(part, 0.0)
    flipped = tuple(np.roll(logits, 1, axis=1) for logits in wrong.logits)
    attention = np.full((n, 2, 2), 0.25, np.float32)
    answers = {
        clean(Situation.IMAGE_AND_TITLE): Answers(logits=right.logits, attention=attention),
        clean(Situation.IMAGE): right,
        clean(Situation.TITLE): Answers(logits=flipped, attention=attention),
    }
    cells = weight_cells(part, answers)["colour"]
    assert cells["image_alone_right"] == {"listings": n, "image_weight": 0.25}
    assert cells["title_alone_right"] == {"listings": 0, "image_weight": None}


# --- references --------------------------------------------------------------------------------------------


def test_late_fusion_is_the_average_of_probabilities(part: TestPart) -> None:
    one, two = noisy(part, 1.0), noisy(part, 2.0)
    subset = np.arange(len(part.listings))
    image = {clean(Situation.IMAGE_AND_TITLE): one, clean(Situation.IMAGE): one, "image_and_title/uncorrupted/0": one}
    title = {
        clean(Situation.IMAGE_AND_TITLE): two,
        clean(Situation.TITLE): two,
        "image_and_title/uncorrupted/0": two,
        "image_and_title/typos/1": one,
        "image_and_title/no title/1": two,
    }
    fused = late_fusion(part, subset, image, title)
    expected = (softmax(one.logits[0], 1.0) + softmax(two.logits[0], 1.0)) / 2
    assert softmax(fused[clean(Situation.IMAGE_AND_TITLE)].logits[0], 1.0) == pytest.approx(expected, abs=1e-5)
    for key in ("image_and_title/typos/1", "image_and_title/no title/1"):  # both times the image alone is left
        assert softmax(fused[key].logits[0], 1.0) == pytest.approx(softmax(one.logits[0], 1.0), abs=1e-5)


def test_majority_and_bag_of_words_know_what_they_can(part: TestPart, catalogue: Catalogue) -> None:
    train = catalogue.part(Part.TRAIN)
    majority = majority_answers(part, train)[clean(Situation.IMAGE_AND_TITLE)]
    most = max(part.tasks[0].labels, key=lambda label: sum(x.labels["colour"] == label for x in train))
    assert part.tasks[0].labels[int(majority.logits[0][0].argmax())] == most
    title = title_answers(part, train, part.subset(8))
    right = title[clean(Situation.TITLE)].logits[0].argmax(axis=1) == part.labels[:, 0]
    assert right.all()
    assert len(title["image_and_title/no title/1"].attention) == 8


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_study(
    catalogue: Catalogue,
    towers: Path,
    tmp_path: Path,
    train_config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> Study:
    monkeypatch.setattr(runs, "small_training", lambda _listings: train_config)
    monkeypatch.setattr(study, "SUBSET", 6)
    return Study(
        catalogue=catalogue,
        initial=towers,
        runs=tmp_path / "runs",
        results=tmp_path / "results",
        epochs=1,
        device=torch.device("cpu"),
        console=Console(file=io.StringIO(), width=200),
    )


def test_runs_are_trained_measured_and_never_again(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_study.run(["image-alone", "title-alone", "no-attention", "late-fusion", "majority"])
    written = sorted(path.name for path in tiny_study.results.iterdir())
    names = ["image-alone", "late-fusion", "majority", "no-attention", "title-alone"]
    assert written == [f"{name}.json" for name in names]
    cells = read_cells(tiny_study.results / "image-alone.json")
    assert clean(Situation.TITLE) not in cells["conditions"]
    assert "image_and_title/JPEG/5" in cells["conditions"]
    assert cells["budget"]["steps"] == len(tiny_study.catalogue.part(Part.TRAIN)) // 16
    fused = read_cells(tiny_study.results / "late-fusion.json")["conditions"]
    assert {"image_and_title/JPEG/5", "image_and_title/typos/1", clean(Situation.TITLE)} <= fused.keys()
    assert "weights" not in read_cells(tiny_study.results / "no-attention.json")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was touched")

    monkeypatch.setattr(study, "EncodedFineTuning", refuse)
    monkeypatch.setattr(Study, "_write", refuse)
    # On another machine the figures alone are there.
    elsewhere = dataclasses.replace(tiny_study, runs=tiny_study.runs / "nowhere")
    elsewhere.run(names)


def test_answers_that_are_there_are_not_computed_again(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_study.run(["no-modality-attention"])
    path = tiny_study.results / "no-modality-attention.json"
    before = read_cells(path)
    path.unlink()
    monkeypatch.setattr(study, "predict_clean", None)
    tiny_study.run(["no-modality-attention"])
    assert read_cells(path)["conditions"] == before["conditions"]


def test_recipes_are_tried_on_the_validation_part(tiny_study: Study) -> None:
    tiny_study.measured = Part.VALIDATION
    tiny_study.complete(Run(name="no-dropout", title="no dropout", training={"modality_dropout": "0"}, corrupted=True))
    cells = read_cells(tiny_study.results / "no-dropout.json")
    validation = {listing.id for listing in tiny_study.catalogue.part(Part.VALIDATION)}
    assert {listing.id for listing in tiny_study.part.listings} <= validation
    assert cells["budget"]["test_listings"] == len(tiny_study.part.listings)
    assert cells["settings"]["modality_dropout"] == "0"


def test_a_run_is_repeated_with_another_seed(tiny_study: Study) -> None:
    tiny_study.run(["clip-finetuned", "clip-finetuned-seed-1"])
    first, second = (
        read_cells(tiny_study.results / f"{name}.json") for name in ("clip-finetuned", "clip-finetuned-seed-1")
    )
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["budget"] == second["budget"]
    assert first["conditions"].keys() == second["conditions"].keys()
    zero, one = (
        load_answers(tiny_study.answers_of(name))[clean(Situation.IMAGE_AND_TITLE)].logits[0]
        for name in ("clip-finetuned", "clip-finetuned-seed-1")
    )
    assert not np.allclose(zero, one)
    assert Results(tiny_study.results).by_seed("clip-finetuned", clean(Situation.TITLE), "accuracy") == [
        each["conditions"][clean(Situation.TITLE)]["attributes"]["mean"]["accuracy"][0] for each in (first, second)
    ]


def test_results_of_another_budget_are_not_mixed_in(tiny_study: Study) -> None:
    tiny_study.run(["majority"])
    longer = dataclasses.replace(tiny_study, epochs=2)
    with pytest.raises(ConfigError, match=r"another budget \(epochs, steps\)"):
        longer.run(["majority"])


def test_unknown_runs_are_refused_and_fusion_waits_for_its_parts(tiny_study: Study) -> None:
    with pytest.raises(ConfigError, match="there is no run 'cma-clop'; known are cma-clip, clip-finetuned"):
        tiny_study.run(["cma-clop"])
    tiny_study.run(["late-fusion"])
    assert not (tiny_study.results / "late-fusion.json").exists()
    assert len(all_names()) == len(RUNS) + 3
    assert "clip-finetuned-seed-4" in repeat_names()
    assert not set(all_names()) & set(repeat_names())


def test_cells_are_plain_json(tiny_study: Study) -> None:
    tiny_study.run(["majority"])
    text = (tiny_study.results / "majority.json").read_text()
    assert json.loads(text)["conditions"][clean(Situation.IMAGE_AND_TITLE)]["attributes"]["mean"]["accuracy"]
    assert max(map(len, text.splitlines())) > 100  # one condition a line


# --- the report --------------------------------------------------------------------------------------------


CORRUPTED = ("label words removed/1", "mismatched title/1", "JPEG/5")


def write_result(
    part: TestPart, folder: Path, name: str, noise: float, *, corrupted: float = 0.0, epochs: int = 4
) -> None:
    """A finished run's figures, as noisy as asked for; image weights fall from 0.5 to 0.25 where it is corrupted."""
    run = next((run for run in RUNS if run.name == name), None)
    weighs = run is not None and run.weighs
    answers = {clean(situation): noisy(part, noise) for situation in Situation}
    answers["image_and_title/uncorrupted/0"] = noisy(part, noise)
    for key in CORRUPTED:
        each = noisy(part, noise + corrupted)
        answers[f"image_and_title/{key}"] = dataclasses.replace(each, attention=each.attention / np.float32(2))
    everything = np.arange(len(part.listings))
    cells: dict[str, Any] = {
        "run": name,
        "title": run.title if run else name,
        "training_seconds": 90,
        "date": "2026-01-01",
        "machine": "a machine",
        "budget": {
            "epochs": epochs,
            "steps": 10,
            "batch_size": 16,
            "train_listings": 180,
            "towers": "0123456789ab",
            "test_listings": len(everything),
            "test": "abc",
            "corrupted_listings": len(everything),
            "corruption_seed": 0,
        },
    }
    if weighs:
        cells["weights"] = weight_cells(part, answers)
    cells["conditions"] = all_cells(part, everything, answers, study.STRONGEST, weighs=weighs)
    write_cells(folder / f"{name}.json", cells)


def test_the_report_says_who_is_ahead_and_what_is_missing(part: TestPart, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    write_result(part, folder, "cma-clip", 0.5)
    write_result(part, folder, "clip-finetuned", 3.0, corrupted=5.0)
    write_result(part, folder, "depth-2", 0.5)
    results = Results(folder)
    assert "clip-finetuned-same-recipe" in results.missing
    assert "cma-clip" not in results.missing
    written = write_report(results, tmp_path / "docs" / "results.md")
    assert {path.name for path in written} == {"results.md", "curves_accuracy.png", "curves_recall.png", "weights.png"}
    page = written[0].read_text()
    for plot in written[1:]:
        assert f"](study/{plot.name})" in page
    difference = results.difference("cma-clip", "clip-finetuned", clean(Situation.IMAGE_AND_TITLE), "accuracy")
    assert difference is not None
    assert difference.low > 0
    assert f"mean accuracy: CMA-CLIP against fine-tuned CLIP, {points(difference)}: ahead" in page
    assert "two fusion blocks: accuracy +0.0 points [+0.0, +0.0]" in page
    assert "no significant difference" in page
    assert "`clip-finetuned-same-recipe`" in page.split("**Not run**")[1].splitlines()[0]
    assert "met: with label words removed" in page
    assert "met: with a mismatched title" in page
    assert "away from the corrupted image by 1 point or more in 1 of 1" in page
    assert "away from the corrupted title by 1 point or more in 0 of 2" in page  # the image weight fell there, too


def test_the_report_says_so_where_cma_clip_loses(part: TestPart, tmp_path: Path) -> None:
    write_result(part, tmp_path, "cma-clip", 3.0, corrupted=5.0)
    write_result(part, tmp_path, "clip-finetuned", 0.5)
    page = render(Results(tmp_path), ())
    assert "**behind**" in page
    assert "**missed**: with label words removed" in page
    assert (
        "**missed**: at least as accurate as the fine-tuned CLIP on clean listings for every attribute; below" in page
    )


def test_differences_are_those_of_the_resamples(part: TestPart, tmp_path: Path) -> None:
    write_result(part, tmp_path, "cma-clip", 1.0)
    write_result(part, tmp_path, "clip-finetuned", 2.0)
    results, key = Results(tmp_path), clean(Situation.IMAGE_AND_TITLE)
    difference = results.difference("cma-clip", "clip-finetuned", key, "accuracy", "colour")
    values = [results.value(name, key, "accuracy", "colour") for name in ("cma-clip", "clip-finetuned")]
    assert difference is not None
    assert values[0] is not None
    assert values[1] is not None
    assert difference.value == pytest.approx(values[0] - values[1], abs=1e-4)
    assert difference.low <= difference.value <= difference.high
    assert results.difference("cma-clip", "title-alone", key, "accuracy") is None
    assert results.difference("cma-clip", "clip-finetuned", key, "macro_f1") is None  # whose resamples are not kept


def test_what_was_trained_once_is_assumed_to_vary_between_seeds(part: TestPart, tmp_path: Path) -> None:
    """As much as those that were trained several times, unless its training is deterministic."""
    for name, noise in {"depth-2": 1.0, "majority": 1.0, "cma-clip": 1.0}.items():
        write_result(part, tmp_path, name, noise)
    key = clean(Situation.IMAGE_AND_TITLE)
    once = Results(tmp_path)
    assert once.seed_deviation(key, "accuracy") == 0
    for name, noise in {"cma-clip-seed-1": 3.0, "cma-clip-seed-2": 0.2}.items():
        write_result(part, tmp_path, name, noise)
    often = Results(tmp_path)
    figures = often.by_seed("cma-clip", key, "accuracy")
    assert often.seed_deviation(key, "accuracy") == pytest.approx(np.std(figures, ddof=1))

    def width(results: Results, other: str) -> float:
        difference = results.difference("depth-2", other, key, "accuracy")
        assert difference is not None
        return difference.high - difference.low

    # With the variation of both, of one, of neither: the same network, so nothing else varies.
    widths = [width(often, "cma-clip"), width(often, "majority"), width(once, "cma-clip")]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(math.sqrt(2) * widths[1], rel=0.2)
    assert widths[2] == 0


def test_two_with_several_seeds_are_compared_by_their_means(part: TestPart, tmp_path: Path) -> None:
    noises = {
        "cma-clip": 3.0,
        "cma-clip-seed-1": 0.2,
        "cma-clip-seed-2": 0.2,
        "clip-finetuned": 0.2,
        "clip-finetuned-seed-1": 3.0,
        "depth-2": 0.2,
    }
    for name, noise in noises.items():
        write_result(part, tmp_path, name, noise)
    results, key = Results(tmp_path), clean(Situation.IMAGE_AND_TITLE)
    assert (results.seeds("cma-clip", "clip-finetuned"), results.seeds("cma-clip", "depth-2")) == (2, 1)
    values = {
        name: read_cells(tmp_path / f"{name}.json")["conditions"][key]["attributes"]["mean"]["accuracy"][0]
        for name in noises
    }
    assert results.by_seed("cma-clip", key, "accuracy") == [values["cma-clip"], *2 * [values["cma-clip-seed-1"]]]
    difference = results.difference("cma-clip", "clip-finetuned", key, "accuracy")
    alone = results.difference("cma-clip", "depth-2", key, "accuracy")
    assert difference is not None
    assert alone is not None
    # The same two networks on either side: even in the mean, and uncertain by which seed is drawn.
    assert difference.value == pytest.approx(0)
    assert difference.low < -0.1 < 0.1 < difference.high
    assert alone.value == pytest.approx(values["cma-clip"] - values["depth-2"])
    page = render(results, ())
    assert "CMA-CLIP against fine-tuned CLIP (means of 2 seeds), +0.0 points" in page
    lowest, highest = (f"{100 * values[name]:.2f}" for name in ("cma-clip", "clip-finetuned"))
    assert f"({lowest} to {highest})" in page.split("## Seeds")[1].split("## ")[0]
    assert "`cma-clip-seed-2`" in page


def test_budgets_are_not_mixed(part: TestPart, tmp_path: Path) -> None:
    write_result(part, tmp_path, "cma-clip", 1.0)
    write_result(part, tmp_path, "clip-finetuned", 2.0, epochs=5)
    with pytest.raises(ConfigError, match="clip-finetuned and cma-clip have different budgets"):
        Results(tmp_path)


def test_without_results_everything_is_missing(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.missing == [*all_names(), *repeat_names(), "shipped.json", "certificates.json"]
    page = render(results, [])
    assert "No run is finished" in page
    assert "`cma-clip`" in page


def test_the_certificates_are_shown_and_held_against_the_aims(tmp_path: Path) -> None:
    outcome = {"certified": 1.0, "broken": 0.02, "coverage": 0.9, "lost": 0.01}
    others = {"naive": outcome | {"broken": 0.4, "lost": 0.0}, "unadjusted": outcome | {"broken": 0.07, "lost": 0.008}}
    trial = {"situation": "image", "attribute": "colour", "target": 0.95, "listings": 100}
    label = {"situation": "image", "attribute": "colour", "target": 0.95, "labels": 3, "kept": 2}
    label |= {"worst_broken": 0.07, "broken": 0.03, "attribute_broken": 0.2, "coverage": 0.8}

    ways = {"single": {"broken": 0.3, "lost": 0.02}, "together": {"broken": 0.04, "lost": 0.05}}
    joint = {"situation": "image", "target": 0.95, "attributes": 7} | ways

    def page(certified: dict[str, float], least: float = 0.008) -> str:
        others["unadjusted"]["lost"] = least
        document: dict[str, Any] = {
            "splits": 500,
            "seed": 0,
            "trials": [trial | {"certified": certified} | others],
        }
        document |= {"joint_trials": [joint], "label_trials": [label]}
        (tmp_path / "certificates.json").write_text(json.dumps(document))
        return render(Results(tmp_path), ())

    good, bad = page(outcome), page(outcome | {"broken": 0.06, "lost": 0.034}, least=0.031)
    assert "- met: certified thresholds keep their promise in 1 of 1 cases" in good
    assert "- met: at 95 %, a certificate costs at most 3 points of coverage" in good
    assert "| image | colour | 95 | 100.0 | 2.0 | 90.0 | 1.0 | 40.0 | 0.0 | 7.0 | 0.8 |" in good
    assert "promise kept for 2 of 3 labels" in good
    assert "one by one in 30.0 % of splits (worst situation), for 2.0 points of coverage" in good
    assert "together in 4.0 % of splits (worst situation), for 5.0 points of coverage" in good
    assert "- **missed**: certified thresholds keep their promise in 0 of 1 cases" in bad
    assert "- **missed**: at 95 %" in bad
    assert "3.1 even for a threshold that is tested alone" in bad
    assert "tested alone" not in good


def test_the_shipped_checkpoint_is_measured_and_shown(
    catalogue: Catalogue,
    checkpoint_folder: Path,
    tasks: tuple[Task, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shipped, "SUBSET", 4)
    with pytest.raises(ConfigError, match=r"not calibrated at 0\.95"):
        measure_shipped(checkpoint_folder, catalogue, "cpu")
    checkpoint = load_checkpoint(checkpoint_folder)
    certified = Certificate(threshold=0.0, coverage=1.0, support=100, bound=0.96)
    attribute = AttributeCalibration(temperature=2.0, thresholds={0.95: certified})
    calibration = Calibration(
        version=checkpoint.version,
        method="made up",
        confidence_level=0.95,
        target_precisions=(0.95,),
        situations={situation: {task.name: attribute for task in tasks} for situation in Situation},
    )
    write_part(checkpoint, CALIBRATION, calibration.to_json())
    cells = measure_shipped(checkpoint_folder, catalogue, "cpu")
    colour = cells["conditions"][clean(Situation.TITLE)]["attributes"]["colour"]
    assert colour["coverage"] == 1.0
    assert colour["precision"] == colour["accuracy"]
    assert colour["error_before"] != colour["error_after"]
    assert {"image/JPEG/5", "title/typos/1", "image_and_title/blur/0.1"} <= cells["conditions"].keys()
    assert not {"title/JPEG/5", "title/no title/1", "image_and_title/no title/1"} & cells["conditions"].keys()
    write_cells(tmp_path / "shipped.json", cells)
    written = write_report(Results(tmp_path), tmp_path / "docs" / "results.md")
    page = written[0].read_text()
    assert [path.name for path in written[1:]] == ["reliability.png", "reliability_corrupted.png"]
    assert f"version `{checkpoint.version}`" in page
    assert "Precision of the accepted labels is below 95 % in" in page


def test_the_page_in_the_repository_is_up_to_date() -> None:
    plots = [path.name for path in (PAGE.parent / "study").glob("*.png")]
    written = PAGE.read_text(encoding="utf-8").partition(KEPT)[0]
    assert written == render(Results(RESULTS), plots), "run: python -m research.study report"
