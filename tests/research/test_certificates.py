from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.heldout import Answers, save_scores
from model.situations import Situation
from research.certificates import joint_summary, joint_trials, label_summary, label_trials, main, summary, trials


def answers(n: int, *, groups: int | None = None, seed: int = 0) -> Answers:
    """A calibrated model of confidence 1 - u³; with `groups`, a title's listings are right together."""
    generator = np.random.default_rng(seed)
    titles = groups or n
    group = generator.integers(0, titles, n) if groups else np.arange(n)
    doubt = generator.random(titles)[group] ** 3
    wrong = generator.random(titles)[group] < doubt
    return Answers(
        confidence=1 - doubt,
        predicted=np.zeros(n, np.int64),
        labels=wrong.astype(np.int64),
        group=group,
        passed=np.ones(n, np.bool_),
    )


def test_certified_thresholds_keep_the_promise_and_naive_ones_do_not() -> None:
    scores = {Situation.TITLE: {"colour": answers(4_000)}}
    trial = next(iter(trials(scores, splits=100)))
    assert (trial.target, trial.listings) == (0.9, 4_000)
    assert trial.certified.certified == 1.0
    assert trial.certified.broken <= 0.05
    assert trial.naive.broken > 0.2
    assert 0 < trial.certified.lost < 0.1
    assert abs(trial.naive.lost) < 0.02
    # Not to pay for the choice costs less coverage, and no more can be had of this sample.
    assert 0 < trial.unadjusted.lost <= trial.certified.lost
    assert trial.certified.broken <= trial.unadjusted.broken < trial.naive.broken
    assert "promise kept in 1 of 1 cases" in summary([trial]).splitlines()[0]


def test_listings_of_one_title_stay_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def certify(confidence: np.ndarray, *_: object, **__: object) -> dict[float, None]:
        seen.append(set(confidence.tolist()))
        return dict.fromkeys((0.9, 0.95, 0.99))

    monkeypatch.setattr("research.certificates.certify", certify)
    grouped = answers(500, groups=50)
    list(trials({Situation.TITLE: {"colour": grouped}}, splits=3))
    for side in seen:
        inside = np.isin(grouped.confidence, list(side))
        assert 0 < inside.sum() < 500
        assert not set(grouped.group[inside]) & set(grouped.group[~inside])


def test_each_certified_label_keeps_the_promise() -> None:
    # Label 0 is as the model says; label 1 is right half of the time, however sure the model; label 2 is rare.
    one = answers(6_000)
    generator = np.random.default_rng(1)
    predicted = generator.choice(3, 6_000, p=(0.5, 0.49, 0.01))
    right = one.correct & ((predicted != 1) | (generator.random(6_000) < 0.5))
    labels = np.where(right, predicted, 3)
    by_label = Answers(
        confidence=one.confidence, predicted=predicted, labels=labels, group=one.group, passed=one.passed
    )
    trial = next(iter(label_trials({Situation.TITLE: {"colour": by_label}}, splits=40)))
    assert (trial.target, trial.labels) == (0.9, 1)
    # At most 5 %; three standard errors of 40 splits aside.
    assert trial.broken == trial.worst_broken <= 0.05 + 3 * (0.05 * 0.95 / 40) ** 0.5
    # Rare labels fall back to the attribute's threshold; there is none, so they abstain.
    assert trial.attribute_broken == trial.broken
    assert trial.kept == (trial.broken <= 0.05)
    assert 0.3 < trial.coverage < 0.5
    assert "of 1 labels" in label_summary([trial])


def test_promises_kept_together_are_broken_less_often_and_cost_more() -> None:
    scores = {Situation.TITLE: {name: answers(1_500, seed=seed) for seed, name in enumerate(("colour", "season"))}}
    trials = list(joint_trials(scores, splits=60))
    assert [(trial.target, trial.attributes) for trial in trials] == [(0.9, 2), (0.95, 2), (0.99, 2)]
    for trial in trials:
        # One by one, either may break its promise; together, at most 5 %, three standard errors of 60 splits aside.
        assert trial.together.broken <= min(trial.single.broken, 0.05 + 3 * (0.05 * 0.95 / 60) ** 0.5)
        assert trial.together.lost >= trial.single.lost
    assert trials[0].together.lost > trials[0].single.lost
    assert "at 90 %, at least one attribute breaks its promise: certified one by one in" in joint_summary(trials)


def test_the_command_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scores.npz"
    save_scores(path, {Situation.TITLE: {"colour": answers(600, groups=200)}})
    assert main([str(path), "--splits", "3", "--per-label", "--json", str(tmp_path / "out.json")]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert [trial["target"] for trial in document["trials"]] == [0.9, 0.95, 0.99]
    assert document["trials"][0]["listings"] == 600
    assert [trial["target"] for trial in document["label_trials"]] == [0.9, 0.95, 0.99]
    assert [trial["attributes"] for trial in document["joint_trials"]] == [1, 1, 1]
    assert "naive thresholds" in capsys.readouterr().out


def test_a_file_without_scores_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.npz").write_bytes(b"")
    assert main([str(tmp_path / "no.npz")]) == 2
    assert "holds no held-out scores" in capsys.readouterr().out
