"""API keys: who may call."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.datastructures import Headers

from service.errors import Unauthorized


def check_key(headers: Headers, keys: Iterable[SecretStr]) -> None:
    """Raise `Unauthorized` unless a configured key was sent (`Authorization: Bearer` or `X-API-Key`), or none is."""
    accepted = [key.get_secret_value().encode() for key in keys]
    if not accepted:
        return
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    sent = headers.get("X-API-Key") or (token.strip() if scheme.lower() == "bearer" else "")
    # All keys are compared before any is looked at, so that the time taken tells nothing about them.
    matches = [hmac.compare_digest(key, sent.encode("latin-1")) for key in accepted]
    if not any(matches):
        raise Unauthorized("an API key is needed, as Authorization: Bearer … or X-API-Key: …")
