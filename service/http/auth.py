"""API keys: who may call."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import SecretStr
from starlette.datastructures import Headers

from service.errors import Unauthorized
from service.http.dependencies import PipelineDep

KEY_SCHEMES = [Security(HTTPBearer(auto_error=False)), Security(APIKeyHeader(name="X-API-Key", auto_error=False))]
"""Declares the two ways of sending a key in the OpenAPI document; `check_key` is what checks it."""


async def require_key(request: Request, pipeline: PipelineDep) -> None:
    """A dependency for routes without a body; those with one check the key before they read it."""
    check_key(request.headers, pipeline.settings.api_keys)


def check_key(headers: Headers, keys: Iterable[SecretStr]) -> None:
    """Check that one of `keys` was sent (`Authorization: Bearer` or `X-API-Key`); without keys, everyone may call.

    Raises `Unauthorized`.
    """
    accepted = [key.get_secret_value().encode() for key in keys]
    if not accepted:
        return
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    sent = headers.get("X-API-Key") or (token.strip() if scheme.lower() == "bearer" else "")
    # All keys are compared before any result is used, so that the time taken reveals nothing about them.
    matches = [hmac.compare_digest(key, sent.encode("latin-1")) for key in accepted]
    if not any(matches):
        raise Unauthorized("an API key is needed, as Authorization: Bearer … or X-API-Key: …")
