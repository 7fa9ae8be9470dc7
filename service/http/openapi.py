"""What the OpenAPI document says beyond the types: refusals, and the header of the deadline."""

from __future__ import annotations

from typing import Any

from service.http.problems import PROBLEM_TYPE
from service.pipeline.admission import TIMEOUT_HEADER


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare refusals in the OpenAPI document."""
    reasons = {
        401: "no API key, or a wrong one",
        403: "the API key may not review",
        404: "no such path, item, job or store",
        408: "the body hardly arrives",
        409: "the job is not done; or another reviewer has the item, or has decided it",
        413: "body, image bytes, pixels or number of listings over the limit",
        415: "not an accepted image format or request type",
        422: "the caller's mistake, named",
        424: "the image's host failed, timed out or sent something else",
        429: "more than one API key may send: again after Retry-After seconds",
        500: "a bug",
        503: "overloaded, draining or not ready: try another replica, or again after Retry-After seconds",
        504: "the deadline passed, or cannot be met",
    }
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": reasons[status], "content": {PROBLEM_TYPE: schema}, **_headers(status)}
        for status in statuses
    }


def _headers(status: int) -> dict[str, Any]:
    seconds = {"description": "seconds after which another try makes sense", "schema": {"type": "integer"}}
    return {"headers": {"Retry-After": seconds}} if status in {429, 503, 504} else {}


TIMEOUT_PARAMETER = {
    "parameters": [
        {
            "name": TIMEOUT_HEADER,
            "in": "header",
            "required": False,
            "description": "the caller's deadline; a request that cannot meet it is refused at once",
            "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
        }
    ]
}

CLASSIFY: dict[str, Any] = {
    "responses": problems(401, 408, 413, 415, 422, 424, 429, 500, 503, 504),
    "openapi_extra": TIMEOUT_PARAMETER,
    "response_model_exclude_unset": True,
    "tags": ["classify"],
}
