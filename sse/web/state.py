"""What one app holds: made once at start, reached through `current_app.extensions["sse"]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from flask import Flask, current_app
from limits import RateLimitItem

from ..protocol.target.table import UpstreamTable
from ..relay.channel.hub import Channels
from ..relay.drain import Drain
from ..relay.durable import Recordings
from ..relay.exchange import Limits
from ..relay.lease import Leases
from ..relay.monitor import Monitor
from ..relay.upstream.client import UpstreamClient
from ..relay.upstream.failover import Failover
from ..settings import Settings
from .access.access import Access
from .access.origin import CrossOrigin
from .access.quota import Quotas

if TYPE_CHECKING:
    from .metrics import Metrics


class Demonstration(Protocol):
    """The demonstration upstream, which runs from its first call on."""

    @property
    def url(self) -> str:
        """Where it serves."""

    def ensure_started(self) -> None:
        """Start it, unless it runs."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The parts of the relay that belong to one app."""

    settings: Settings
    table: UpstreamTable
    upstreams: UpstreamClient
    #: Calls those that have several targets.
    failover: Failover
    leases: Leases
    channels: Channels
    #: Leases of those that read channels.
    readers: Leases
    monitor: Monitor
    drain: Drain
    limits: Limits
    cross_origin: CrossOrigin
    access: Access
    metrics: Metrics | None
    #: None if nothing is recorded.
    recordings: Recordings | None
    #: What each client may spend; None if there is no limit.
    quota: RateLimitItem | None
    quotas: Quotas
    demonstration: Demonstration | None


def current_app_itself() -> Flask:
    """Return the current app instead of Flask's proxy of it, which differs with each context."""
    # Flask gives the proxy the type of what it stands for, which has no such method.
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # the proxy's method, which Flask's documentation names
    return app


def state_of(app: Flask) -> State:
    """Return the state of an app.

    :raises RuntimeError: if it has none.
    """
    try:
        return cast(State, app.extensions["sse"])
    except KeyError:
        raise RuntimeError(f"the app {app.name!r} has no SSE: call SSE(app), or its init_app") from None


def current_state() -> State:
    """Return the state of the app that serves the current request.

    :raises RuntimeError: if it has none.
    """
    state: State | None = current_app.extensions.get("sse")
    return state_of(current_app) if state is None else state
