"""The comparison on titles that don't tell: words, catalogues, networks, the lane, the diagnosis and the report."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.checkpoint.weights import save_checkpoint
from model.config import FusionConfig, ModelConfig, PreprocessConfig
from model.errors import ConfigError
from model.network.cma_clip import CMAClip
from model.network.towers import TokenSequence
from model.tasks import Task
from model.training.config import OptimiserConfig
from model.training.initialise import initial_network
from model.training.optimiser import parameter_groups
from research.study.cells import MEASURES, read_cells, write_cells
from research.study.networks import PooledClip
from research.untold_titles.__main__ import PAGE, RESULTS
from research.untold_titles.catalogues import (
    COLOURS,
    IMAGE_COLOUR,
    MATCHES,
    TITLE_COLOUR,
    lit,
    with_detail,
    write_matching,
    write_untold,
)
from research.untold_titles.diagnosis import (
    LAYERS,
    GradientFlow,
    aggregates,
    layer_of,
    weights_worth,
    write_diagnosis,
)
from research.untold_titles.networks import (
    Contender,
    GivenStages,
    Patches,
    StagedTower,
    builder,
    staged,
    with_known_tokens,
)
from research.untold_titles.plan import (
    ABLATIONS,
    COMPARED,
    PROTOCOL,
    RECIPES,
    Chosen,
    by_seed,
    trials,
)
from research.untold_titles.readings import linear_probe, read_titles, tasks_of
from research.untold_titles.report import COMMAND, section, write_section
from research.untold_titles.study import Lane
from research.untold_titles.words import NOTHING_LEFT, Scope, Strength, TellingWords, mutual_information

OWN, ALL = Strength(scope=Scope.OWN, bound=2.0), Strength(scope=Scope.ALL, bound=2.0)
"""Names alone: nothing predicts more than all."""


def listing(number: int, title: str | None, part: Part = Part.TRAIN, **labels: str) -> Listing:
    return Listing(id=f"sku-{number}", title=title, image=f"{number}.png", labels=labels, group=str(number), part=part)


@pytest.fixture
def shop() -> list[Listing]:
    """Crimson is red's synonym, Acme sells everything, Nox only black things; Size is in every title."""
    rows = [
        *[("Acme Crimson Tee Size", "Red", "Shirts")] * 20,
        *[("Acme Blue Tee Size", "Blue", "Shirts")] * 20,
        *[("Nox Strap Size", "Black", "Watches")] * 15,
        *[("Acme Strap Size", "Blue", "Watches")] * 5,
    ]
    return [listing(n, title, colour=colour, kind=kind) for n, (title, colour, kind) in enumerate(rows)]


# --- words -------------------------------------------------------------------------------------------------


def test_names_and_synonyms_are_taken_out_of_titles(shop: list[Listing]) -> None:
    learned = TellingWords(shop)
    names = learned.untold(ALL)
    assert names(shop[0]) == "Acme Crimson Tee Size"
    assert names(shop[20]) == "Acme Tee Size"
    synonyms = learned.untold(dataclasses.replace(ALL, bound=0.9))
    assert synonyms(shop[0]) == "Acme Size"
    assert synonyms(shop[40]) == "Size"  # Nox and Strap say Watches


def test_the_mild_scope_takes_words_of_the_own_labels_alone(shop: list[Listing]) -> None:
    learned = TellingWords(shop)
    wrong = dataclasses.replace(shop[20], labels={"colour": "Red", "kind": "Shirts"})
    assert learned.untold(OWN)(wrong) == "Acme Blue Tee Size"
    assert learned.untold(ALL)(wrong) == "Acme Tee Size"
    unlabelled = dataclasses.replace(shop[20], labels={})
    assert learned.untold(OWN)(unlabelled) == shop[20].title


def test_words_without_information_and_unknown_words_stay(shop: list[Listing]) -> None:
    untold = TellingWords(shop).untold(Strength(scope=Scope.INFORMATION, bound=1e-6))
    assert untold(listing(99, "Acme Zorb Size", colour="Red")) == "Zorb Size"
    assert untold(listing(99, "Nox Blue", colour="Red")) == NOTHING_LEFT
    assert untold(listing(99, "Nox 17", colour="Red")) == NOTHING_LEFT  # no letter is left
    assert untold(listing(99, None)) is None


def test_words_are_learned_from_what_is_given_alone(shop: list[Listing]) -> None:
    half = TellingWords(shop[:40])
    assert "nox" not in half.words
    assert ("kind", "Watches") not in half.labels
    assert half.untold(dataclasses.replace(ALL, bound=0.0))(shop[40]) == "Nox Strap"


def test_rare_words_predict_little(shop: list[Listing]) -> None:
    once = TellingWords([*shop, listing(99, "Quux", colour="Black", kind="Watches")])
    column = once.labels.index(("colour", "Black"))
    quux, nox = (once.prediction[once.words.index(word), column] for word in ("quux", "nox"))
    assert quux == pytest.approx(0.5)
    assert nox > 0.9


def test_information_is_in_bits() -> None:
    def bits(together: float, word: float, label: float) -> float:
        return float(mutual_information(*(np.array([[x]], dtype=float) for x in (together, word, label, 100)))[0, 0])

    assert bits(50, 50, 50) == pytest.approx(1.0)
    assert bits(25, 50, 50) == pytest.approx(0.0)
    assert bits(0, 50, 50) == pytest.approx(1.0)
    assert 0 < bits(30, 50, 50) < 0.1


# --- catalogues --------------------------------------------------------------------------------------------


def test_an_untold_catalogue_has_the_same_listings_parts_and_labels(catalogue: Catalogue, tmp_path: Path) -> None:
    toml = write_untold(catalogue, tmp_path / "a", ALL)
    untold = Catalogue.open(toml)
    assert [(x.id, x.part, x.labels, x.image) for x in untold.listings] == [
        (x.id, x.part, x.labels, x.image) for x in catalogue.listings
    ]
    assert {len((x.title or "").split()) for x in untold.listings} == {3}  # Plain number N
    assert untold.image_bytes(untold.listings[0].image or "") == catalogue.image_bytes(untold.listings[0].image or "")
    again = write_untold(catalogue, tmp_path / "b", ALL)
    assert (toml.parent / "table.csv").read_bytes() == (again.parent / "table.csv").read_bytes()


def test_images_can_lose_detail(catalogue: Catalogue, tmp_path: Path) -> None:
    untold = Catalogue.open(write_untold(catalogue, tmp_path / "a", OWN, detail=3))
    assert len(untold.listings) == len(catalogue.listings)
    image = Image.open(io.BytesIO(untold.image_bytes(untold.listings[0].image or "")))
    assert image.size == (18, 24)
    write_untold(catalogue, tmp_path / "b", OWN, detail=3)
    assert (tmp_path / "a" / "images.zip").read_bytes() == (tmp_path / "b" / "images.zip").read_bytes()
    fine = Image.fromarray(np.indices((24, 18)).sum(axis=0).astype(np.uint8) % 2 * 255)
    assert np.ptp(np.asarray(with_detail(fine, 6))) == 0
    assert with_detail(fine, 24) is fine


def test_a_folder_with_something_else_is_not_touched(catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="holds something else"):
        write_untold(catalogue, tmp_path, OWN)


def test_the_made_up_attribute_needs_both_modalities(catalogue: Catalogue, tmp_path: Path) -> None:
    toml = write_matching(catalogue, tmp_path, ALL, train=100, attributes=(MATCHES, IMAGE_COLOUR, TITLE_COLOUR))
    made = Catalogue.open(toml)
    assert len(made.part(Part.TRAIN)) == 100
    assert len(made.part(Part.TEST)) == len(catalogue.part(Part.TEST))
    for each in made.listings:
        words = [word for word in (each.title or "").split() if word in COLOURS]
        assert words == [each.labels[TITLE_COLOUR]]
        assert (each.labels[MATCHES] == "yes") == (each.labels[IMAGE_COLOUR] == words[0])
        pixels = np.asarray(Image.open(io.BytesIO(made.image_bytes(each.image or ""))), dtype=float)
        brightest = pixels.reshape(-1, 3).max(axis=0)
        distances = {name: np.abs(brightest - colour).sum() for name, colour in COLOURS.items()}
        assert min(distances, key=distances.__getitem__) == each.labels[IMAGE_COLOUR]
    share = np.mean([each.labels[MATCHES] == "yes" for each in made.listings])
    assert 0.35 < share < 0.65


def test_light_colours_every_pixel() -> None:
    lit_red = np.asarray(lit(Image.new("RGB", (2, 2), "black"), COLOURS["red"]))
    assert (lit_red[..., 0] > 2 * lit_red[..., 1]).all()


# --- networks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def staged_config() -> ModelConfig:
    backbone = {
        "embed_dim": 16,
        "vision_cfg": {"timm_model_name": "cma_resnet_small", "timm_proj": "none", "image_size": [48, 32]},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    return ModelConfig(
        backbone_name="tiny-staged",
        backbone=backbone,
        preprocess=PreprocessConfig(image_size=(48, 32), context_length=16),
        fusion=FusionConfig(width=32, depth=1, heads=2, dropout=0.0),
    )


def build(contender: Contender, patches: Patches, config: ModelConfig, tasks: tuple[Task, ...]) -> CMAClip | PooledClip:
    torch.manual_seed(0)
    return builder(contender, patches)(config, tasks, None).eval()


def given(network: CMAClip | PooledClip, n: int = 3) -> tuple[TokenSequence, TokenSequence]:
    torch.manual_seed(3)
    tokens = torch.tensor([[49406, 320 + row, 49407, 0] for row in range(n)])
    return network.backbone.encode_image(torch.randn(n, 3, 48, 32)), network.backbone.encode_text(tokens)


@torch.no_grad()
def test_a_staged_tower_has_the_patches_of_the_plain_one(staged_config: ModelConfig, tasks: tuple[Task, ...]) -> None:
    torch.manual_seed(0)
    backbone = initial_network(staged_config, tasks, None).backbone.eval()
    images = torch.randn(2, 3, 48, 32)
    plain = backbone.encode_image(images).embeddings
    both = staged(backbone, (48, 32))
    flat, layout = both.encode_image(images), both.image.layout
    assert flat.embeddings.shape == (2, layout.size)
    torch.testing.assert_close(layout.last_of(flat.embeddings), plain[:, 1:])
    assert layout.last == (6, 256)
    assert layout.before == (24, 128)
    cached = GivenStages(both.image, both.text).encode_image(flat.embeddings)
    assert torch.equal(cached.embeddings, flat.embeddings)
    assert backbone.image.state_dict().keys() == both.image.state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("patches", Patches)
@pytest.mark.parametrize("contender", Contender)
def test_an_absent_modality_is_exact_in_every_contender(
    contender: Contender, patches: Patches, staged_config: ModelConfig, tasks: tuple[Task, ...]
) -> None:
    network = build(contender, patches, staged_config, tasks)
    image, text = given(network)
    rows = torch.tensor([True, False, True])
    mixed, alone, both = network(image, text.keep(rows)), network(image, None), network(image, text)
    for t in range(2):
        torch.testing.assert_close(mixed.logits[t][1], alone.logits[t][1])
        torch.testing.assert_close(mixed.logits[t][rows], both.logits[t][rows])
        assert not torch.equal(alone.logits[t], both.logits[t])


@pytest.mark.parametrize("patches", Patches)
@pytest.mark.parametrize("contender", Contender)
def test_every_parameter_of_every_contender_learns(
    contender: Contender, patches: Patches, staged_config: ModelConfig, tasks: tuple[Task, ...]
) -> None:
    network = build(contender, patches, staged_config, tasks).train()
    image, text = given(network)
    outputs = [network(image, text), network(image, None), network(None, text)]
    torch.autograd.backward(sum(logits.square().sum() for each in outputs for logits in each.logits))
    ignored = ("backbone.image.", *(("absent",) if contender is Contender.EMBRACED else ()))  # the tower is locked
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in without if not name.startswith(ignored)] == []


@torch.no_grad()
@pytest.mark.parametrize("contender", Contender)
def test_only_attention_sees_where_something_is(
    contender: Contender, staged_config: ModelConfig, tasks: tuple[Task, ...]
) -> None:
    """Patches in another order, of the same mean: the same for all but CMA-CLIP on the patches it attends to."""
    network = build(contender, Patches.BEFORE, staged_config, tasks)
    image, text = given(network)
    layout = cast(StagedTower, network.backbone.image).layout
    before = layout.before_of(image.embeddings)
    changed = before.clone()
    changed[:, 0], changed[:, 1] = before[:, 0] + before[:, 1], 0.0
    kept = layout.last_of(image.embeddings).flatten(1)
    other = TokenSequence(torch.cat([kept, changed.flatten(1)], dim=1), image.mask, image.pooled)
    same = torch.allclose(network(image, text).logits[0], network(other, text).logits[0], atol=1e-5)
    assert same == (contender is not Contender.CMA_CLIP)


@torch.no_grad()
def test_embracing_draws_each_place_from_one_modality(staged_config: ModelConfig, tasks: tuple[Task, ...]) -> None:
    network = build(Contender.EMBRACED, Patches.LAST, staged_config, tasks)
    assert isinstance(network, PooledClip)
    pooled = torch.rand(4, 2, 32) + torch.tensor([[[0.0], [10.0]]])
    weights = torch.tensor([[0.5, 0.5]] * 3 + [[1.0, 0.0]])
    torch.testing.assert_close(network.join(pooled, weights)[0], pooled[0].mean(dim=0))
    drawn = network.train().join(pooled, weights)
    from_text = drawn > 5
    assert torch.equal(torch.where(from_text, pooled[:, 1], pooled[:, 0]), drawn)
    assert from_text[:3].float().mean() == pytest.approx(0.5, abs=0.2)
    assert not from_text[3].any()


def test_tokens_that_no_title_has_cost_nothing_and_change_nothing(
    staged_config: ModelConfig, tasks: tuple[Task, ...]
) -> None:
    """One step of AdamW with the known tokens' embeddings alone is one with those of the whole vocabulary."""
    titles = torch.tensor([[49406, 320, 530, 49407], [49406, 530, 49407, 0]])
    found = []
    for known in (None, [320, 530, 49406, 49407]):
        torch.manual_seed(0)
        plain = builder(Contender.CONCATENATED, Patches.LAST)
        network = (with_known_tokens(plain, known) if known else plain)(staged_config, tasks, None)
        optimiser = torch.optim.AdamW(
            parameter_groups(network, OptimiserConfig(epochs=1, batch_size=2, learning_rate=0.1))
        )
        for group in optimiser.param_groups:
            group["lr"] = group["peak"]
        for _ in range(2):
            optimiser.zero_grad()
            logits = network(None, network.backbone.encode_text(titles)).logits
            torch.autograd.backward(sum(each.square().sum() for each in logits))
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        found.append(network.eval()(None, network.backbone.encode_text(titles)).logits[0])
    torch.testing.assert_close(found[0], found[1])
    assert network.backbone.text.text.token_embedding.weight.shape == (5, 32)
    unknown = network.backbone.encode_text(torch.tensor([[49406, 999, 49407]]))
    first = network.backbone.encode_text(torch.tensor([[49406, 0, 49407]]))
    assert torch.equal(unknown.embeddings, first.embeddings)
    assert unknown.pooled.tolist() == [2]


# --- the plan ----------------------------------------------------------------------------------------------


def test_both_that_are_compared_try_the_same_settings_for_the_same_number_of_steps() -> None:
    tried = {contender: [run for run in trials() if run.contender is contender] for contender in COMPARED}
    configs = [[run.config(3) for run in runs] for runs in tried.values()]
    assert configs[0] == configs[1]
    assert len(configs[0]) == len(RECIPES) == len({str(config) for config in configs[0]})
    assert {config.optimiser.epochs for config in configs[0]} == {3}


def test_the_plan_is_that_of_the_protocol() -> None:
    first, second = list(RECIPES)[:2]
    chosen = Chosen(recipes={Contender.CMA_CLIP: first, Contender.CONCATENATED: second})
    plan = chosen.plan()
    primary = [run.name for run in chosen.primary]
    assert len(primary) == 4
    assert sum(1 + len(plan.repeats[name]) for name in primary) == 20
    assert {len(plan.repeats[run.name]) for run in ABLATIONS} == {2}
    runs = {run.name: run for run in plan.trained}
    assert len(runs) == len(plan.trained)
    for name in primary:
        assert [runs[each.name].config(1).optimiser.seed for each in plan.repeats[name]] == [1, 2, 3, 4]
    cma, clip = (runs[f"{contender}-before"].config(1) for contender in COMPARED)
    assert cma == next(run for run in trials() if run.name == f"cma-clip-{first}").config(1)
    assert clip == next(run for run in trials() if run.name == f"concatenated-{second}").config(1)
    assert runs["no-attention-before"].config(1) == cma
    assert runs["embraced-last"].config(1) == clip
    alone = runs["image-alone"].config(1).weights
    assert (alone.image_and_title, alone.image, alone.title) == (0, 1, 0)


def test_seeds_come_in_turn() -> None:
    chosen = Chosen(recipes=dict.fromkeys(COMPARED, next(iter(RECIPES))))
    names = [run.name for run in by_seed(chosen.plan(), ["cma-clip-last", "concatenated-last", "image-alone"])]
    assert names[:5] == [
        "cma-clip-last",
        "concatenated-last",
        "image-alone",
        "cma-clip-last-seed-1",
        "concatenated-last-seed-1",
    ]


# --- the lane ----------------------------------------------------------------------------------------------


@pytest.fixture
def lane(
    catalogue_toml: Path,
    staged_config: ModelConfig,
    tasks: tuple[Task, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Lane:
    for part in ("training", "matching"):
        monkeypatch.setitem(PROTOCOL[part], "epochs", 2)
    monkeypatch.setitem(PROTOCOL["training"], "variants", 1)
    monkeypatch.setattr("research.study.study.SUBSET", 6)
    torch.manual_seed(0)
    network = initial_network(staged_config, tasks, None)
    save_checkpoint(tmp_path / "checkpoint", network, name="tiny", config=staged_config, tasks=tasks, training={})
    return Lane(
        table=catalogue_toml,
        checkpoint=tmp_path / "checkpoint",
        runs=tmp_path / "runs",
        results=tmp_path / "results",
        device=torch.device("cpu"),
        console=Console(file=io.StringIO()),
    )


def test_the_lane_tries_on_validation_and_measures_the_best_on_test(lane: Lane) -> None:
    step = next(lane.steps())
    assert step.name == "matching/trials/cma-clip-last-0.001"
    step.do()
    assert step.done
    tried = read_cells(step.result)
    made = Catalogue.open(lane.runs / "catalogues" / "matching" / "catalogue.toml")
    assert tried["budget"]["test_listings"] == len(made.part(Part.VALIDATION))
    second = next(each for each in lane.steps() if not each.done)
    second.do()
    best = next(each for each in lane.steps() if not each.done)
    assert best.name in ("matching/cma-clip-last-0.001", "matching/cma-clip-last-0.002")
    trained = (lane.runs / "runs" / best.name / "state.pt").stat().st_mtime_ns
    best.do()
    assert read_cells(best.result)["budget"]["test_listings"] == len(made.part(Part.TEST))
    assert (lane.runs / "runs" / best.name / "state.pt").stat().st_mtime_ns == trained  # measured, not trained again
    study, run = lane.named(best.name)
    worth = study.weights_worth(run)[MATCHES]
    accuracy = read_cells(best.result)["conditions"]["image_and_title/clean/0"]["attributes"]["mean"]["accuracy"][0]
    assert worth["accuracy"] == pytest.approx(accuracy)
    assert f"next: {next(each.name for each in lane.steps() if not each.done)}" in list(lane.status())


def fake_trials(lane: Lane) -> None:
    """Trials of which the second recipe is the best for one contender, and the third for the other."""
    for run in trials():
        place = list(RECIPES).index(run.name.removeprefix(f"{run.contender}-"))
        best = 1 if run.contender is Contender.CMA_CLIP else 2
        cell = {"recall_at_90": [1.0 - abs(place - best) / 10], "accuracy": [0.5]}
        conditions = {"image_and_title/clean/0": {"attributes": {"mean": cell}}}
        write_cells(lane.trials / f"{run.name}.json", {"budget": {}, "conditions": conditions})


def test_the_rest_of_the_lane_follows_once_tuning_has_ended(lane: Lane) -> None:
    assert not any(step.name.startswith("mild/") for step in lane.steps())
    fake_trials(lane)
    recipes = list(RECIPES)
    chosen = Chosen.on_validation(lane.trials)
    assert chosen is not None
    assert chosen.recipes == {Contender.CMA_CLIP: recipes[1], Contender.CONCATENATED: recipes[2]}
    names = [step.name for step in lane.steps()]
    assert len(set(names)) == len(names)
    after = names[names.index("middle/cma-clip-last") :]
    assert after[4] == "middle/cma-clip-last-seed-1"
    assert {"middle/late-fusion", "mild/cma-clip-before", "strong/tf-idf", "middle-10-rows/image-alone"} <= set(after)
    (lane.trials / f"{trials()[0].name}.json").unlink()
    assert Chosen.on_validation(lane.trials) is None


def test_a_primary_run_is_measured_under_noise(lane: Lane) -> None:
    fake_trials(lane)
    step = next(step for step in lane.steps() if step.name == "middle/concatenated-before")
    step.do()
    cells = read_cells(step.result)
    assert {"image_and_title/noise/100", "image_and_title/words added/2"} <= cells["conditions"].keys()
    assert "image_and_title/blur/0.1" not in cells["conditions"]
    kept = cells["conditions"]["image_and_title/clean/0"]["resamples"]
    assert set(kept["recall_at_90"]) == {"colour", "shape", "mean"}
    assert cells["settings"]["patches"] == "before"
    untold = Catalogue.open(lane.runs / "catalogues" / "middle" / "catalogue.toml")
    assert not any("Blue" in (each.title or "") for each in untold.listings)


def test_images_are_encoded_once_for_all_seeds(lane: Lane) -> None:
    fake_trials(lane)
    steps = {step.name: step for step in lane.steps()}
    steps["middle/concatenated-last"].do()
    files = sorted(path.name for path in (lane.runs / "encoded").rglob("*.npy"))
    assert len(files) == 2  # train and validation
    steps["middle/cma-clip-before-seed-1"].do()
    assert sorted(path.name for path in (lane.runs / "encoded").rglob("*.npy")) == files


# --- the diagnosis -----------------------------------------------------------------------------------------


def test_gradients_are_watched_by_layer_and_interval(lane: Lane) -> None:
    fake_trials(lane)
    study, run = lane.named("middle/cma-clip-last")
    tuning = study.tuning(run, interval=1)
    tuning.run(lane.runs / "watched", device="cpu")
    assert tuning.flow is not None
    table = tuning.flow.table()
    assert set(table) == set(LAYERS)
    assert {len(values) for values in table.values()} == {2}  # an interval for each of two steps
    assert all(value > 0 for values in table.values() for value in values)


def test_the_flow_is_the_norm_against_the_weights() -> None:
    network = nn.ModuleDict({"heads": nn.Linear(2, 1, bias=False)})
    flow = GradientFlow(network, interval=2)
    linear = cast(nn.Linear, network["heads"])
    nn.init.constant_(linear.weight, 2.0)
    for scale in (1.0, 1.0, 3.0):
        network.zero_grad()
        torch.autograd.backward(scale * linear(torch.tensor([[3.0, 4.0]])).sum())
    assert flow.table() == {"heads": [pytest.approx(5 / 8**0.5, abs=1e-5), pytest.approx(15 / 8**0.5, abs=1e-5)]}
    assert layer_of("sequence_attention.project_image.1.weight") == "projection of images"
    assert layer_of("sequence_attention.blocks.0.norm_mlp.weight") == "sequence-wise attention"


@torch.no_grad()
def test_oracle_weights_bound_what_weights_can_gain(staged_config: ModelConfig, tasks: tuple[Task, ...]) -> None:
    network = cast(CMAClip, build(Contender.CMA_CLIP, Patches.LAST, staged_config, tasks))
    assert network.modality_attention.weight is not None
    nn.init.normal_(network.modality_attention.weight, std=0.5)
    image, text = given(network, 40)
    aggregated, attention = aggregates(network, image, text)
    output = network(image, text)
    torch.testing.assert_close(torch.from_numpy(attention).float(), output.modality_attention)
    labels = np.stack([logits.argmax(dim=1).numpy() for logits in output.logits], axis=1)
    labels[::3] = (labels[::3] + 1) % 2
    labels[5] = -100
    for t, worth in enumerate(weights_worth(network, tasks, aggregated, attention, labels).values()):
        counted = labels[:, t] >= 0
        right = output.logits[t].argmax(dim=1).numpy() == labels[:, t]
        assert worth["accuracy"] == pytest.approx(right[counted].mean(), abs=1e-5)
        assert worth["deviation"] > 0
        assert max(worth["accuracy"], worth["constant"], worth["best_constant"]) <= worth["oracle"] <= 1


@torch.no_grad()
def test_a_collapsed_attention_is_worth_its_constant(staged_config: ModelConfig, tasks: tuple[Task, ...]) -> None:
    network = cast(CMAClip, build(Contender.CMA_CLIP, Patches.LAST, staged_config, tasks))
    aggregated, attention = aggregates(network, *given(network, 9))
    labels = np.zeros((9, 2), dtype=np.int64)
    for worth in weights_worth(network, tasks, aggregated, attention, labels).values():
        assert (worth["mean"], worth["deviation"]) == (0.5, 0.0)
        assert worth["constant"] == worth["accuracy"]


# --- the report --------------------------------------------------------------------------------------------


def write_result(folder: Path, name: str, reached: float, **further: object) -> None:
    """A finished run's figures, the same for every measure; resamples lie half a point around them."""
    around = [round(10_000 * (reached + step / 1_000)) for step in range(-5, 6)]
    cell = {measure: [reached, reached - 0.005, reached + 0.005] for measure in MEASURES}
    resamples = {measure: {"mean": around} for measure in ("accuracy", "recall_at_90", "recall_at_95")}
    conditions = {"image_and_title/clean/0": {"attributes": {"mean": cell}, "resamples": resamples}}
    content = {"title": name, "budget": {"epochs": 4}, **further, "conditions": conditions}
    write_cells(folder / f"{name}.json", content)


def write_primary(folder: Path, gain: float, seeds: int) -> None:
    for patches in Patches:
        for seed in range(seeds):
            suffix = f"-seed-{seed}" if seed else ""
            write_result(folder, f"cma-clip-{patches}{suffix}", 0.6 + gain)
            write_result(folder, f"concatenated-{patches}{suffix}", 0.6)


def test_the_report_says_what_is_missing(tmp_path: Path) -> None:
    text = section(tmp_path)
    assert "has not been measured yet" in text
    assert "Nothing has been tuned yet" in text
    assert "has not been tried yet" in text


def test_the_report_says_whether_the_claim_holds(lane: Lane) -> None:
    fake_trials(lane)
    folder = lane.results / "middle"
    assert "The primary comparison has not been run yet." in section(lane.results)
    write_primary(folder, 0.04, seeds=2)
    part = section(lane.results)
    assert "CMA-CLIP against fine-tuned CLIP (means of 2 seeds), +4.0 points [" in part
    assert "**3 of 5 seeds are missing**" in part
    assert "the aim" not in part
    write_primary(folder, 0.04, seeds=5)
    assert "- the aim, at least 3 points at one of the stages: met." in section(lane.results)
    write_primary(folder, 0.02, seeds=5)
    assert "- the aim, at least 3 points at one of the stages: **missed**." in section(lane.results)
    write_primary(folder, -0.04, seeds=5)
    part = section(lane.results)
    assert part.count("**behind**") == 2
    write_result(folder, "no-attention-last", 0.5)
    write_result(lane.results / "mild", "cma-clip-last", 0.7)
    write_result(lane.results / "mild", "concatenated-last", 0.6)
    part = section(lane.results)
    assert "| no-attention-last | ablation | 1 | 50.0 | 50.0 | 50.0 | 50.0 | -6.0 points" in part
    assert "| mild | patches of the last stage | 70.0 | 60.0 | +10.0 points" in part


def test_the_report_has_the_made_up_attribute_and_the_diagnosis(tmp_path: Path) -> None:
    folder = tmp_path / "matching"
    for rate, reached in ((0.001, 0.6), (0.003, 0.97)):
        write_result(folder / "trials", f"cma-clip-last-{rate:g}", reached)
    write_result(folder, "cma-clip-last-0.003", 0.96)
    worth = {"accuracy": 0.5, "mean": 0.75, "deviation": 0.1, "constant": 0.4, "best_constant": 0.6, "oracle": 0.9}
    write_diagnosis(tmp_path / "diagnosis" / "a.json", {"run": "middle/a", "weights": {"colour": worth}})
    flow = {"run": "middle/a", "interval": 10, "layers": {"heads": [0.002, 0.001]}}
    write_diagnosis(tmp_path / "diagnosis" / "a-gradients.json", flow)
    part = section(tmp_path)
    assert "| CMA-CLIP | 60.0 / 97.0 | 96.0 [95.5, 96.5] |" in part
    assert "right for at least 95 %: met." in part
    assert "| `middle/a` | colour | 0.75 ± 0.10 | 50.0 | 40.0 | 60.0 | 90.0 |" in part
    assert "| layer | from step 0 | from step 10 |" in part
    assert "| heads | 2.00 | 1.00 |" in part


def test_the_section_is_written_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("before\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="lacks the markers"):
        write_section(tmp_path, page)
    begin, end = f"<!-- titles: written by python -m {COMMAND} -->", "<!-- end of titles -->"
    page.write_text(f"before\n{begin}\nstale\n{end}\nafter\n", encoding="utf-8")
    written = write_section(tmp_path, page).read_text(encoding="utf-8")
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "stale" not in written


def test_the_section_in_the_repository_is_up_to_date() -> None:
    written = PAGE.read_text(encoding="utf-8").partition(f"<!-- titles: written by python -m {COMMAND} -->")[2]
    assert written.partition("<!-- end of titles -->")[0].strip() == section(RESULTS), f"run: python -m {COMMAND}"


# --- what each modality reads ------------------------------------------------------------------------------


def test_readings_fall_where_words_are_taken_out(catalogue: Catalogue) -> None:
    tasks = tasks_of(catalogue)
    told = read_titles(catalogue, Part.TEST, None, tasks)
    untold = read_titles(catalogue, Part.TEST, ALL, tasks)
    assert told["accuracy"] == {"colour": 1.0, "shape": 1.0}
    assert untold["accuracy"]["colour"] < 0.6
    assert (told["words"], untold["words"]) == (5.0, 3.0)


def test_a_linear_probe_learns_what_is_there() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(300, 8, generator=generator)
    labels = (given[:, 0] > 0).long()
    given[:, 0] += 2 * labels - 1  # with a margin
    labels[:10] = -100
    probe = linear_probe(given, labels, 2, steps=1_000)
    assert (probe(given[10:]).argmax(dim=1) == labels[10:]).float().mean() > 0.95
