"""Put the gateway into a Flask app: class `SSE`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, current_app, request_tearing_down
from flask_limiter import Limiter

from .assembly import build
from .cli.command import register_commands
from .relay.channel.history import check_channel
from .relay.channel.hub import ChannelInfo
from .relay.control import Control
from .relay.drain import DRAIN_EVENT_WINDOW, DRAIN_WRITE_WINDOW, WORKER_POLLS, Drain
from .relay.durable import Recordings
from .settings import SettingError, Settings
from .web.access.access import Authorize
from .web.call import close_dropped
from .web.channel import publish, subscribe
from .web.docs import docs_blueprint
from .web.page import page_blueprint, static_blueprint
from .web.refused import refusing
from .web.state import state_of
from .web.views import channels_blueprint, metrics_blueprint, relay_blueprint, ticker_blueprint
from .web.views.channels import MayRead
from .web.views.site import relay

#: Seconds between two looks at whether the worker stops.
NOTICE_INTERVAL = 0.25
#: Seconds before gunicorn kills the worker at which recordings end, so that their ends are stored.
RECORDING_MARGIN = 2.0


def end_with_worker(app: Flask, worker: Any) -> None:
    """Let an app's streams end politely before gunicorn kills the worker; for `post_worker_init` in gunicorn.conf.py.

    A worker that stops (SIGTERM, SIGHUP, `max_requests`) lets streams go on for `graceful_timeout`, and what is
    open then is killed without any clean-up. With this, streams end a few seconds earlier: each with its next event,
    with an `event: error` that contains `draining` and the reconnection time.

    :param worker: what gunicorn gives the hook.
    :raises RuntimeError: if the app has no SSE.
    :raises SettingError: if `SSE_CONTROL_DIR` cannot be used.
    """
    from .compat.gunicorn import graceful_times

    state = state_of(app)
    # A connection that carried a stream to its end is kept for so long, as if another request might come.
    graceful_timeout, keepalive = graceful_times(worker)
    grace = graceful_timeout - keepalive - WORKER_POLLS - DRAIN_WRITE_WINDOW
    drain, recordings = state.drain, state.recordings
    if recordings is not None and recordings.is_shared:
        left = graceful_timeout - RECORDING_MARGIN
        worker.run = partial(_run, worker.run, worker, drain, recordings, left)
    if directory := state.settings.control_dir:
        control = Control(state.monitor, Path(directory))
        try:
            control.open()
        except ValueError as error:
            raise SettingError(f"SSE_CONTROL_DIR: {error}") from error
        worker.run = partial(_run_controlled, worker.run, control)
    threading.Thread(target=_begin_with, args=(drain, worker, grace), name="sse-drain", daemon=True).start()


def _run(run: Callable[[], None], worker: Any, drain: Drain, recordings: Recordings, left: float) -> None:
    """Run a worker, and then what it still records: its clients have gone on to another process.

    :param left: seconds from the begin of the drain to the end of the last recording.
    """
    run()
    last = left + (time.monotonic() if drain.began is None else drain.began)
    recordings.finish(until=last - DRAIN_EVENT_WINDOW, last=last, keep_alive=worker.notify)


def _run_controlled(run: Callable[[], None], control: Control) -> None:
    """Run a worker that can be sent commands."""
    try:
        run()
    finally:
        control.close()


def _begin_with(drain: Drain, worker: Any, grace: float) -> None:
    """Begin to drain when gunicorn's worker begins to stop; nothing but polling shows that."""
    from .compat.gunicorn import is_alive

    while is_alive(worker):
        time.sleep(NOTICE_INTERVAL)
    drain.begin(grace)


class SSE:
    """The extension. A deployment changes the `SSE_*` keys of the app's configuration; see `Settings`.

    :param app: the app to put it into; None: call `init_app` later.
    :param url_prefix: the path below which everything is served.
    :param authorize: returns the client's name, or None for an unknown client; called with each request.
    :param limiter: the site's Limiter, which then counts for the gateway too; it should use the moving window.
    :param relay: whether the relay's endpoints are served; `relay()` and own streams work without them.
    :param demonstration: whether `GET /sse` is served, and an upstream `demo` while `SSE_UPSTREAMS` is not set.
    :param channels: whether a request may read a channel, `may_read(request, channel)`; only with it is
        `GET /channels?channel=a&channel=b` served.
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
        channels: MayRead | None = None,
        client: bool = True,
        playground: bool = False,
        docs: bool = False,
    ) -> None:
        self._url_prefix = url_prefix
        self._authorize = authorize
        self._limiter = limiter
        self._relay = relay
        self._demonstration = demonstration
        self._channels = channels
        self._client = client
        self._playground = playground
        self._docs = docs
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Register the chosen parts in an app; one instance may serve many apps.

        :raises ValueError: for a wrong setting; the message names its key.
        :raises RuntimeError: if the app has an SSE already.
        """
        if "sse" in app.extensions:
            raise RuntimeError(f"the app {app.name!r} has an SSE already")
        try:
            settings = Settings.from_config(app.config)
            state = app.extensions["sse"] = build(
                settings,
                authorize=self._authorize,
                limiter=self._limiter,
                has_demonstration=self._demonstration,
            )
        except ValueError as error:
            raise SettingError(str(error)) from error
        register_commands(app)
        for part in self._blueprints():
            part.after_request(state.cross_origin.share)
            app.register_blueprint(part, url_prefix=self._url_prefix or None)
        if settings.metrics:
            app.register_blueprint(metrics_blueprint(), url_prefix=self._url_prefix or None)
        request_tearing_down.connect(close_dropped, app)

    # They need no state of the instance: that is the current app's.
    relay = staticmethod(relay)
    publish = staticmethod(publish)
    subscribe = staticmethod(subscribe)

    def close_channel(self, channel: str) -> None:
        """Close a channel: its readers get the rest and end. It opens again with the next event.

        :raises ValueError: for a bad channel name.
        :raises StoreUnavailable: if it was not closed.
        """
        with refusing():
            state_of(current_app).channels.close_channel(check_channel(channel))

    def channel_info(self, channel: str) -> ChannelInfo:
        """Return the state of a channel in this process: its last event ID, its history, its readers.

        :raises ValueError: for a bad channel name.
        """
        return state_of(current_app).channels.info(check_channel(channel))

    def _blueprints(self) -> Iterator[Blueprint]:
        if self._relay:
            yield relay_blueprint()
        if self._demonstration:
            yield ticker_blueprint()
        if self._channels is not None:
            yield channels_blueprint(self._channels)
        if self._client or self._playground:
            yield static_blueprint(has_page=self._playground)
        if self._playground:
            yield page_blueprint()
        if self._docs:
            yield docs_blueprint()
