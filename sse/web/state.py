"""What one app holds: made once at start, reached through `current_app.extensions["sse"]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flask import Request, current_app, request

from ..protocol.target.table import UpstreamTable
from ..relay.drain import Drain
from ..relay.exchange import Limits
from ..relay.lease import Leases
from ..relay.monitor import Monitor
from ..relay.upstream.client import UpstreamClient
from ..settings import Settings

if TYPE_CHECKING:
    from ..demo.server import DemonstrationServer
    from .access.access import Access
    from .metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class State:
    """The parts of the relay that belong to one app."""

    settings: Settings
    table: UpstreamTable
    upstreams: UpstreamClient
    leases: Leases
    monitor: Monitor
    drain: Drain
    limits: Limits
    #: Fields of every relayed answer that tell scripts of other origins that they may read it.
    shared_fields: Sequence[tuple[str, str]]
    access: Access
    metrics: Metrics | None
    demonstration: DemonstrationServer | None


def current_request() -> Request:
    """Return the current request itself, to be handed on: every look at Flask's `request` finds it anew in four calls.

    :raises RuntimeError: if there is none.
    """
    # Flask gives the proxy the type of what is behind it, which has no such method.
    return cast(Request, request._get_current_object())  # type: ignore[attr-defined]


def current_state() -> State:
    """Return the state of the app that serves the current request.

    :raises RuntimeError: if it has none.
    """
    try:
        return cast(State, current_app.extensions["sse"])
    except KeyError:
        raise RuntimeError(f"the app {current_app.name!r} has no SSE: call SSE(app), or its init_app") from None
