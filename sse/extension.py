"""class SSE: puts the parts into a Flask app."""

from __future__ import annotations

from flask import Flask
from flask_cors import CORS
from flask_limiter import Limiter

from .protocol.target import UpstreamTable, parse_upstream
from .relay.adapter import RelayAdapter
from .relay.dial import Dialer
from .relay.lease import Leases
from .relay.upstream import Upstreams
from .relay.watch import Limits, Watches
from .settings import Settings
from .web.access import Access, Authorize
from .web.demo import DemonstrationServer
from .web.page import page_blueprint
from .web.response import EXPOSED_FIELDS
from .web.state import State
from .web.views import relay_blueprint, ticker_blueprint

#: Connections kept for one upstream where the number of streams is not limited.
POOL_SIZE = 1000


class SSE:
    """The extension. What a deployment changes are `SSE_*` keys of the app's configuration; see `Settings`.

    :param app: the app to put it into; None: call `init_app` later.
    :param url_prefix: the path below which everything is served.
    :param authorize: tells the client's name from the request, or None if it is nobody you know.
    :param limiter: your own Limiter, if it is to keep our counts too; it should use the moving window.
    :param demonstration: whether there is `GET /sse`, and an upstream `demo` while `SSE_UPSTREAMS` is not set.
    :param playground: whether the page at `/` is served.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        url_prefix: str = "",
        authorize: Authorize | None = None,
        limiter: Limiter | None = None,
        demonstration: bool = False,
        playground: bool = False,
    ) -> None:
        self._url_prefix = url_prefix
        self._authorize = authorize
        self._limiter = limiter
        self._demonstration = demonstration
        self._playground = playground
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Register the parts that were asked for in an app.

        :raises ValueError: for a wrong setting; the message names its key.
        """
        settings = Settings.from_config(app.config)
        app.extensions["sse"] = self._state(settings)
        parts = [relay_blueprint()]
        if self._demonstration:
            parts.append(ticker_blueprint())
        if self._playground:
            parts.append(page_blueprint())
        for part in parts:
            CORS(part, origins=list(settings.cors_origins), expose_headers=list(EXPOSED_FIELDS), max_age=600)
            app.register_blueprint(part, url_prefix=self._url_prefix or None)

    def _state(self, settings: Settings) -> State:
        demonstration = DemonstrationServer() if self._demonstration and settings.upstreams is None else None
        upstreams = settings.upstreams or ()
        if demonstration is not None:
            upstreams = (parse_upstream("demo", demonstration.url),)
        table = UpstreamTable(upstreams, allow_public=settings.allow_public_targets)
        dialer = Dialer(allows=table.allows, lists=table.lists, timeout=settings.connect_timeout)
        return State(
            settings=settings,
            table=table,
            upstreams=Upstreams(
                RelayAdapter(dialer, pool_size=settings.max_streams or POOL_SIZE, ca_file=settings.ca_file)
            ),
            leases=Leases(total=settings.max_streams, per_client=settings.max_streams_per_client),
            watches=Watches(),
            limits=Limits(
                open=settings.connect_timeout,
                head=settings.response_timeout,
                idle=settings.idle_timeout,
                send=settings.send_timeout,
                duration=settings.max_duration,
            ),
            access=Access(
                settings,
                authorize=self._authorize,
                limiter=self._limiter,
                is_open=settings.is_open(has_authorize=self._authorize is not None),
            ),
            demonstration=demonstration,
        )

