"""Checks the upstreams as they would be called: look-up, judgement, connection, TLS; and our clock against theirs."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from ...errors import SSEError, TargetNotAllowed, UpstreamTimeout
from ...protocol.http1.head import InvalidResponse, encode_request_head
from ...protocol.target.parse import Target
from ...relay.exchange import Exchange, Limits, Side, Stage
from ...relay.upstream.connection import Connection
from ...relay.upstream.dial import Dialer
from ...relay.upstream.pool import Pool, tls_context
from ...relay.upstream.request import USER_AGENT
from ...relay.upstream.transport import TLSTransport
from ...web.state import State
from .certificate import RENEWAL, days_left, explain
from .finding import Finding, fail, ok, warn

#: Seconds that two clocks may differ: beyond, certificates and tokens are taken for too old or too new.
CLOCK_SKEW = 30

AUTHORITY_HINT = "name the PEM file of its authority in SSE_CA_FILE"


def check_upstreams(state: State) -> Iterator[Finding]:
    """Yield how each upstream is, one after the other, each within the time-out for connections."""
    dialer = Dialer(allows=state.table.allows, lists=state.table.lists, timeout=state.settings.connect_timeout)
    pool = Pool(dialer, tls_context(state.settings.ca_file), size=0)
    for upstream in state.settings.upstreams or ():
        for base, targets in upstream.bases.items():
            ids = f" ({', '.join(targets)})" if targets else ""
            yield from _check(state, f"upstream {upstream.name}{ids}", base, pool)


def _check(state: State, what: str, base: Target, pool: Pool) -> Iterator[Finding]:
    where = f"{base.scheme}://{base.authority}"
    limit = state.settings.connect_timeout
    exchange = Exchange(None, Limits(open=limit, head=limit))
    side = exchange.upstream
    state.monitor.add(exchange)
    side.enter(Stage.OPEN)
    try:
        connection = pool.connect(base, side)
        try:
            days, skew = _days(connection), _skew(connection, base.authority, side)
        finally:
            connection.transport.close()
    except (SSEError, OSError, InvalidResponse) as error:
        text, remedy = _explain(error, side)
        yield fail(what, f"{where}: {text}", remedy)
    else:
        yield from _judge(what, where, days, skew)
    finally:
        state.monitor.discard(exchange)


def _days(connection: Connection) -> float | None:
    """Return the days for which the upstream's certificate is valid, None without TLS."""
    transport = connection.transport
    return days_left(transport.peer_certificate()) if isinstance(transport, TLSTransport) else None


def _skew(connection: Connection, authority: str, side: Side) -> float | None:
    """Return the seconds that our clock is ahead, None if the upstream sends no time.

    The request has no fields of its entry, because every response has a time.
    """
    request = [("Host", authority), ("User-Agent", USER_AGENT), ("Connection", "close")]
    head, _ = connection.exchange(encode_request_head("HEAD", "/", request), side)
    fields = {name.lower(): value for name, value in head.fields}
    try:
        # RFC 9111, section 4.2.3: a response that a cache kept is `Age` seconds older than now.
        sent = parsedate_to_datetime(fields["date"]).timestamp() + int(fields.get("age", 0))
    except (KeyError, TypeError, ValueError):
        return None
    return time.time() - sent


def _explain(error: Exception, side: Side) -> tuple[str, str]:
    """Return what went wrong, and what to do; in fixed words, because an upstream's text may contain anything."""
    reach = "check that it is running and that no firewall is between"
    if side.reason is not None or isinstance(error, UpstreamTimeout):
        stage = "response" if side.stage is Stage.HEAD else "connection"
        return f"no {stage} in time", f"{reach}; or a higher SSE_CONNECT_TIMEOUT"
    if isinstance(error, TargetNotAllowed):
        remedy = "a public name must resolve to public addresses; write the address itself into SSE_UPSTREAMS"
        return "its name resolves to a refused address", remedy
    if isinstance(error, SSEError):
        is_unknown = "resolve" in error.detail
        return error.detail, "fix the name in SSE_UPSTREAMS, or this machine's resolver" if is_unknown else reach
    if isinstance(error, ssl.SSLError):
        return explain(error, authority_hint=AUTHORITY_HINT)
    return "not an HTTP server", "fix the scheme and port in SSE_UPSTREAMS"


def _judge(what: str, where: str, days: float | None, skew: float | None) -> Iterator[Finding]:
    is_well = True
    if days is not None and days < RENEWAL:
        is_well = False
        yield warn(what, f"{where}: the certificate ends in {days:.1f} days", "check that it is renewed")
    if skew is not None and abs(skew) > CLOCK_SKEW:
        is_well = False
        side = "ahead of" if skew > 0 else "behind"
        yield warn(what, f"this clock is {abs(skew):.0f} s {side} the upstream's", "timedatectl set-ntp true")
    if is_well:
        yield ok(what, where if days is None else f"{where}, certificate for {days:.0f} days")
