"""From logits to confidences, temperature scaling, and what calibration.json holds; no I/O.

Imports numpy alone: serving takes its thresholds from here; `model.trust.certificates` certifies them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import CheckpointError
from model.situations import Situation

FORMAT = 1

_LOG_TEMPERATURE = math.log(20.0)
"""Temperatures are sought in [1/20, 20]: beyond lies a degenerate fit, not a calibration."""

MIN_TEMPERATURE = 1e-3
"""The least that is read from a file: much less would overflow, and answer NaN."""


# --- temperature -------------------------------------------------------------------------------------------


def softmax(logits: NDArray[np.floating[Any]], temperature: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of `logits / temperature` over the last axis, in double precision.

    `temperature` is one for all rows, or one for each, `[n, 1]`; a row's result is the same either way, bit for bit.
    Calibration and serving both use this, so that a confidence is on the same side of its threshold in both.
    """
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[np.floating[Any]], temperature: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logistic function of `logits / temperature`, in double precision; temperature as in `softmax`."""
    scaled = logits.astype(np.float64) / temperature
    small = np.exp(-np.abs(scaled))  # never overflows
    return np.asarray(np.where(scaled >= 0, 1.0, small) / (1 + small))


def confidences_of(
    logits: NDArray[np.floating[Any]], temperature: float | NDArray[np.float64], *, multi_valued: bool
) -> NDArray[np.float64]:
    """Return the confidence of each label, from logits `[n, C]`: the one place where they are computed.

    Of a single-valued attribute they are the chances of being the listing's label, and sum to 1; of a multi-valued one
    each is the chance of being among its labels.
    """
    return sigmoid(logits, temperature) if multi_valued else softmax(logits, temperature)


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Return the temperature that minimises the negative log-likelihood (Guo et al., arXiv:1706.04599).

    `logits` is [n, C]. `labels` is [n] for a single-valued attribute: rows without a label that the model knows
    (negative) are left out. For a multi-valued one it is [n, C], 1 for each label that the listing has, else 0, and
    negative throughout for a row that is left out. With no row left the temperature is 1. The likelihood is log-concave
    in 1/T, so its slope changes sign once: bisection on log T cannot miss it, and ends at a limit of [1/20, 20] when it
    lies beyond.
    """
    multi_valued = labels.ndim == 2
    known = (labels[:, 0] if multi_valued else labels) >= 0
    if not known.any():
        return 1.0
    scores = logits[known].astype(np.float64)
    if multi_valued:
        mean_target_score = (scores * labels[known]).sum(axis=1).mean()
    else:
        mean_target_score = scores[np.arange(len(scores)), labels[known]].mean()
    low, high = -_LOG_TEMPERATURE, _LOG_TEMPERATURE
    for _ in range(40):
        middle = (low + high) / 2
        probabilities = confidences_of(scores, math.exp(middle), multi_valued=multi_valued)
        too_sharp = (probabilities * scores).sum(axis=1).mean() > mean_target_score
        low, high = (middle, high) if too_sharp else (low, middle)
    return math.exp((low + high) / 2)


# --- calibration.json --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Certificate:
    """A threshold that was certified, and what it did on the calibration listings."""

    threshold: float
    """Accept a label whose confidence is at least this."""
    coverage: float
    """The share of labelled calibration listings that it accepts; for a label's own, of those answered with it. Of a
    multi-valued attribute, the share of listings of which it accepts a label; for a label's own, of those likelier to
    have it than not."""
    support: int
    """The number of calibration listings that it accepts; of (listing, label) pairs, for a multi-valued attribute."""
    bound: float
    """Clopper-Pearson lower bound of the precision at this one threshold, at the level that `certify` was given: the
    confidence level, or more where several promises share it."""


def _threshold(certificate: Certificate | None) -> float:
    return math.inf if certificate is None else certificate.threshold


@dataclass(frozen=True, kw_only=True)
class AttributeCalibration:
    """One attribute in one situation."""

    temperature: float
    thresholds: Mapping[float, Certificate | None]
    """Per target precision; None where nothing could be certified, and nothing is accepted."""
    labels: Mapping[str, Mapping[float, Certificate | None]] = field(default_factory=dict)
    """Per label and target precision, where labels were certified one by one; a label has an entry for each target
    that it has calibration examples enough for, None where it could not be certified with them."""

    def minimum_confidence(self, target: float, labels: Sequence[str]) -> NDArray[np.float64]:
        """Return the least confidence at which each of `labels` is accepted at a target precision, infinity for never.

        A label that has too few examples for this target falls back to the attribute's threshold, but never below
        its own for a lower target: what is accepted at a target is accepted at every lower one.
        """
        return np.array([self._minimum_confidence(target, label) for label in labels], dtype=np.float64)

    def _minimum_confidence(self, target: float, label: str) -> float:
        own = self.labels.get(label, {})
        certificates = [certificate for at, certificate in own.items() if at <= target]
        if target not in own:
            certificates.append(self.thresholds[target])
        return max(map(_threshold, certificates))


@dataclass(frozen=True, kw_only=True)
class GateRecord:
    """Which gate the thresholds were certified behind: that of scope.safetensors, which `digest` names."""

    digest: str
    """The first 12 hex digits of the SHA-256 of the file."""
    scope_level: Mapping[Situation, float]
    """Familiarity below which a listing is unfamiliar; a situation that could not be fitted has none."""
    conflict_level: float | None
    """Agreement below which image and title contradict each other; None where it could not be fitted."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration.json holds: how confidences are scaled, and the thresholds at which labels are accepted."""

    version: str
    """That of the weights it was fitted for: a calibration means nothing for others."""
    method: str
    confidence_level: float
    target_precisions: tuple[float, ...]
    """Ascending."""
    situations: Mapping[Situation, Mapping[str, AttributeCalibration]]
    """All three situations, each with every attribute."""
    gate: GateRecord | None = None
    """The gate behind which thresholds were certified; None where there was none."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `from_json` reads back as an equal calibration."""
        return {
            "format": FORMAT,
            "version": self.version,
            "method": self.method,
            "confidence_level": self.confidence_level,
            "target_precisions": list(self.target_precisions),
            **({} if self.gate is None else {"gate": asdict(self.gate)}),
            "situations": {
                situation: {
                    attribute: {
                        "temperature": calibrated.temperature,
                        "thresholds": _certificates_json(calibrated.thresholds),
                        **(
                            {"labels": {label: _certificates_json(own) for label, own in calibrated.labels.items()}}
                            if calibrated.labels
                            else {}
                        ),
                    }
                    for attribute, calibrated in attributes.items()
                }
                for situation, attributes in self.situations.items()
            },
        }

    @property
    def digest(self) -> str:
        """Twelve hex digits of a hash of all that it holds."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, document: object) -> Calibration:
        """Check and read a decoded calibration.json; raise `CheckpointError` naming what is wrong in it."""
        top = _mapping(document, "the document")
        if top.get("format") != FORMAT:
            raise _wrong("format", f"must be {FORMAT}, not {top.get('format')!r}")
        listed = top.get("target_precisions")
        if not isinstance(listed, list) or not listed:
            raise _wrong("target_precisions", "must be a list of numbers")
        targets = tuple(_number(target, "target_precisions", 0, 1) for target in listed)
        if any(low >= high for low, high in itertools.pairwise(targets)):
            raise _wrong("target_precisions", "must be ascending")
        situations = _mapping(top.get("situations"), "situations")
        return cls(
            version=_text(top.get("version"), "version"),
            method=_text(top.get("method"), "method"),
            confidence_level=_number(top.get("confidence_level"), "confidence_level", 0, 1),
            target_precisions=targets,
            gate=_gate(top.get("gate")),
            situations=_same_attributes(
                {
                    situation: {
                        attribute: _attribute(value, targets, f"situations.{situation}.{attribute}")
                        for attribute, value in _mapping(situations.get(situation), f"situations.{situation}").items()
                    }
                    for situation in Situation
                }
            ),
        )


def _certificates_json(certificates: Mapping[float, Certificate | None]) -> dict[str, Any]:
    return {
        str(target): None if certificate is None else asdict(certificate)
        for target, certificate in certificates.items()
    }


def _attribute(value: object, targets: tuple[float, ...], where: str) -> AttributeCalibration:
    fields = _mapping(value, where)
    thresholds = _certificates(fields.get("thresholds"), targets, f"{where}.thresholds")
    if set(thresholds) != set(targets):
        raise _wrong(f"{where}.thresholds", f"must be for {', '.join(map(str, targets))}, each once")
    labels = {
        label: _certificates(own, targets, f"{where}.labels.{label}")
        for label, own in _mapping(fields.get("labels", {}), f"{where}.labels").items()
    }
    temperature = _number(fields.get("temperature"), f"{where}.temperature", MIN_TEMPERATURE, math.inf)
    return AttributeCalibration(temperature=temperature, thresholds=thresholds, labels=labels)


def _certificates(value: object, targets: tuple[float, ...], where: str) -> dict[float, Certificate | None]:
    """Read certificates for some of the targets, ascending."""
    fields = _mapping(value, where)
    if unknown := sorted(set(fields) - {str(target) for target in targets}):
        raise _wrong(where, f"must be for {', '.join(map(str, targets))}, not for {unknown[0]}")
    certificates = {
        target: _certificate(fields[str(target)], f"{where}.{target}") for target in targets if str(target) in fields
    }
    thresholds = list(map(_threshold, certificates.values()))
    if thresholds != sorted(thresholds):
        raise _wrong(where, "must grow with the target precision")
    return certificates


def _certificate(value: object, where: str) -> Certificate | None:
    if value is None:
        return None
    fields = _mapping(value, where)
    support = fields.get("support")
    if not isinstance(support, int) or isinstance(support, bool) or support < 0:
        raise _wrong(f"{where}.support", f"must be a whole number, not {support!r}")
    return Certificate(
        threshold=_number(fields.get("threshold"), f"{where}.threshold", 0, 1),
        coverage=_number(fields.get("coverage"), f"{where}.coverage", 0, 1),
        support=support,
        bound=_number(fields.get("bound"), f"{where}.bound", 0, 1),
    )


def _gate(value: object) -> GateRecord | None:
    if value is None:
        return None
    fields = _mapping(value, "gate")
    levels = _mapping(fields.get("scope_level"), "gate.scope_level")
    if unknown := sorted(set(levels) - set(Situation)):
        raise _wrong("gate.scope_level", f"knows no situation {unknown[0]!r}")
    conflict = fields.get("conflict_level")
    return GateRecord(
        digest=_text(fields.get("digest"), "gate.digest"),
        scope_level={Situation(at): _number(level, f"gate.scope_level.{at}", 0, 1) for at, level in levels.items()},
        conflict_level=None if conflict is None else _number(conflict, "gate.conflict_level", 0, 1),
    )


def _same_attributes(
    situations: Mapping[Situation, Mapping[str, AttributeCalibration]],
) -> Mapping[Situation, Mapping[str, AttributeCalibration]]:
    attributes = set(situations[Situation.IMAGE_AND_TITLE])
    for situation, calibrated in situations.items():
        if difference := attributes.symmetric_difference(calibrated):
            raise _wrong(f"situations.{situation}", f"differs from {Situation.IMAGE_AND_TITLE} in {sorted(difference)}")
    return situations


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "is missing" if value is None else "must be an object")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(where, "is missing" if value is None else "must be a text")
    return value


def _number(value: Any, where: str, low: float, high: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high:
        raise _wrong(where, f"must be a number from {low} to {high}, not {value!r}")
    return float(value)


def _wrong(where: str, problem: str) -> CheckpointError:
    return CheckpointError(f"calibration.json: {where} {problem}")
