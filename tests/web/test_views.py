"""The relay's views in Flask's test client: what is taken for a stream is given back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import sse.web.views
from app import create_app

from ..support.upstream import Upstream, answer


def test_a_stream_whose_answer_cannot_be_made_is_given_back(
    upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise LookupError("a fault of ours")

    there = upstream(answer(b"data: 1\n\n"))
    app = create_app({"SSE_UPSTREAMS": {"there": there.url}})
    monkeypatch.setattr(sse.web.views, "stream_response", fail)
    assert app.test_client().get("/upstream/there/").status_code == 500
    state = app.extensions["sse"]
    assert (len(state.leases), len(state.monitor)) == (0, 0)
