"""What Flask-Limiter does not promise; tests/compat names what is expected of it."""

from __future__ import annotations

from collections.abc import Sequence

from flask_limiter import RequestLimit

NAMES = {"RequestLimit.request_args": "what a request was counted by"}


def identifiers(limit: RequestLimit) -> Sequence[str]:
    """Return the arguments with which Flask-Limiter counts a request in its strategy, behind the limit itself."""
    return limit.request_args
