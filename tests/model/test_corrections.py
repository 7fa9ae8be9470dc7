"""Decisions of people change labels in memory, and in held-out parts only where the sample was random."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from model.catalogue import listing_store
from model.catalogue.corrections import (
    JudgedRow,
    Outcome,
    correct,
    labels_of,
    random_sample,
    rows_to_judge,
    write_judged,
)
from model.catalogue.listing_store import StoredListings
from model.catalogue.listings import Catalogue, Listing
from model.catalogue.splits import Part
from model.errors import CatalogueError, ConfigError
from model.evaluation.calibrate import fit_calibration
from model.evaluation.evaluate import evaluation_tables, measure, model_card_tables
from tests.model.clothes import write_clothes
from tests.model.held_out_catalogue import ColourReader, catalogue, noisy_listings
from tests.test_commands import run

CONSOLE = Console(file=io.StringIO())


def listing(name: str, part: Part, colour: str | None = "red", materials: Sequence[str] = ()) -> Listing:
    return Listing(
        id=name,
        title=f"{colour} shirt",
        image=None,
        labels={"colour": colour} if colour else {},
        label_sets={"material": tuple(materials)} if materials else {},
        group=name,
        part=part,
    )


def shop() -> Catalogue:
    found = catalogue(
        listing("a", Part.TRAIN),
        listing("b", Part.TRAIN, "blue", ["cotton", "wool"]),
        listing("c", Part.CALIBRATION),
        listing("d", Part.TEST, "Navy Blue", ["wool"]),
        listing("e", Part.TRAIN, None),
    )
    config = replace(found.config, attributes=("colour", "material"), separator={"material": "|"})
    return replace(found, config=config)


def judged(folder: Path, *rows: JudgedRow, name: str = "judged.csv") -> Path:
    write_judged(rows, folder / name)
    return folder / name


def row(name: str, label: str, decision: str, *, attribute: str = "colour", **others: str) -> JudgedRow:
    return JudgedRow(id=name, attribute=attribute, label=label, decision=decision, **others)


def colours(found: Catalogue) -> dict[str, str | None]:
    return {each.id: each.labels.get("colour") for each in found.listings}


def test_listings_in_a_file_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = write_clothes(tmp_path, 300)
    here = Catalogue.open(toml)
    monkeypatch.setattr(listing_store, "IN_MEMORY", 3)
    stored = Catalogue.open(toml)
    chosen = [next(each for each in here.part(part) if "kind" in each.labels) for part in (Part.TRAIN, Part.TEST)]
    kinds = [each.labels["kind"] for each in chosen]
    decisions = ["Watch" if kind == "Shirt" else "Shirt" for kind in kinds]
    rows = [
        row(each.id, kind, decision, attribute="kind", sample="random")
        for each, kind, decision in zip(chosen, kinds, decisions, strict=True)
    ]
    file = judged(tmp_path, *rows)
    expected, found = correct(here, file), correct(stored, file)
    assert isinstance(found.listings, StoredListings)
    assert list(found.listings) == list(expected.listings) != list(here.listings)
    assert found.digest == expected.digest != stored.digest
    for part in Part:
        assert list(found.part(part)) == list(expected.part(part))
    assert found.corrections is not None
    assert list(found.corrections.undone(found.listings)) == list(here.listings)
    train = pickle.loads(pickle.dumps(found.part(Part.TRAIN)))  # noqa: S301 - its own
    assert list(train) == list(expected.part(Part.TRAIN))
    assert random_sample(found, 7) == random_sample(expected, 7)


@pytest.mark.parametrize("name", ["judged.csv", "judged.parquet"])
def test_decisions_change_train_labels_and_of_held_out_ones_those_of_a_random_sample(tmp_path: Path, name: str) -> None:
    before = shop()
    file = judged(
        tmp_path,
        row("a", "red", "navy  BLUE", suggestion="Navy Blue", score="0.9", rank="1"),
        row("b", "blue", "unclear", suggestion="red", score="0.8", rank="2"),
        row("b", "cotton|wool", "wool", attribute="material"),
        row("c", "red", "blue", suggestion="blue", score="0.99", rank="3"),
        row("d", "Navy Blue", "red", sample="random"),
        row("d", "wool", "wool | cotton", attribute="material", sample="random"),
        row("e", "", "red"),
        row("a", "red", "", attribute="nobody judged this"),
        name=name,
    )
    found = correct(before, file)
    assert colours(found) == {"a": "Navy Blue", "b": None, "c": "red", "d": "red", "e": "red"}
    assert [labels_of(each, "material") for each in found.listings[1:4]] == [("wool",), (), ("wool", "cotton")]
    assert colours(before)["a"] == "red"
    assert [each.id for each in found.listings] == [each.id for each in before.listings]
    assert found.digest != before.digest
    assert found.corrections is not None
    assert found.corrections.undone(found.listings) == before.listings
    assert found.corrections.counts == {
        (Part.TRAIN, "colour", Outcome.CHANGED): 2,
        (Part.TRAIN, "colour", Outcome.REMOVED): 1,
        (Part.TRAIN, "material", Outcome.CHANGED): 1,
        (Part.CALIBRATION, "colour", Outcome.PASSED_OVER): 1,
        (Part.TEST, "colour", Outcome.CHANGED): 1,
        (Part.TEST, "material", Outcome.CHANGED): 1,
    }
    assert str(found.corrections).splitlines() == [
        f"{name}: 7 decisions; the table is not changed",
        "  train: changed 3, removed 1",
        "  calibration: passed over 1",
        "  test: changed 2",
        "  (passed over: labels of held-out parts change only by decisions on a random sample)",
    ]


def test_held_out_labels_that_nobody_can_tell_stay_as_they_are(tmp_path: Path) -> None:
    rows = [row("c", "red", "unclear", sample="random"), row("d", "navy blue", "right", sample="Random")]
    found = correct(shop(), judged(tmp_path, *rows))
    assert colours(found) == colours(shop())
    assert found.corrections is not None
    assert {outcome for _, _, outcome in found.corrections.counts} == {Outcome.KEPT, Outcome.CONFIRMED}
    assert not found.corrections.as_in_table


def test_a_label_comes_before_a_word_of_the_same_spelling(tmp_path: Path) -> None:
    before = shop()
    sides = replace(before, listings=(*before.listings, listing("f", Part.TRAIN, "right")))
    assert colours(correct(sides, judged(tmp_path, row("a", "red", "right"))))["a"] == "right"


def test_the_sample_may_be_missing_and_one_decision_may_be_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "judged.csv"
    file.write_text(
        "id,attribute,label,suggestion,score,rank,decision\na,colour,red,blue,.9,1,blue\na,colour,red,blue,.9,1,blue\n"
    )
    assert colours(correct(shop(), file))["a"] == "blue"
    rows = [row("c", "red", "blue"), row("c", "red", "blue", sample="random"), row("c", "red", "blue")]
    assert colours(correct(shop(), judged(tmp_path, *rows)))["c"] == "blue"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("x", "red", "blue")], "line 2: the catalogue has no listing 'x'"),
        ([row("a", "red", "blue", attribute="size")], "no attribute 'size'; it has colour, material"),
        ([row("a", "red", "Nayv Blue")], r"'Nayv Blue' is no label of colour .* did you mean 'Navy Blue'"),
        ([row("b", "wool|cotton", "wool|silk", attribute="material")], "'silk' is no label of material"),
        ([row("a", "blue", "blue")], "colour of a is red in the table, and was blue when it was judged"),
        ([row("e", "red", "red")], "colour of e is not there in the table, and was red"),
        ([row("e", "", "right")], "no label of colour that could be right"),
        ([row("a", "red", "blue"), row("a", "red", "unclear")], "line 3: .* decided otherwise in line 2"),
        ([row("c", "red", "blue", sample="random", suggestion="blue")], "judged without a model's answer"),
        ([row("c", "red", "blue", sample="first")], "'sample' is random or empty, not 'first'"),
        ([row("x", "red", "blue"), row("y", "red", "blue")], r"\(and 1 more such lines\)"),
        ([row("a", "red", "")], "holds no decision"),
    ],
)
def test_a_decision_that_cannot_be_followed_is_named(rows: list[JudgedRow], message: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=message):
        correct(shop(), judged(tmp_path, *rows))


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    file = tmp_path / "suspects.csv"
    file.write_text("id,attribute,label,suggestion,score,rank\na,colour,red,blue,.9,1\n")
    with pytest.raises(CatalogueError, match="has no column 'decision'"):
        correct(shop(), file)
    assert correct(shop(), None).corrections is None


# --- random samples ----------------------------------------------------------------------------------------


def test_a_random_sample_is_of_held_out_parts_and_a_larger_one_holds_it() -> None:
    listings = [each for part in Part for each in noisy_listings(part, 30)]
    ten, all_of_them = (random_sample(catalogue(*listings), count) for count in (10, 1_000))
    assert all_of_them[:10] == ten
    assert {each.part for each in ten} == {Part.CALIBRATION, Part.TEST}
    assert len(all_of_them) == 60
    with pytest.raises(CatalogueError, match="nothing to draw"):
        random_sample(catalogue(*noisy_listings(Part.TRAIN, 3)), 1)


def test_a_sample_to_judge_shows_no_answer_of_a_model() -> None:
    rows = rows_to_judge(shop().listings[1:2], {"material": "|"})
    assert [(each.attribute, each.label, each.sample) for each in rows] == [
        ("colour", "blue", "random"),
        ("material", "cotton|wool", "random"),
    ]
    assert not any(each.suggestion or each.score or each.rank or each.decision for each in rows)


# --- measuring and calibrating ------------------------------------------------------------------------------


def mistaken(tmp_path: Path) -> Catalogue:
    """A catalogue that the reader is always right about, but for calibration and test labels that people corrected."""
    listings = [each for part in Part for each in noisy_listings(part, 200, title_right=1.0, image_right=1.0)]
    other: Mapping[str, str] = {"red": "blue", "blue": "green", "green": "red"}
    truth = {each.id: each.labels["colour"] for each in listings}
    wrong = {each.id for each in listings[::4] if each.part in (Part.CALIBRATION, Part.TEST)}
    rows = [replace(each, labels={"colour": other[truth[each.id]]}) if each.id in wrong else each for each in listings]
    decisions = [row(name, other[truth[name]], truth[name], sample="random") for name in sorted(wrong)]
    return correct(catalogue(*rows), judged(tmp_path, *decisions))


def test_both_tables_are_shown(tmp_path: Path) -> None:
    corrected, console = mistaken(tmp_path), Console(file=io.StringIO(), width=160)
    calibration, gate = fit_calibration(ColourReader(), corrected, console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "With the table's own labels, for comparison" in said
    assert "abstains" in said
    metrics = measure(ColourReader(), calibration, gate, corrected, console=CONSOLE).metrics
    own, table = (
        each["title"]["attributes"]["colour"] for each in (metrics["situations"], metrics["corrections"]["as_in_table"])
    )
    assert own["accuracy"] == 1
    assert table["accuracy"] == pytest.approx(0.75)
    assert own["accepted"]["0.95"]["coverage"] > 0.9
    assert metrics["corrections"]["decisions"]["test"]["colour"] == {"changed": 50}
    titles = [str(each.title) for each in evaluation_tables(metrics)]
    assert sum("with the table's own labels" in title for title in titles) == len(titles) / 2
    card = model_card_tables(metrics)
    assert "people have judged on a random sample (judged.csv): 50 of the test part, of which 50 were changed" in card
    assert card.count("with the table's own labels") == 3


def test_the_commands_read_corrections(
    catalogue_toml: Path,
    checkpoint_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, html = tmp_path / "sample.csv", tmp_path / "sample.html"
    assert run(monkeypatch, "audit", catalogue_toml, "--random", 5, "--out", file, "--html", html) == 0
    assert "5 listings with 10 labels to judge" in capsys.readouterr().out
    assert html.read_text().count("<img") == 5
    with file.open(newline="") as table:
        rows = list(csv.DictReader(table))
    label = next(each["label"] for each in rows if each["attribute"] == "colour" and each["label"] != rows[0]["label"])
    rows[0]["decision"] = label
    with file.open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    seen: list[Catalogue] = []

    def taken(*given: object, **_: object) -> None:
        seen.extend(each for each in given if isinstance(each, Catalogue))
        raise ConfigError("seen")

    for module, name in (
        ("training.train", "train"),
        ("evaluation.calibrate", "calibrate"),
        ("evaluation.evaluate", "evaluate"),
    ):
        monkeypatch.setattr(f"model.{module}.{name}", taken)
    corrections = ("--corrections", file)
    assert run(monkeypatch, "train", catalogue_toml, "--out", tmp_path / "run", *corrections) == 2
    assert run(monkeypatch, "calibrate", checkpoint_folder, catalogue_toml, *corrections) == 2
    assert run(monkeypatch, "evaluate", checkpoint_folder, catalogue_toml, *corrections) == 2
    assert "sample.csv: 1 decisions; the table is not changed" in capsys.readouterr().err
    assert len(seen) == 3
    for shop in seen:
        assert {each.id: each.labels["colour"] for each in shop.listings}[rows[0]["id"]] == label
    absent = ("--corrections", tmp_path / "absent.csv")
    assert run(monkeypatch, "calibrate", checkpoint_folder, catalogue_toml, *absent) == 2
    assert "cannot read" in capsys.readouterr().err
    assert run(monkeypatch, "audit", catalogue_toml, "--random", 5, "--checkpoint", "x", "--out", file) == 2
    assert "without a model" in capsys.readouterr().err
