"""The endpoints' requests and responses, as OpenAPI 3.1 at `/openapi.json`, and a page that shows it at `/docs`.

The text is in `static/openapi.json`; what depends on the app and on the errors is added here. In the file, `x-part`
stands for what several have in common (one of `x-parts`), and `headers` may list names. `x-endpoint` is what must be
registered in Flask for a path to be served, `x-refusals` lists codes, or parts that do, and the example is made of
`x-curl` (the path, and options) and `x-body`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flask import Blueprint, Response, abort, current_app, jsonify, request, send_from_directory
from jinja2 import Environment
from markupsafe import Markup, escape
from pydantic.json_schema import models_json_schema

from ..errors import REFUSALS, MethodNotAllowed, OffsetExpired, SSEError, StreamInterrupted, Unauthenticated
from .model import ForwardRequest, Problem
from .page import STATIC, may_call, protect
from .state import State, current_state

#: What the page at `/docs` loads.
ASSETS = ("docs.css", "playground.css")

_BY_CODE = {refusal.code: refusal for refusal in REFUSALS}
#: Fields that a refusal has beside the usual ones.
_FIELDS_OF_REFUSALS: Mapping[type[SSEError], str] = {
    Unauthenticated: "WWW-Authenticate",
    MethodNotAllowed: "Allow",
    StreamInterrupted: "Stream-End",
    OffsetExpired: "Stream-Start-Offset",
}


def docs_blueprint() -> Blueprint:
    """Return the document and the page."""
    blueprint = Blueprint("sse_docs", __name__)
    blueprint.add_url_rule("/openapi.json", view_func=document)
    blueprint.add_url_rule("/docs", view_func=page)
    blueprint.add_url_rule("/docs/<name>", view_func=asset)
    blueprint.after_request(protect)
    return blueprint


def document() -> Response:
    """Serve the document."""
    return jsonify(_openapi())


def page() -> Response:
    """Serve the page: HTML without a script, made from the document."""
    description = _openapi()
    html = _template().render(
        document=description,
        operations=list(_iter_operations(description)),
        has_page="sse_page.index" in current_app.view_functions,
    )
    return Response(html, content_type="text/html; charset=utf-8")


def asset(name: str) -> Response:
    """Serve what the page needs."""
    return send_from_directory(STATIC, name) if name in ASSETS else abort(404)


def _template() -> Any:
    # An environment of its own: the site's may have other delimiters, filters and globals.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = _mark_code
    return environment.from_string((STATIC / "docs.html").read_text())


def _mark_code(text: str | None) -> Markup:
    """Return a text of the document as HTML: what stands between backticks is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text or ""))))


def _iter_operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the operations with what the page shows of each, those that succeed first among the responses."""
    for path, entry in document["paths"].items():
        for method, operation in _methods(entry):
            yield {
                **operation,
                "method": method,
                "path": path,
                "parameters": [*entry.get("parameters", ()), *operation.get("parameters", ())],
                "fields": list(_iter_fields(document, operation)),
                "responses": sorted(operation["responses"].items(), key=lambda entry: (entry[0][0] != "2", entry[0])),
            }


def _methods(entry: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the operations of a path by their methods."""
    return [(method, operation) for method, operation in entry.items() if method != "parameters"]


def _iter_fields(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the members of the JSON that an operation takes."""
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    model = document["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {})
    for name, member in model.get("properties", {}).items():
        required = name in model.get("required", ())
        yield {"default": None, **member, "name": name, "required": required}


# The document


def _openapi() -> dict[str, Any]:
    """Return the document of the current app, for the client of the current request."""
    state = current_state()
    base = re.sub("/(openapi.json|docs)$", "", request.script_root + request.path)
    url = request.host_url.rstrip("/") + base
    names = list(state.table.names) if may_call(state) else []
    text = (STATIC / "openapi.json").read_text()
    text = text.replace("/upstream/NAME/", f"/upstream/{names[0]}/" if names else "/upstream/NAME/")
    if state.demonstration is not None:
        text = text.replace("https://api.example.com/", state.demonstration.url)
    raw = json.loads(text)
    parts = raw.pop("x-parts")
    document: dict[str, Any] = _expand(raw, parts)
    paths, components = document["paths"], document["components"]
    if names:
        paths["/upstream/{name}/{path}"]["parameters"][0]["schema"]["enum"] = names
    document["paths"] = {
        path: entry for path, entry in paths.items() if entry.pop("x-endpoint") in current_app.view_functions
    }
    tags = set[str]()
    for entry in document["paths"].values():
        for _, operation in _methods(entry):
            tags.update(operation["tags"])
            _complete(operation, parts, state, url)
    document["tags"] = [tag for tag in document["tags"] if tag["name"] in tags]
    document["servers"] = [{"url": base or "/"}]
    _, schemas = models_json_schema(
        [(ForwardRequest, "validation"), (Problem, "serialization")], ref_template="#/components/schemas/{model}"
    )
    components["schemas"] = schemas["$defs"]
    if not state.settings.has_credentials:
        components["securitySchemes"] = {}
    return document


def _expand(node: Any, parts: Mapping[str, Any]) -> Any:
    """Return a node of the file, with the part that it names by `x-part`; names of fields become references."""
    if isinstance(node, list):
        return [_expand(each, parts) for each in node]
    if not isinstance(node, dict):
        return node
    shared = _expand(parts[node["x-part"]], parts) if "x-part" in node else {}
    own = {name: _expand(value, parts) for name, value in node.items() if name != "x-part"}
    if isinstance(fields := own.get("headers"), list):
        own["headers"] = _refer(fields)
    return {**shared, **own}


def _refer(fields: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in fields}


def _complete(operation: dict[str, Any], parts: Mapping[str, Any], state: State, url: str) -> None:
    """Add the example, the refusals and the credentials of an app to an operation."""
    path, *options = operation.pop("x-curl")
    wants_passcode = operation["security"] and not state.access.is_open
    operation["x-example"] = _curl(
        url + path, *options, wants_passcode=wants_passcode, body=operation.pop("x-body", None)
    )
    names = operation.pop("x-refusals")
    refusals = [_BY_CODE[code] for name in names for code in parts.get(name, (name,))]
    if state.access.is_open:
        refusals = [refusal for refusal in refusals if refusal is not Unauthenticated]
    responses = operation["responses"]
    # An upstream may send any status, also one that the gateway sends.
    theirs = responses.get("4XX", {"headers": {}, "content": {}})
    for status in sorted({refusal.status for refusal in refusals}):
        ours = _problem([refusal for refusal in refusals if refusal.status == status])
        headers, content = {**theirs["headers"], **ours["headers"]}, {**ours["content"], **theirs["content"]}
        responses[str(status)] = {**ours, "headers": headers, "content": content}
    if not state.settings.has_credentials:
        operation["security"] = []


def _problem(refusals: list[type[SSEError]]) -> dict[str, Any]:
    """Return the response of refusals that share a status."""
    codes = [refusal.code for refusal in refusals]
    known = {"properties": {"status": {"const": refusals[0].status}, "code": {"enum": codes}}}
    fields = [_FIELDS_OF_REFUSALS[refusal] for refusal in refusals if refusal in _FIELDS_OF_REFUSALS]
    if refusals[0].status in (429, 503):
        fields.append("Retry-After")
    return {
        "description": "; ".join(f"`{refusal.code}`: {refusal.title}" for refusal in refusals),
        "headers": _refer(["X-Request-Id", *fields]),
        "content": {
            "application/problem+json": {"schema": {"allOf": [{"$ref": "#/components/schemas/Problem"}, known]}}
        },
    }


def _curl(url: str, *options: str, wants_passcode: bool, body: object) -> str:
    """Return a call for a shell that shows events as they come.

    :param body: sent as JSON, unless it is None.
    """
    fields = [] if body is None else ["Content-Type: application/json"]
    if wants_passcode:
        fields.append("X-Passcode: YOUR_PASSCODE")
    lines = [" ".join(["curl", "-N", *options, shlex.quote(url)]), *(f"-H {shlex.quote(field)}" for field in fields)]
    if body is not None:
        lines.append(f"-d {shlex.quote(json.dumps(body))}")
    return " \\\n  ".join(lines)
