"""`sse.js` and its types, the page at `/`, and what the page shows of the gateway."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

from flask import Blueprint, Response, abort, current_app, jsonify, request, send_from_directory

from ..errors import CrossSite, Throttled, Unauthenticated
from .call import current_call
from .state import State, current_state

STATIC = Path(__file__).parent.parent / "static"

#: What is served without the page: the browser client, its types, and the part for many tabs.
CLIENT_FILES = ("sse.js", "sse.d.ts", "shared.js")

#: Set here, because a machine's own table may differ: `.ts` is a video for many.
CONTENT_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}

#: Only our own files, nothing inline, no frames: the text of a stream can never become code here.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def static_blueprint(*, has_page: bool) -> Blueprint:
    """Return the blueprint that serves `sse.js`; `url_for("sse_static.file", name="sse.js")` is its URL.

    :param has_page: whether the page's own files are served too.
    """
    blueprint = Blueprint("sse_static", __name__)

    @blueprint.get("/sse-static/<name>")
    def file(name: str) -> Response:
        """Serve a file."""
        if not has_page and name not in CLIENT_FILES:
            abort(404)
        response = send_from_directory(STATIC, name)
        response.content_type = CONTENT_TYPES.get(Path(name).suffix, response.content_type)
        return response

    blueprint.after_request(protect)
    return blueprint


def page_blueprint() -> Blueprint:
    """Return the blueprint of the page at `/`."""
    blueprint = Blueprint("sse_page", __name__)
    blueprint.add_url_rule("/", view_func=index)
    blueprint.add_url_rule("/playground.json", view_func=playground)
    blueprint.after_request(protect)
    return blueprint


def index() -> Response:
    """Serve the page."""
    return send_from_directory(STATIC, "index.html")


def playground() -> Response:
    """Return what the page shows: the names of the upstreams only for a client that may call them."""
    state = current_state()
    return jsonify(
        upstreams=list(state.table.names) if may_call(state) else [],
        demo=state.demonstration is not None,
        open=state.access.is_open,
        resume=state.recordings is not None,
        docs="sse_docs.page" in current_app.view_functions,
        source=_source_url(),
    )


@cache
def _source_url() -> str:
    """Return where the source code is, if the package is installed and names it."""
    try:
        urls = metadata.metadata("flask-sse-relay").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    found: dict[str, str] = dict(url.split(", ", 1) for url in urls)
    return found.get("Source", found.get("Repository", ""))


def may_call(state: State) -> bool:
    """Return whether the client of the current request may call upstreams; a wrong passcode counts as one tried."""
    if state.access.is_open:
        return True
    try:
        state.access.admit(request, current_call())
    except (CrossSite, Throttled, Unauthenticated):
        return False
    return True


def protect(response: Response) -> Response:
    """Set the fields that restrict the page to the project's own files."""
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    # Revalidated each time, so that a page never loads the script of another version.
    response.headers["Cache-Control"] = "no-cache"
    return response
