"""What one app holds: made once at start, reached through `current_app.extensions["sse"]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flask import current_app

from ..protocol.target import UpstreamTable
from ..relay.lease import Leases
from ..relay.upstream import Upstreams
from ..relay.watch import Limits, Watches
from ..settings import Settings

if TYPE_CHECKING:
    from .access import Access
    from .demo import DemonstrationServer


@dataclass(frozen=True, kw_only=True)
class State:
    """The parts of the relay that belong to one app."""

    settings: Settings
    table: UpstreamTable
    upstreams: Upstreams
    leases: Leases
    watches: Watches
    limits: Limits
    access: Access
    demonstration: DemonstrationServer | None


def current_state() -> State:
    """Return the state of the app that serves the current request."""
    return cast(State, current_app.extensions["sse"])
