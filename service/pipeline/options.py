"""A request's options, checked against the loaded checkpoint: once for a request, whatever its number of listings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import UncalibratedTargetError
from model.inference.predictions import ModelInfo, check_target_precision
from model.tasks import Task
from service.errors import InvalidRequest, UnknownAttribute
from service.schemas import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedOptions:
    """Options that the checkpoint can satisfy, defaults filled in."""

    attributes: tuple[str, ...]
    target_precision: float
    top_k: int
    explain: bool


def check_options(
    options: Options, info: ModelInfo, tasks: Sequence[Task], *, target_precision: float
) -> CheckedOptions:
    """Check the options and fill in the defaults; `target_precision` is that of requests that name none.

    Raises `UnknownAttribute`, or `InvalidRequest` for a target precision that is not calibrated.
    """
    known = tuple(task.name for task in tasks)
    if unknown := [name for name in options.attributes or () if name not in known]:
        raise UnknownAttribute(f"unknown attribute {unknown[0][:64]!r}; known are {', '.join(known)}")
    if options.target_precision is not None:
        try:
            check_target_precision(info, options.target_precision)
        except UncalibratedTargetError:
            calibrated = ", ".join(map(str, info.target_precisions)) or "none"
            message = f"target_precision {options.target_precision} is not calibrated; {calibrated} are"
            raise InvalidRequest(message) from None
    return CheckedOptions(
        attributes=tuple(dict.fromkeys(options.attributes or known)),
        target_precision=options.target_precision or target_precision,
        top_k=options.top_k,
        explain=options.explain,
    )
