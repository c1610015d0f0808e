"""The page at `/`, its files, and what it has to know of the gateway."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, jsonify, send_from_directory

from .state import current_state

STATIC = Path(__file__).parent.parent / "static"

#: Nothing but our own files, nothing inline, no frames: what a stream says can never become code here.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_blueprint() -> Blueprint:
    """Return the page and its files."""
    blueprint = Blueprint("sse_page", __name__)
    blueprint.add_url_rule("/", view_func=index)
    blueprint.add_url_rule("/sse-static/<name>", view_func=static_file)
    blueprint.add_url_rule("/playground.json", view_func=playground)
    blueprint.after_request(protect)
    return blueprint


def index() -> Response:
    """Serve the page."""
    return send_from_directory(STATIC, "index.html")


def static_file(name: str) -> Response:
    """Serve `sse.js` and what else the page needs."""
    return send_from_directory(STATIC, name)


def playground() -> Response:
    """Tell the page which upstreams there are: names only, for the page is open to all."""
    state = current_state()
    return jsonify(
        upstreams=list(state.table.names),
        demo=state.demonstration is not None,
        open=state.access.is_open,
    )


def protect(response: Response) -> Response:
    """Set what keeps a page of ours to our own files."""
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    # Revalidated each time, so that a page never meets the script of another version.
    response.headers["Cache-Control"] = "no-cache"
    return response
