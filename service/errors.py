"""The errors of the service, drawn as a tree. `service.http.problems` turns them into problem documents.

    ServiceError
    ├── MalformedRequest         400  not HTTP
    ├── Unauthorized             401  no API key, or a wrong one
    ├── Forbidden                403  the API key may not review
    ├── NotFound                 404  no such path, job or store
    ├── MethodNotAllowed         405  the path exists, the method does not
    ├── BodyTooSlow              408  a body that hardly arrives
    ├── AlreadyReviewed          409  another reviewer has the item, or has decided it
    ├── JobNotDone               409  results asked for too early
    ├── PayloadTooLarge          413  body, image bytes, pixels or number of listings over the limit
    ├── UnsupportedMediaType     415  not an accepted image format or request type
    ├── InvalidRequest           422  the caller's mistake, named
    │   ├── UnknownAttribute          an attribute that the checkpoint does not predict
    │   ├── UndecodableImage          an accepted format, but damaged
    │   └── ImageUrlForbidden         an address that must not be connected to from here
    ├── ImageFetchFailed         424  the image's host failed, timed out or sent something else
    │   └── ImageHostUnreachable      no address, no connection or no answer in time
    ├── RateLimited              429  more than one API key may send
    ├── ClientGone               499  the caller hung up: counted and logged, never sent
    ├── InferenceFailed          500  the model failed on this listing alone: a bug
    ├── Unavailable              503  another replica may answer; carries Retry-After
    │   ├── Overloaded                no room for this request
    │   ├── Draining                  stopping
    │   └── NotReady                  loading, or the inference thread has died
    └── DeadlineExceeded         504  the deadline passed, or cannot be met

Every error a caller can see is one of these. A message names what is wrong with the request: never a path of
this machine, a traceback, a title or an image.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self


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


class Forbidden(ServiceError):
    status, code = 403, "forbidden"


class NotFound(ServiceError):
    status, code = 404, "not_found"


class MethodNotAllowed(ServiceError):
    status, code = 405, "method_not_allowed"


class BodyTooSlow(ServiceError):
    status, code = 408, "body_too_slow"


class AlreadyReviewed(ServiceError):
    status, code = 409, "already_reviewed"


class JobNotDone(ServiceError):
    status, code = 409, "job_not_done"


class PayloadTooLarge(ServiceError):
    status, code = 413, "payload_too_large"

    @classmethod
    def bytes_of(cls, what: str, nbytes: int | None, limit: int, setting: str) -> Self:
        """Return the error for `what`, which has too many bytes (None: it is not known how many).

        setting: the environment variable of the service that the limit is from
        """
        if nbytes is None:
            return cls(f"{what} has more than {_size(limit)}, the limit of this service ({setting})")
        return cls(f"{what} has {_size(nbytes)}; at most {_size(limit)} are accepted ({setting})")


def _size(nbytes: int) -> str:
    """Bytes in MiB, rounded up, so that what is over a limit never reads like the limit."""
    return f"{nbytes:,} bytes" if nbytes < 2**20 else f"{math.ceil(nbytes / 2**20 * 10) / 10:g} MiB"


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


class ImageHostUnreachable(ImageFetchFailed):
    pass


class RateLimited(ServiceError):
    status, code = 429, "rate_limited"


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
