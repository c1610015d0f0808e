"""What is used of gevent without its promise is as sse/compat/gevent.py expects it."""

from __future__ import annotations

import pytest

from sse.compat import gevent as compat

REMEDY = "change sse/compat/gevent.py to what gevent does now, and run tests/gunicorn; or cap gevent's version"


def test_gevent_is_as_expected() -> None:
    assert compat.unexpected() == [], REMEDY


def test_what_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherPool:
        def __init__(self, size: int) -> None:
            self._places = size

    monkeypatch.setattr(compat, "Pool", OtherPool)
    (sentence,) = compat.unexpected()
    assert "_semaphore" in sentence
