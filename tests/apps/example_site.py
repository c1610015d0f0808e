"""A site as people have them: accounts, a database, limits, CORS and error pages of its own, and the gateway in it.

`create_site(path)` is the site without the gateway; what `embed` does with it is all that embedding takes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask, Response, abort, g, jsonify, request, session
from flask_cors import CORS
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import (
    LoginManager,
    UserMixin,
    current_user,
    login_required,
    login_user,
)
from werkzeug.exceptions import HTTPException

from sse import SSE, EventSourceResponse

#: What puts something into the site; it is given the app and the site's Limiter.
Embed = Callable[[Flask, Limiter], object]


class User(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


def caller(_: object) -> str | None:
    """Return the name of who is logged in: what the gateway gets of the site's accounts."""
    return str(current_user.get_id()) if current_user.is_authenticated else None


def embed(app: Flask, _: Limiter) -> None:
    SSE(app, url_prefix="/ai", authorize=caller)
    app.add_url_rule("/news", view_func=login_required(news))


def news() -> Response:
    def events() -> Iterator[dict[str, int]]:
        for number in range(3):
            yield {"number": number}

    return EventSourceResponse(events())


def nothing(app: Flask, limiter: Limiter) -> None:
    """Embed nothing."""


def create_site(path: str, embed: Embed = nothing, **config: Any) -> Flask:
    """Return the site.

    :param path: of its SQLite database.
    :param embed: is called when the site is complete.
    """
    app = Flask(__name__)
    app.config.from_mapping(SECRET_KEY="of the site", RATELIMIT_HEADERS_ENABLED=True, **config)
    app.config.from_prefixed_env()
    # Its decorators hold it weakly, and with RATELIMIT_ENABLED=False nothing else would hold it.
    limiter = app.extensions["site"] = Limiter(get_remote_address, app=app, storage_uri="memory://")
    CORS(app, resources=r"/api/*", origins=["https://friend.example"], supports_credentials=True)
    _add_accounts(app)
    _add_database(app, path)
    _add_pages(app, limiter)
    _add_error_pages(app)
    app.context_processor(lambda: {"site": "of the site"})
    embed(app, limiter)
    return app


def create_embedded() -> Flask:
    """Return the site with the gateway in it, for servers."""
    return create_site(os.environ["SITE_DATABASE"], embed)


def _add_accounts(app: Flask) -> None:
    accounts = LoginManager(app)
    accounts.user_loader(User)
    accounts.unauthorized_handler(lambda: ("the site: log in first", 401))


def _add_database(app: Flask, path: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create table if not exists visits (path text)")
    database.close()

    @app.before_request
    def count_visit() -> None:
        g.database = sqlite3.connect(path)
        with g.database:
            g.database.execute("insert into visits values (?)", [request.path])
        if request.args.get("banned"):
            abort(403)

    @app.after_request
    def sign(response: Response) -> Response:
        response.headers["X-Site"] = "of the site"
        return response

    @app.teardown_request
    def close(_: object) -> None:
        if "database" in g:
            g.database.close()


def _add_pages(app: Flask, limiter: Limiter) -> None:
    @app.get("/healthz")
    def healthz() -> str:
        return "ok"

    @app.get("/login/<name>")
    def login(name: str) -> str:
        login_user(User(name))
        session["seen"] = 0
        return f"hello {name}"

    @app.get("/private")
    @login_required
    def private() -> str:
        session["seen"] += 1
        return f"private to {current_user.get_id()}"

    @app.get("/visits")
    def visits() -> Response:
        return jsonify(g.database.execute("select path, count(*) from visits group by path order by path").fetchall())

    @app.route("/api/data", methods=["GET", "PUT"])
    def data() -> Response:
        return jsonify(z=1, a="ü")

    @app.get("/limited")
    @limiter.limit("2 per hour")
    def limited() -> str:
        return "one of two"

    @app.get("/boom")
    def boom() -> str:
        raise LookupError("of the site")


def _add_error_pages(app: Flask) -> None:
    app.register_error_handler(404, lambda error: ("the site: not here", 404))
    app.register_error_handler(429, lambda error: (f"the site: {error.description}", 429))

    @app.errorhandler(Exception)
    def failed(error: Exception) -> tuple[str, int]:
        code = error.code if isinstance(error, HTTPException) else None
        return f"the site: {type(error).__name__}", code or 500
