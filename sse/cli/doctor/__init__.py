"""Looks whether a deployment is as it should be; `flask sse doctor` runs it."""

from __future__ import annotations

from collections.abc import Iterator

from ...web.state import State, current_state
from .finding import Finding, Level, show
from .public import Base, check_public, split_url
from .server import check_server
from .setting import check_settings
from .store import check_store
from .upstream import check_upstreams

__all__ = ["Base", "examine", "split_url"]


def examine(base: Base | None) -> int:
    """Check the current app's deployment, show each finding as it is made, and return how many failed.

    :param base: what clients call from outside; None: that is not looked at.
    """
    failed = 0
    for finding in _findings(current_state(), base):
        show(finding)
        failed += finding.level is Level.FAIL
    return failed


def _findings(state: State, base: Base | None) -> Iterator[Finding]:
    """Yield what is found, from what is nearest to what is farthest."""
    yield from check_settings(state)
    yield from check_server(state.settings)
    yield from check_store(state.settings.storage_uri)
    yield from check_upstreams(state)
    if base is not None:
        yield from check_public(base, trusted_proxies=state.settings.trusted_proxies)
