"""The errors of the service, drawn as a tree, and the one place that turns them into problem documents.

    ServiceError
    ├── MalformedRequest         400  not HTTP
    ├── Unauthorized             401  no API key, or a wrong one
    ├── NotFound                 404  no such path
    ├── MethodNotAllowed         405  the path exists, the method does not
    ├── PayloadTooLarge          413  body, image bytes, pixels or number of listings over the limit
    ├── UnsupportedMediaType     415  not an accepted image format or request type
    ├── InvalidRequest           422  the caller's mistake, named
    │   ├── UnknownAttribute          an attribute that the checkpoint does not read
    │   ├── UndecodableImage          an accepted format, but damaged
    │   └── ImageUrlForbidden         an address that must not be dialled from here
    ├── ImageFetchFailed         424  the image's host failed, timed out or sent something else
    ├── ClientGone               499  the caller hung up: counted and logged, seen by nobody
    ├── InferenceFailed          500  the model failed on this listing alone: a bug
    ├── Unavailable              503  another replica may answer; carries Retry-After
    │   ├── Overloaded                no room for this request
    │   ├── Draining                  on the way out
    │   └── NotReady                  loading, or the inference thread has died
    └── DeadlineExceeded         504  the deadline passed, or cannot be met

Every error a caller can see is one of these. A message names what is wrong with the request: never a path of
this machine, a traceback, a title or an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

PROBLEM_TYPE = "application/problem+json"
MAX_NAME = 64
"""Characters that are repeated of a field's name: an unknown one is the caller's, and may be of any length."""


class ServiceError(Exception):
    """Base of all; its message is the problem's `detail`, fit to be shown to the caller."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        """`retry_after`: seconds after which another try makes sense."""
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after


class MalformedRequest(ServiceError):
    status, code = 400, "malformed_request"


class Unauthorized(ServiceError):
    status, code = 401, "unauthorized"


class NotFound(ServiceError):
    status, code = 404, "not_found"


class MethodNotAllowed(ServiceError):
    status, code = 405, "method_not_allowed"


class PayloadTooLarge(ServiceError):
    status, code = 413, "payload_too_large"


class UnsupportedMediaType(ServiceError):
    status, code = 415, "unsupported_media_type"


class InvalidRequest(ServiceError):
    status, code = 422, "invalid_request"


class UnknownAttribute(InvalidRequest):
    code = "unknown_attribute"


class UndecodableImage(InvalidRequest):
    code = "undecodable_image"


class ImageUrlForbidden(InvalidRequest):
    code = "image_url_forbidden"


class ImageFetchFailed(ServiceError):
    status, code = 424, "image_fetch_failed"


class ClientGone(ServiceError):
    status, code = 499, "client_gone"


class InferenceFailed(ServiceError):
    status, code = 500, "inference_failed"


class Unavailable(ServiceError):
    status = 503


class Overloaded(Unavailable):
    code = "overloaded"


class Draining(Unavailable):
    code = "draining"


class NotReady(Unavailable):
    code = "not_ready"


class DeadlineExceeded(ServiceError):
    status, code = 504, "deadline_exceeded"


def as_service_error(error: Exception) -> ServiceError:
    """Translate whatever a route or the framework raised; what nobody foresaw becomes a bare 500."""
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
    """Say in one line what pydantic found, place by place; the caller's own values are not repeated."""
    return "; ".join(
        f"{'.'.join(str(part)[:MAX_NAME] for part in error['loc'] if part != 'body') or 'body'}: "
        f"{error['msg'].removeprefix('Value error, ')}"
        for error in errors[:5]
    )


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
    return JSONResponse(problem(error, request_id), status_code=error.status, headers=headers, media_type=PROBLEM_TYPE)
