"""A site with Flask-Login whose views relay prompts of the site's own, for gunicorn."""

from __future__ import annotations

import json
import logging
import os

from flask import Flask, Response, request
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user

from sse import SSE, Refused

sse = SSE(authorize=lambda request: current_user.get_id())
login = LoginManager()


class User(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


@login.user_loader
def load(name: str) -> User:
    return User(name)


def create_app() -> Flask:
    app = Flask(__name__)
    logging.basicConfig(level=logging.INFO)
    app.config.from_mapping(
        SECRET_KEY="of the tests",
        SSE_UPSTREAMS=json.loads(os.environ["SITE_UPSTREAMS"]),
        SSE_MAX_STREAMS_PER_CLIENT=1,
    )
    login.init_app(app)
    sse.init_app(app)

    @app.post("/login/<name>")
    def log_in(name: str) -> str:
        login_user(User(name))
        return ""

    @app.post("/ask")
    @login_required
    def ask() -> Response:
        prompt = f"Translate: {request.get_json()['text']}"
        body = {"model": "a-model", "stream": True, "messages": [{"role": "user", "content": prompt}]}
        return sse.relay("model", "v1/chat?trace=1", json=body, headers={"X-Team": "red"}, client=current_user.get_id())

    @app.get("/second")
    def second() -> Response:
        try:
            return sse.relay("away", "x", method="GET")
        except Refused as refused:
            assert refused.error.code == "upstream_unreachable"
            return sse.relay("model", "second", data="plain", headers={"Content-Type": "text/plain", "Accept": "*/*"})

    @app.get("/away")
    def away() -> Response:
        return sse.relay("away", "x")

    @app.get("/healthz")
    def healthz() -> str:
        return ""

    @app.errorhandler(Exception)
    def fail(error: Exception) -> tuple[str, int]:
        return "the site's own error page", 500

    return app
