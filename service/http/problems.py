"""Turns errors into problem documents (RFC 9457): the one place that does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service.errors import BodyTooSlow, InvalidRequest, MethodNotAllowed, NotFound, ServiceError, Unauthorized
from service.request_form import MAX_NAME

PROBLEM_TYPE = "application/problem+json"


def as_service_error(error: Exception) -> ServiceError:
    """Translate whatever a route or the framework raised; anything unexpected becomes a bare 500."""
    match error:
        case ServiceError():
            return error
        case RequestValidationError():
            return InvalidRequest(describe(error.errors()))
        case HTTPException(__cause__=ServiceError() as cause):
            return cause  # ours, raised while FastAPI was reading the body, and wrapped by it
        case HTTPException(status_code=404 | 405 as status):
            missing = status == 404
            return NotFound("there is no such path") if missing else MethodNotAllowed("not with that method")
        case HTTPException(status_code=status) if status < 500:
            # The framework's own refusals of a body or form that it cannot parse.
            return InvalidRequest(error.detail)
        case _:
            return ServiceError("something went wrong on our side; the request id finds it in the logs")


def describe(errors: Sequence[Any]) -> str:
    """Describe in one line what pydantic found, field by field, without repeating the caller's values."""
    return "; ".join(map(_described, errors[:5]))


def _described(error: Any) -> str:
    field = ".".join(str(part)[:MAX_NAME] for part in error["loc"] if part != "body")
    message: str = error["msg"]
    if error["type"] == "value_error":  # one of ours, which says by itself what it is about
        message = message.removeprefix("Value error, ")
        return f"{field}: {message}" if field else message
    return f"{field or 'body'}: {message}"


def problem(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Return the problem document of RFC 9457."""
    titles = {499: "Client Closed Request"}
    return {
        "type": f"urn:cma-clip:problem:{error.code}",
        "title": titles.get(error.status) or HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }


def problem_response(error: ServiceError, request_id: str) -> JSONResponse:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooSlow):
        headers["Connection"] = "close"  # the rest of the body would come as slowly
    return JSONResponse(problem(error, request_id), status_code=error.status, headers=headers, media_type=PROBLEM_TYPE)
