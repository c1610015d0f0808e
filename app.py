"""The service: `create_app()` from the environment, and `app` for gunicorn."""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # without it, an older one fails at an import
    sys.exit(f"flask-sse-relay needs Python 3.11 or newer, and this is {sys.version.split()[0]}")

import logging
import os
import tomllib
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from sse import SSE
from sse.errors import InvalidRequest, MethodNotAllowed, NotFound, SSEError
from sse.relay.drain import Phase
from sse.relay.output import BackgroundStream, LineHandler, in_background
from sse.setting_name import check_environment, load_file
from sse.settings import SettingError, Settings
from sse.web.call import current_call
from sse.web.log import FORMATTERS
from sse.web.report import report_failure, report_refusal
from sse.web.response import problem
from sse.web.state import current_state


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Return the service.

    :param config: settings that go before those of the environment (`FLASK_SSE_*`), which go before those of the TOML
        file that `SSE_CONFIG` in the environment names.
    :raises ValueError: for a wrong setting; the message names its key.
    """
    app = Flask(__name__, static_folder=None)
    if path := os.environ.get("SSE_CONFIG"):
        _read_file(app, path)
    check_environment(os.environ, Settings.keys())
    app.config.from_prefixed_env()
    app.config.update(config or {})
    SSE(app, demonstration=True, playground=True, docs=True)
    _log_streams(app.extensions["sse"].settings.log_format)
    app.add_url_rule("/healthz", view_func=healthz)
    app.add_url_rule("/readyz", view_func=readyz)
    app.register_error_handler(HTTPException, respond_to_routing)
    app.register_error_handler(Exception, respond_to_failure)
    return app


def _read_file(app: Flask, path: str) -> None:
    """Read a TOML file into the configuration.

    :raises ValueError: if that is not possible.
    """
    try:
        with open(path, "rb") as file:
            app.config.from_mapping(load_file(file, Settings.keys()))
    except OSError as error:
        raise SettingError(f"SSE_CONFIG names {path}, which cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"SSE_CONFIG names {path}, which is not TOML: {error}") from error


def healthz() -> Response:
    """Return 200 while the process serves requests, 503 while it drains."""
    if current_state().drain.phase() is not Phase.SERVING:
        return _plain_text("draining", 503)
    return _plain_text("ok")


def readyz() -> Response:
    """Return 200 if the process serves requests and its shared store is available, otherwise 503."""
    if current_state().drain.phase() is not Phase.SERVING:
        return _plain_text("draining", 503)
    if not current_state().access.throttle.has_store():
        return _plain_text("Redis unavailable", 503)
    return _plain_text("ok")


def _plain_text(word: str, status: int = 200) -> Response:
    return Response(
        f"{word}\n", status, content_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-store"}
    )


def respond_to_routing(error: HTTPException) -> Response:
    """Return what Flask itself refuses in the form of all refusals."""
    if error.code is not None and 300 <= error.code < 400:
        return Response(status=error.code, headers=error.get_headers())
    kinds: dict[int | None, type[SSEError]] = {404: NotFound, 405: MethodNotAllowed}
    refusal = kinds.get(error.code, InvalidRequest)()
    report_refusal(refusal)
    response = problem(refusal, current_call())
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return current_state().cross_origin.share(response)


def respond_to_failure(error: Exception) -> Response:
    """Return a 500 for a defect: its cause is logged, and not sent to the client."""
    report_failure(error)
    return current_state().cross_origin.share(problem(SSEError(), current_call()))


def _log_streams(form: str) -> None:
    """Write the `sse` log to standard error, unless it has a handler already."""
    log = logging.getLogger("sse")
    if not log.handlers:
        # A thread's name costs as much as the rest of a log record, and no form of a line shows it.
        logging.logThreads = False
        stream = in_background(sys.stderr, _report_lost)
        handler = LineHandler(stream) if isinstance(stream, BackgroundStream) else logging.StreamHandler(stream)
        handler.setFormatter(FORMATTERS[form]())
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def _report_lost(count: int) -> None:
    logging.getLogger("sse").warning("%d log lines were lost because their reader did not keep up", count)


app = create_app()

if __name__ == "__main__":
    sys.exit("this file is served, not run: gunicorn app:app (for development: flask --app app run)")
