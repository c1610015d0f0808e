"""class SSE: puts the parts into a Flask app."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flask import Flask
from flask_cors import CORS
from flask_limiter import Limiter

from .cli.command import register_commands, told_plainly
from .demo.server import DemonstrationServer
from .protocol.target.table import UpstreamTable, parse_upstream
from .relay.drain import DRAIN_WRITE_WINDOW, Drain
from .relay.exchange import Limits
from .relay.lease import leases_in
from .relay.monitor import Monitor
from .relay.redis import SharedStore, nothing
from .relay.upstream.adapter import UpstreamAdapter, tls_context
from .relay.upstream.client import UpstreamClient
from .relay.upstream.dial import Dialer
from .relay.upstream.pool import Pool
from .settings import Settings
from .web.access.access import Access, Authorize
from .web.docs import docs_blueprint
from .web.page import page_blueprint, static_blueprint
from .web.response import EXPOSED_FIELDS, shared_fields
from .web.state import State
from .web.views import relay_blueprint, ticker_blueprint

if TYPE_CHECKING:
    from .web.metrics import Metrics

#: Connections kept for one upstream where the number of streams is not limited.
POOL_SIZE = 1000

#: Seconds for which a browser need not ask again whether it may call.
PREFLIGHT_AGE = 600


#: Seconds that a gunicorn worker may take to see that it is to stop, and then that nothing is open any more: it looks
#: once a second.
WORKER_POLLS = 2.0
#: Seconds between two looks at whether the worker is to stop.
NOTICE_INTERVAL = 0.25


def end_with_worker(app: Flask, worker: Any) -> None:
    """Let an app's streams end politely before gunicorn kills the worker; for `post_worker_init` in gunicorn.conf.py.

    A worker that is to stop (SIGTERM, SIGHUP, `max_requests`) lets streams go on for `graceful_timeout`, and what is
    open then is killed without any clean-up. With this, streams end a few seconds earlier: each with its next event,
    with an `event: error` that says `draining` and when to come back.

    :param worker: what gunicorn gives the hook.
    :raises RuntimeError: if the app has no SSE.
    """
    if "sse" not in app.extensions:
        raise RuntimeError(f"the app {app.name!r} has no SSE: call SSE(app), or its init_app")
    # A connection that carried a stream to its end is kept for so long, as if another request might come.
    grace = worker.cfg.graceful_timeout - worker.cfg.keepalive - WORKER_POLLS - DRAIN_WRITE_WINDOW
    drain: Drain = app.extensions["sse"].drain
    threading.Thread(target=_begin_with, args=(drain, worker, grace), name="sse-drain", daemon=True).start()


def _begin_with(drain: Drain, worker: Any, grace: float) -> None:
    """Begin to drain when gunicorn's worker begins to stop; nothing but polling shows that."""
    while worker.alive:
        time.sleep(NOTICE_INTERVAL)
    drain.begin(grace)


def _metrics(settings: Settings) -> Metrics | None:
    if not settings.metrics:
        return None
    from .web.metrics import new_metrics

    return new_metrics()


def _on_unavailable(metrics: Metrics | None, part: str) -> Callable[[], object]:
    """Return what counts that a part of ours needed the shared store in vain."""
    return metrics.store_errors.labels(part).inc if metrics is not None else nothing


class SSE:
    """The extension. What a deployment changes are `SSE_*` keys of the app's configuration; see `Settings`.

    :param app: the app to put it into; None: call `init_app` later.
    :param url_prefix: the path below which everything is served.
    :param authorize: tells the client's name from the request, or None if it is nobody you know.
    :param limiter: your own Limiter, if it is to keep our counts too; it should use the moving window.
    :param relay: whether there are the relay's endpoints; without them there are streams of the site's own alone.
    :param demonstration: whether there is `GET /sse`, and an upstream `demo` while `SSE_UPSTREAMS` is not set.
    :param client: whether `sse.js`, the browser client, is served: `url_for("sse_static.file", name="sse.js")`.
    :param playground: whether the page at `/` is served.
    :param docs: whether `/openapi.json` is served, and a page at `/docs` that shows it.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        url_prefix: str = "",
        authorize: Authorize | None = None,
        limiter: Limiter | None = None,
        relay: bool = True,
        demonstration: bool = False,
        client: bool = True,
        playground: bool = False,
        docs: bool = False,
    ) -> None:
        self._url_prefix = url_prefix
        self._authorize = authorize
        self._limiter = limiter
        self._relay = relay
        self._demonstration = demonstration
        self._client = client
        self._playground = playground
        self._docs = docs
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Register the parts that were asked for in an app; one instance may serve many apps.

        :raises ValueError: for a wrong setting; the message names its key.
        :raises RuntimeError: if the app has an SSE already.
        """
        if "sse" in app.extensions:
            raise RuntimeError(f"the app {app.name!r} has an SSE already")
        with told_plainly():
            settings = Settings.from_config(app.config)
            app.extensions["sse"] = self._state(settings)
        register_commands(app)
        parts = [relay_blueprint()] if self._relay else []
        if self._demonstration:
            parts.append(ticker_blueprint())
        if self._client or self._playground:
            parts.append(static_blueprint(has_page=self._playground))
        if self._playground:
            parts.append(page_blueprint())
        if self._docs:
            parts.append(docs_blueprint())
        if settings.metrics:
            from .web.metrics import metrics_blueprint

            app.register_blueprint(metrics_blueprint(), url_prefix=self._url_prefix or None)
        for part in parts:
            CORS(
                part,
                origins=list(settings.cors_origins),
                send_wildcard=True,
                expose_headers=list(EXPOSED_FIELDS),
                max_age=PREFLIGHT_AGE,
            )
            app.register_blueprint(part, url_prefix=self._url_prefix or None)

    def _state(self, settings: Settings) -> State:
        demonstration = DemonstrationServer() if self._demonstration and settings.upstreams is None else None
        upstreams = settings.upstreams or ()
        if demonstration is not None:
            upstreams = (parse_upstream("demo", demonstration.url),)
        table = UpstreamTable(upstreams, allow_public=settings.allow_public_targets)
        metrics = _metrics(settings)
        store = SharedStore(settings.storage_uri) if settings.storage_uri != "memory://" else None
        leases = leases_in(
            store,
            total=settings.max_streams,
            per_client=settings.max_streams_per_client,
            on_unavailable=_on_unavailable(metrics, "leases"),
        )
        drain = Drain()
        dialer = Dialer(allows=table.allows, lists=table.lists, timeout=settings.connect_timeout)
        pool = Pool(dialer, tls_context(settings.ca_file), size=settings.max_streams or POOL_SIZE)
        return State(
            settings=settings,
            table=table,
            upstreams=UpstreamClient(UpstreamAdapter(pool)),
            leases=leases,
            metrics=metrics,
            monitor=Monitor(drain),
            drain=drain,
            limits=Limits(
                open=settings.connect_timeout,
                head=settings.response_timeout,
                idle=settings.idle_timeout,
                send=settings.send_timeout,
                duration=settings.max_duration,
            ),
            shared_fields=shared_fields(settings.cors_origins),
            access=Access(
                settings,
                authorize=self._authorize,
                limiter=self._limiter,
                is_open=settings.is_open(has_authorize=self._authorize is not None),
                store=store,
                on_unavailable=_on_unavailable(metrics, "throttle"),
            ),
            demonstration=demonstration,
        )
