"""What accompanies an admitted request on its way through the pipeline."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from service.observability.request_log import RequestRecord
from service.pipeline.admission import Deadline, Ticket
from service.pipeline.together import Place

FETCHES = 8
"""Images that are fetched for one request at the same time: a batch cannot take all connections to images' hosts."""


@dataclass(frozen=True, slots=True)
class Call:
    """An admitted request: its deadline, the room that it holds, and what will be logged about it."""

    deadline: Deadline
    ticket: Ticket
    record: RequestRecord
    place: Place | None = None
    """In a batch of a job; None: a caller waits for it."""
    fetches: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FETCHES))
