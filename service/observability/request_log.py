"""What is logged about a request: one line, when it has been answered."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from service.observability.tracing import RequestTrace


@dataclass(slots=True)
class RequestRecord:
    """Filled in on the way of a request; never a title, an image, a URL or a key."""

    id: str
    started: float = field(default_factory=time.monotonic)
    key: str | None = None
    """The name of the API key that it came with."""
    listings: int = 0
    job: str | None = None
    """What was handed in."""
    code: str | None = None
    """The problem's code, if it was answered with one."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage; where listings passed through it concurrently, those of the slowest."""
    trace: RequestTrace | None = None
    """The request's span, where requests are traced."""

    def stage(self, name: str, seconds: float, *, ago: float = 0.0) -> None:
        """Add a stage of a listing that took `seconds` and ended `ago` seconds before now."""
        self.stages[name] = max(seconds, self.stages.get(name, 0.0))
        if self.trace is not None:
            self.trace.stage(name, seconds, ago=ago)

    def fields(self, *, method: str, route: str | None, status: int, seconds: float) -> dict[str, Any]:
        """Return the fields of the log line; those that are empty or 0 are left out."""
        fields = {
            "request_id": self.id,
            "trace_id": self.trace.id if self.trace is not None else None,
            "method": method,
            "route": route,
            "status": status,
            "code": self.code,
            "key": self.key,
            "listings": self.listings,
            "job": self.job,
            "milliseconds": round(1000 * seconds, 3),
            "stages_ms": {name: round(1000 * spent, 3) for name, spent in self.stages.items()},
        }
        return {name: value for name, value in fields.items() if value}
