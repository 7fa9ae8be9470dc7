"""What accompanies an admitted request on its way through the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from service.observability.request_log import RequestRecord
from service.pipeline.admission import Deadline, Ticket


@dataclass(frozen=True, slots=True)
class Call:
    """An admitted request: its deadline, the room that it holds, and what will be logged about it."""

    deadline: Deadline
    ticket: Ticket
    record: RequestRecord
