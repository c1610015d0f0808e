"""Contract with Flask-Limiter and limits: what sse/compat/flask_limiter.py and the throttle expect of them."""

from __future__ import annotations

from flask import Flask
from flask_limiter import Limiter, RequestLimit
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from sse.compat.flask_limiter import identifiers

REMEDY = "Flask-Limiter has changed: adapt sse/compat/flask_limiter.py or hold Flask-Limiter below this version"


def test_a_limit_of_a_request_has_what_it_was_counted_by() -> None:
    limiter = Limiter(lambda: "client", storage_uri="memory://", strategy="moving-window")
    app = Flask("contract")
    limiter.init_app(app)
    seen: list[RequestLimit | None] = []

    @app.get("/")
    @limiter.shared_limit(lambda: "3 per hour", lambda endpoint: "scope", key_func=lambda: "key")
    def view() -> str:
        seen.append(limiter.current_limit)
        return ""

    assert app.test_client().get("/").status_code == 200
    [current] = seen
    assert current is not None and hasattr(current, "request_args"), REMEDY
    assert list(identifiers(current)) == ["key", "scope"], REMEDY
    assert limiter.limiter.get_window_stats(current.limit, *identifiers(current)).remaining == 2, REMEDY


def test_a_limiter_may_be_given_another_storage_and_strategy() -> None:
    """The relay's own Limiter overrides both properties."""
    assert isinstance(Limiter.storage, property) and isinstance(Limiter.limiter, property), REMEDY
    assert MovingWindowRateLimiter(MemoryStorage()).storage is not None, REMEDY
