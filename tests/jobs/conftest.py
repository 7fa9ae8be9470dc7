"""The store's fixtures, as the tests of the service have them."""

from __future__ import annotations

from tests.service.conftest import postgresql, store_url

__all__ = ["postgresql", "store_url"]
