"""Build one app's state from its settings: the one place where the parts are put together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flask_limiter import Limiter

from .demo.server import DemonstrationServer
from .protocol.target.entry import parse_upstream
from .protocol.target.table import UpstreamTable
from .relay.channel.history import HistoryLimits
from .relay.channel.hub import Channels
from .relay.channel.redis import RedisChannels
from .relay.drain import Drain
from .relay.durable import Recordings
from .relay.exchange import Limits
from .relay.lease import leases_in
from .relay.log.log import Log
from .relay.log.memory import MemoryLog
from .relay.log.redis import RedisLog
from .relay.monitor import Monitor
from .relay.redis import SharedStore, nothing
from .relay.upstream.client import UpstreamClient
from .relay.upstream.dial import Dialer
from .relay.upstream.failover import Failover
from .relay.upstream.fetch import fetch
from .relay.upstream.pool import Pool, tls_context
from .settings import Settings
from .web.access.access import Access, Authorize, Verify
from .web.access.clients import Directory, parse_quota
from .web.access.origin import CrossOrigin
from .web.access.quota import Quotas
from .web.access.throttle import Throttle
from .web.state import State

if TYPE_CHECKING:
    from .web.metrics import Metrics

#: Connections kept for one upstream where the number of streams is not limited.
POOL_SIZE = 1000


def build(
    settings: Settings, *, authorize: Authorize | None, limiter: Limiter | None, has_demonstration: bool
) -> State:
    """Return the state of one app; nothing is started or connected yet.

    :param authorize: the site's callback that returns a client's name.
    :param limiter: the site's Limiter, if it keeps the counts.
    :param has_demonstration: whether there is an upstream `demo` while `SSE_UPSTREAMS` is not set.
    :raises ValueError: if every client could use the upstreams' keys and `SSE_OPEN` does not allow it.
    """
    demonstration = DemonstrationServer() if has_demonstration and settings.upstreams is None else None
    entries = settings.upstreams or ()
    if demonstration is not None:
        entries = (parse_upstream("demo", demonstration.url),)
    table = UpstreamTable(entries, allow_public=settings.allow_public_targets)
    upstreams = _upstreams(settings, table)
    metrics = _metrics(settings)
    store = SharedStore(settings.storage_uri) if settings.storage_uri != "memory://" else None
    monitor = Monitor(drain := Drain())
    limits = Limits(
        open=settings.connect_timeout,
        head=settings.response_timeout,
        idle=settings.idle_timeout,
        send=settings.send_timeout,
        duration=settings.max_duration,
    )
    new_leases = partial(leases_in, store, on_unavailable=_on_unavailable(metrics, "leases"))
    cross_origin = CrossOrigin(settings.cors_origins)
    return State(
        settings=settings,
        table=table,
        upstreams=upstreams,
        failover=Failover(
            upstreams,
            limits=limits,
            on_attempt=metrics.count_attempt if metrics is not None else None,
        ),
        leases=new_leases(total=settings.max_streams, per_client=settings.max_streams_per_client),
        channels=_channels(settings),
        readers=new_leases(total=settings.max_readers, per_client=settings.max_readers_per_client, kind="readers"),
        metrics=metrics,
        monitor=monitor,
        drain=drain,
        limits=limits,
        recordings=_recordings(settings, limits, monitor, metrics),
        cross_origin=cross_origin,
        access=Access(
            directory=_directory(settings),
            verify=_verifier(settings) if settings.jwt else None,
            throttle=Throttle(
                limiter,
                store=store,
                on_unavailable=_on_unavailable(metrics, "throttle"),
                shows_all=bool(settings.throttle),
            ),
            rate=settings.throttle,
            trusted_proxies=settings.trusted_proxies,
            authorize=authorize,
            cross_origin=cross_origin,
            is_open=settings.is_open(has_authorize=authorize is not None),
        ),
        quota=parse_quota(settings.quota) if settings.quota else None,
        # Its count begins with the first failure, because most gateways have no quotas.
        quotas=Quotas(store, on_unavailable=lambda: _on_unavailable(metrics, "quotas")()),
        demonstration=demonstration,
    )


def _directory(settings: Settings) -> Directory:
    try:
        return Directory(settings.passcodes, Path(settings.clients_file) if settings.clients_file else None)
    except ValueError as error:
        raise ValueError(f"SSE_CLIENTS_FILE: {error}") from error


def _verifier(settings: Settings) -> Verify:
    """Return what verifies tokens, by keys of a file or of a URL, which is called as any upstream."""
    try:
        from .web.access.jwt import KeySet, Rules, Verifier
    except ImportError as error:
        raise ValueError(
            f"SSE_JWT needs a package that is not installed ({error.name}): pip install 'flask-sse-relay[jwt]'"
        ) from error
    given = settings.jwt
    rules = Rules(**{name: value for name, value in given.items() if name != "keys" and value})
    path = Path(given["keys"])
    if "://" not in given["keys"]:
        if not path.is_file():
            raise ValueError("SSE_JWT: keys is neither a URL nor a file that is there")
        keys = KeySet(path.read_bytes)
        if not keys.refresh():
            raise ValueError("SSE_JWT: keys is a file without a set of keys (RFC 7517)")
        return Verifier(rules, keys).verify
    try:
        entry = parse_upstream("keys", given["keys"])
    except ValueError as error:
        raise ValueError("SSE_JWT: keys is not a URL that can be called") from error
    upstreams = _upstreams(settings, UpstreamTable((entry,)))
    return Verifier(rules, KeySet(partial(fetch, upstreams, entry.base))).verify


def _upstreams(settings: Settings, table: UpstreamTable) -> UpstreamClient:
    dialer = Dialer(allows=table.allows, lists=table.lists, timeout=settings.connect_timeout)
    return UpstreamClient(Pool(dialer, tls_context(settings.ca_file), size=settings.max_streams or POOL_SIZE))


def _channels(settings: Settings) -> Channels:
    limits = HistoryLimits(
        events=settings.channel_history,
        seconds=settings.channel_history_seconds,
        bytes=settings.channel_history_bytes,
    )
    if settings.storage_uri == "memory://":
        return Channels(limits)
    return RedisChannels(limits, settings.storage_uri)


def _recordings(settings: Settings, limits: Limits, monitor: Monitor, metrics: Metrics | None) -> Recordings | None:
    if not settings.resume_ttl:
        return None
    log: Log
    uri, on_used = settings.storage_uri, metrics.kept_bytes.set if metrics is not None else bool
    most, memory = settings.resume_max_bytes, settings.resume_memory
    if uri == "memory://":
        log = MemoryLog(max_bytes=most, memory=memory, on_used=on_used)
    else:
        log = RedisLog(uri, max_bytes=most, memory=memory, on_used=on_used)
    return Recordings(log, monitor, limits)


def _metrics(settings: Settings) -> Metrics | None:
    if not settings.metrics:
        return None
    try:
        from .web.metrics import new_metrics
    except ImportError as error:
        raise ValueError(
            f"SSE_METRICS needs a package that is not installed ({error.name}): pip install 'flask-sse-relay[metrics]'"
        ) from error
    return new_metrics()


def _on_unavailable(metrics: Metrics | None, part: str) -> Callable[[], object]:
    """Return what counts that a part needed the shared store while it was unavailable."""
    return metrics.store_errors.labels(part).inc if metrics is not None else nothing
