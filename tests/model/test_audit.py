"""An audit finds labels that were made wrong, and says how many there are."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import CatalogueError, ConfigError
from model.evaluation.audit import Evidence, audit_table, find_contradictions
from model.evaluation.heldout import evidence_groups
from model.training.folds import train_folds
from model.trust.noise import contradictions, estimate_noise, suspicion
from service.commands.audit import describe_contradictions, page
from tests.conftest import write_catalogue
from tests.model.held_out_catalogue import ColourReader, catalogue, noisy_listings
from tests.test_commands import run

CONSOLE = Console(file=io.StringIO())


class Unseen(ColourReader):
    """A reader with what the audit asks of a predictor besides: a checkpoint without a calibration."""

    checkpoint = SimpleNamespace(calibration=None)


# --- the mathematics ---------------------------------------------------------------------------------------


def made_up(n: int, noise: float, *, sure: float = 0.9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a good model, labels of which a share is wrong, and which of them are."""
    rng = np.random.default_rng(0)
    truth, wrong = rng.integers(0, 5, n), rng.random(n) < noise
    labels = np.where(wrong, (truth + 1) % 5, truth)
    probabilities = np.full((n, 5), (1 - sure) / 4)
    probabilities[np.arange(n), truth] = sure
    return probabilities, labels, wrong


def test_wrong_labels_rank_first_and_their_share_is_found() -> None:
    probabilities, labels, wrong = made_up(3_000, 0.1)
    scores = suspicion(probabilities, labels)
    assert scores[wrong].min() > scores[~wrong].max()
    found = estimate_noise(probabilities, labels, np.arange(len(labels)))
    assert found is not None
    assert found.share == pytest.approx(wrong.mean(), abs=0.005)
    assert found.interval[0] < wrong.mean() < found.interval[1]
    assert found.joint.sum() == pytest.approx(1)
    off = found.joint.copy()
    np.fill_diagonal(off, 0)
    assert {tuple(pair) for pair in np.argwhere(off > 0.001)} == {((c + 1) % 5, c) for c in range(5)}


def test_a_rare_label_given_by_mistake_does_not_blow_up_the_estimate() -> None:
    """Nearly all listings with the rare label 5 are others': its mean probability is next to nothing."""
    rng, n = np.random.default_rng(1), 4_000
    truth = rng.integers(0, 5, n)
    labels = np.where(rng.random(n) < 0.04, 5, truth)
    labels[:4] = truth[:4] = 5
    probabilities = np.full((n, 6), 0.01)
    probabilities[np.arange(n), truth] = np.where(rng.random(n) < 0.5, 0.95, 0.7)
    probabilities[truth < 5, 5] = 1 - probabilities[truth < 5, :5].sum(axis=1)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found = estimate_noise(probabilities, labels, np.arange(n))
    assert found is not None
    assert found.share == pytest.approx((labels != truth).mean(), abs=0.005)


def test_groups_of_listings_make_the_interval_wider() -> None:
    probabilities, labels, _ = made_up(600, 0.1)
    alone = estimate_noise(probabilities, labels, np.arange(600))
    repeated = [np.repeat(each[:60], 10, axis=0) for each in (probabilities, labels, np.arange(600))]
    together = estimate_noise(*repeated)
    assert alone is not None
    assert together is not None
    assert np.diff(together.interval) > 2 * np.diff(alone.interval)
    assert estimate_noise(probabilities[:1], labels[:1], np.zeros(1, dtype=np.int64)) is None


def test_contradictions_are_groups_of_one_key_with_several_labels() -> None:
    keys = ["a", "b", "a", None, None, "b", "b", "c", "c"]
    labels = ["red", "red", "blue", "red", "blue", "red", "green", "red", "red"]
    assert contradictions(keys, labels) == [[1, 5, 6], [0, 2]]


# --- on a catalogue ----------------------------------------------------------------------------------------


def squares(n: int = 120) -> tuple[Catalogue, set[str]]:
    """A catalogue whose titles and images tell the colour, and the ids of those whose label was made wrong."""
    listings = noisy_listings(Part.TEST, n, title_right=1.0, image_right=1.0)
    other = {"red": "blue", "blue": "green", "green": "red"}
    wrong = {each.id for each in listings[::10]}
    return (
        catalogue(
            *(
                replace(each, labels={"colour": other[each.labels["colour"]]}) if each.id in wrong else each
                for each in listings
            ),
            Listing(id="rare", title="red shirt", image="red", labels={"colour": "mauve"}, group="r", part=Part.TEST),
            Listing(id="bare", title="red shirt", image="red", labels={}, group="b", part=Part.TEST),
        ),
        wrong,
    )


def test_an_audit_ranks_all_labelled_listings() -> None:
    shop, wrong = squares()
    evidence = Evidence(shop, CONSOLE)
    evidence.add(Unseen(), shop.listings, noisy_listings(Part.VALIDATION, 60))  # type: ignore[arg-type]
    (colour,) = evidence.judge()
    assert [each.rank for each in colour.suspects] == list(range(1, 122))
    assert {each.id for each in colour.suspects[: len(wrong)]} == wrong
    assert all(each.suggestion != each.label for each in colour.suspects[: len(wrong)])
    last = colour.suspects[-1]
    assert (last.id, last.label, last.score) == ("rare", "mauve", None)
    assert [listing.id for listing in colour.listings] == [each.id for each in colour.suspects]
    assert colour.noise is not None
    assert colour.noise.share == pytest.approx(0.1, abs=0.03)
    assert {(given, true) for given, true, _ in colour.confusions()} >= {("blue", "red")}
    console = Console(file=io.StringIO(), width=160)
    console.print(audit_table([colour]))
    assert "120" in console.file.getvalue()  # type: ignore[attr-defined]
    html = page([colour], find_contradictions(shop), shop)
    assert "The likeliest errors" in html
    assert "data:image/jpeg;base64," in html


def test_models_of_several_vocabularies_are_put_together() -> None:
    shop, _ = squares(40)
    evidence = Evidence(shop, CONSOLE)
    validation = noisy_listings(Part.VALIDATION, 60)
    evidence.add(Unseen(), shop.listings[:20], validation)  # type: ignore[arg-type]
    colour, season = ColourReader().tasks
    fewer = Unseen(tasks=(replace(colour, labels=("blue", "green", "mauve")), season))
    evidence.add(fewer, shop.listings[20:], validation)  # type: ignore[arg-type]
    (found,) = evidence.judge()
    assert found.labels == ("blue", "green", "red", "mauve")
    assert len(found.suspects) == 41


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(CatalogueError, match="no labelled listing"):
        Evidence(squares()[0], CONSOLE).judge()


def test_contradictions_are_found_without_a_model() -> None:
    def listing(number: int, title: str | None, image: str | None, colour: str) -> Listing:
        labels = {"colour": colour}
        return Listing(id=str(number), title=title, image=image, labels=labels, group=str(number), part=Part.TRAIN)

    shop = catalogue(
        listing(1, "Red  Shirt", None, "red"),
        listing(2, "red shirt", None, "blue"),
        listing(3, "a", "red", "red"),
        listing(4, "b", "red", "green"),
        listing(5, "c", "blue", "blue"),
    )
    found = find_contradictions(shop)
    assert [(each.same, [one.id for one in each.listings]) for each in found] == [
        ("title", ["1", "2"]),
        ("image", ["3", "4"]),
    ]
    said = describe_contradictions(found)
    assert said == "colour: different labels on the same 1 titles (2 listings) and 1 images (2 listings)"
    assert "no two listings" in describe_contradictions([])


# --- folds -------------------------------------------------------------------------------------------------


def test_folds_share_out_all_listings_and_no_group_is_split(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Catalogue] = []

    def trained(shop: Catalogue, out: Path, **_: object) -> Path:
        seen.append(shop)
        return out / "checkpoint"

    monkeypatch.setattr("model.training.folds.train", trained)
    groups = evidence_groups(catalogue.listings).tolist()
    folds = list(train_folds(catalogue, groups, 3, tmp_path, console=CONSOLE))
    unseen = [each.id for fold in folds for each in fold.unseen]
    assert sorted(unseen) == sorted(each.id for each in catalogue.listings)
    fold_of = {each.id: number for number, fold in enumerate(folds) for each in fold.unseen}
    by_group: dict[int, set[int]] = {}
    for listing, group in zip(catalogue.listings, groups, strict=True):
        by_group.setdefault(group, set()).add(fold_of[listing.id])
    assert all(len(numbers) == 1 for numbers in by_group.values())
    for shop, fold in zip(seen, folds, strict=True):
        assert not {each.id for each in shop.part(Part.TRAIN)} & {each.id for each in fold.unseen}
        assert fold.validation
    with pytest.raises(ConfigError, match="1 folds are too few"):
        next(train_folds(catalogue, groups, 1, tmp_path, console=CONSOLE))


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_judges_what_a_checkpoint_has_not_seen(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = write_catalogue(tmp_path / "shop", 120)
    shop = Catalogue.open(toml)
    held_out = [each for each in shop.listings if each.part is not Part.TRAIN]
    out, html = tmp_path / "suspects.csv", tmp_path / "audit.html"
    assert run(monkeypatch, "audit", toml, "--checkpoint", checkpoint_folder, "--out", out, "--html", html) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == ["id", "attribute", "label", "suggestion", "score", "rank"]
    for name in ("colour", "shape"):
        own = [row for row in rows if row["attribute"] == name]
        assert {row["id"] for row in own} == {each.id for each in held_out if name in each.labels}
        assert [int(row["rank"]) for row in own] == list(range(1, len(own) + 1))
        scores = [float(row["score"]) for row in own if row["score"]]
        assert scores == sorted(scores, reverse=True)
    assert html.read_text().startswith("<!doctype html>")
    assert "estimated share of wrong ones" in capsys.readouterr().out
    table = tmp_path / "suspects.parquet"
    assert run(monkeypatch, "audit", toml, "--checkpoint", checkpoint_folder, "--unseen", "--out", table) == 0
    assert pq.read_table(table).num_rows > len(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "suspects.txt"], "has to end in .csv or .parquet"),
        (["--out", "nowhere/suspects.csv"], "there is no folder nowhere"),
        (["--out", "suspects.csv", "--unseen"], "name it with --checkpoint"),
    ],
)
def test_a_users_mistake_is_one_line(
    options: list[str],
    message: str,
    catalogue_toml: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "audit", catalogue_toml, *options) == 2
    assert message in capsys.readouterr().err


def test_json_of_a_suspect_has_no_numpy() -> None:
    shop, _ = squares(20)
    evidence = Evidence(shop, CONSOLE)
    evidence.add(Unseen(), shop.listings, noisy_listings(Part.VALIDATION, 60))  # type: ignore[arg-type]
    json.dumps([vars(each) for each in evidence.judge()[0].suspects])
