"""API keys: who may call."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers

from service.errors import Unauthorized
from service.http.dependencies import PipelineDep
from service.http.middleware import record_of
from service.settings import ApiKey

KEY_SCHEMES = [Security(HTTPBearer(auto_error=False)), Security(APIKeyHeader(name="X-API-Key", auto_error=False))]
"""Declares the two ways of sending a key in the OpenAPI document; `check_key` is what checks it."""


async def require_key(request: Request, pipeline: PipelineDep) -> None:
    """A dependency for routes without a body; those with one check the key before they read it."""
    record_of(request).key = check_key(request.headers, pipeline.settings.api_keys)


def check_key(headers: Headers, keys: Iterable[ApiKey]) -> str | None:
    """Return the name of the key that was sent (`Authorization: Bearer` or `X-API-Key`).

    Without keys everyone may call, and it is None. Raises `Unauthorized`.
    """
    accepted = {key.secret.get_secret_value().encode(): key.name for key in keys}
    if not accepted:
        return None
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    sent = headers.get("X-API-Key") or (token.strip() if scheme.lower() == "bearer" else "")
    # All keys are compared before any result is used, so that the time taken reveals nothing about them.
    matches = [name for key, name in accepted.items() if hmac.compare_digest(key, sent.encode("latin-1"))]
    if not matches:
        raise Unauthorized("an API key is needed, as Authorization: Bearer … or X-API-Key: …")
    return matches[0]
