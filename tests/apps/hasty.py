"""The service, whose recordings' processes are taken for dead within seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app import create_app
from sse.relay.log import redis, store

_TIMING = replace(store.Timing(), tick=0.5, look=0.2, alive=2.0, silence=0.5, reader=3)


def _hasty(**options: Any) -> store.Timing:
    return replace(_TIMING, **options)


setattr(redis, "Timing", _hasty)  # noqa: B010  # the module does not export it

app = create_app()
