"""The benchmark of familiarity: limits from validation, false alarms from test, every family judged."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console

from benchmarks.familiarity import Sample, auroc, judge, main, table, without_classes
from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part
from model.inputs.outliers import TITLES, Family
from model.situations import Situation
from model.trust.scope import Features


def scored(values: list[float]) -> dict[Situation, Features]:
    """Listings whose score is to be the share of unseen words."""
    n = len(values)
    features = Features(
        embeddings=np.zeros((n, 1, 2), np.float32), logits=(np.zeros((n, 2), np.float32),), unseen=np.array(values)
    )
    return dict.fromkeys(Situation, features)


def test_limits_are_from_validation_and_shares_from_the_rest() -> None:
    samples = {
        "validation": Sample(scored([each / 1000 for each in range(1001)]), {}),
        "test": Sample(scored([0.5, 0.5, 0.985, 1.0]), {}),
        "made up": Sample(scored([0.0, 1.0, 1.0]), dict.fromkeys(Situation, ("paper", "noise", "noise"))),
        "furniture": Sample(scored([0.985, 2.0]), {}),
    }
    found = judge(Situation.TITLE, "words", lambda some: some.unseen, samples)
    assert found.refused == (25.0, 50.0)
    assert found.caught == {"all": (66.7, 66.7), "noise": (100, 100), "paper": (0, 0), "furniture": (50, 100)}
    assert found.auroc == pytest.approx((0 + 2 * 3.5) / 12, abs=1e-4)
    file = io.StringIO()
    Console(file=file, width=200).print(table([found], ["all", "furniture"]))
    assert "66.7 / 66.7" in file.getvalue()


def test_auroc_counts_ties_half() -> None:
    assert auroc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1.0
    assert auroc(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.5


def test_held_out_classes_are_nowhere_in_the_catalogue(catalogue: Catalogue) -> None:
    known, unseen = without_classes(catalogue, "shape", 1)
    held_out = {each.labels["shape"] for each in unseen}
    assert len(held_out) == 1
    assert unseen
    assert all(each.part is Part.TEST for each in unseen)
    assert held_out.isdisjoint(each.labels["shape"] for each in known.listings)
    assert len(known.listings) == 120


def test_every_method_is_measured_in_every_situation(
    checkpoint_folder: Path, catalogue_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "familiarity.json"
    main(
        checkpoint=checkpoint_folder,
        catalogue=catalogue_toml,
        unfamiliar=[catalogue_toml],
        train_listings=100,
        outliers=40,
        device="cpu",
        out=out,
    )
    results = json.loads(out.read_text())["results"]
    methods = {each["method"] for each in results}
    assert {"nearest neighbours", "Mahalanobis", "energy", "mean confidence", "unseen words", "the gate"} <= methods
    assert len(results) == len(methods) * len(Situation)
    for each in results:
        assert 0 <= each["auroc"] <= 1
        assert each["milliseconds"] >= 0
        assert {"all", "catalogue"} <= each["caught"].keys()
        if each["situation"] == Situation.TITLE:
            assert TITLES[Family.JUDGING].keys() <= each["caught"].keys()
            assert TITLES[Family.FITTING].keys().isdisjoint(each["caught"])
    assert "the gate" in capsys.readouterr().out


def test_a_user_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        main(checkpoint=tmp_path, catalogue=tmp_path / "none.toml")
    assert "error:" in capsys.readouterr().err
