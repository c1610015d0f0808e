"""The parts of the documentation that are made from the code, so that they cannot differ from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from docutils.nodes import Node
from flask import Flask
from prometheus_client.metrics import MetricWrapperBase
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from docs.capacity import STREAMS, Measured, rows
from sse import SSE
from sse.errors import REFUSALS, ClientGone
from sse.relay.stream.end import EndReason
from sse.settings import PREFIX, Settings
from sse.web.metrics import Metrics

#: A document of a service with credentials and metrics, so that it has all that there can be.
CONFIG = {
    "SSE_UPSTREAMS": {"demo": "http://127.0.0.1:9/"},
    "SSE_PASSCODES": {"client": "passcode"},
    "SSE_METRICS": True,
}


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(heads), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def comments(module: str, owner: str) -> dict[str, str]:
    """Return the `#:` comments of a class's attributes, by name."""
    found = ModuleAnalyzer.for_module(module).find_attr_docs()
    return {name: " ".join(lines).strip() for (known, name), lines in found.items() if known == owner}


def settings() -> str:
    """Return the table of all settings: key, default, meaning."""
    texts = comments("sse.settings", "Settings")
    rows = [(f"`{PREFIX}{each.name.upper()}`", f"`{_default(each)}`", texts[each.name]) for each in fields(Settings)]
    return table(("key", "default", "meaning"), rows)


def _default(setting: Field[Any]) -> str:
    value = setting.default_factory() if setting.default_factory is not MISSING else setting.default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def refusals() -> str:
    """Return the table of our own errors: status, code, meaning."""
    # No client reads the response when it has left.
    listed = sorted((each for each in REFUSALS if each is not ClientGone), key=lambda each: each.status)
    return table(("status", "`code`", "when"), [(str(each.status), f"`{each.code}`", each.title) for each in listed])


#: The end reasons, with what each means to an operator.
END_REASONS = {
    EndReason.COMPLETE: "the upstream's body came to its end and was sent whole",
    EndReason.CLIENT_GONE: "the client closed its connection; the upstream request was cancelled",
    EndReason.UPSTREAM_TRUNCATED: "the upstream's connection broke, or its framing did, before the body's end",
    EndReason.UPSTREAM_TIMEOUT: "no connection or no response head in time; the client got `504 upstream_timeout`",
    EndReason.UPSTREAM_FAILED: "no response that could be relayed; the client got a 502",
    EndReason.IDLE_TIMEOUT: "the upstream sent no byte for `SSE_IDLE_TIMEOUT`",
    EndReason.SEND_TIMEOUT: "the client took no byte for `SSE_SEND_TIMEOUT`",
    EndReason.MAX_DURATION: "the stream was open for `SSE_MAX_DURATION`",
    EndReason.DRAINING: "the worker is stopping; the error event has a `retry:` of 1 to 5 s",
    EndReason.STOPPED: "a client stopped what was recorded, or erased it",
    EndReason.RECORDER_LOST: "the process that recorded has gone; what it had appended is kept",
    EndReason.TOO_SLOW: "the client read more slowly than what is kept moves on",
    EndReason.ENDED_BY_OPERATOR: "an operator ended it with `flask sse end`",
    EndReason.CREDENTIAL_EXPIRED: "the client's token has expired, or its passcode was revoked",
    EndReason.INTERNAL_ERROR: "a fault of the gateway, or of the site's own iterable; the log has the traceback",
}


def end_reasons() -> str:
    """Return the table of end reasons: name, meaning.

    :raises KeyError: if a reason has no meaning above.
    """
    return table(("end reason", "meaning"), [(f"`{each}`", END_REASONS[each]) for each in EndReason])


def metrics() -> str:
    """Return the table of metrics: name, labels, meaning."""
    rows = []
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            rows.append((f"`{name}`", family.type, labels, family.documentation))
    return table(("metric", "type", "labels", "meaning"), rows)


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document of a service that has everything."""
    app = Flask(__name__)
    app.config.update(CONFIG)
    SSE(app, demonstration=True, channels=lambda request, channel: True, playground=True, docs=True)
    document: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
    return document


def endpoints() -> str:
    """Return a section for each endpoint, from the OpenAPI document."""
    return "\n".join(_section(openapi()))


def _section(document: Mapping[str, Any]) -> Iterator[str]:
    for path, item in document["paths"].items():
        operations = {method: item[method] for method in METHODS if method in item}
        operation = next(iter(operations.values()))
        names = " / ".join(method.upper() for method in operations)
        yield f"### `{names} {path.replace('{', '<').replace('}', '>')}`\n"
        yield f"{operation['summary']}. {operation.get('description', '')}\n"
        if parameters := [*item.get("parameters", ()), *_parameters(operations.values())]:
            rows = [(f"`{each['name']}`", each["in"], each.get("description", "")) for each in parameters]
            yield table(("parameter", "in", "meaning"), rows)
        if schema := _schema(document, operation):
            yield table(("field", "required", "default", "meaning"), _properties(schema))
        rows = [(status, _types(each), each["description"]) for status, each in operation["responses"].items()]
        yield table(("status", "content type", "meaning"), rows)


METHODS = ("get", "head", "post", "put", "patch", "delete")


def _parameters(operations: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the parameters that any of the methods has, each once."""
    found = {each["name"]: each for operation in operations for each in operation.get("parameters", ())}
    return list(found.values())


def _schema(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of the JSON that a method takes, if it is an object of our own."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    found: Mapping[str, Any] | None = document["components"]["schemas"].get(name)
    return found


def _properties(schema: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, each in schema["properties"].items():
        default = f"`{json.dumps(each['default'])}`" if "default" in each else ""
        yield f"`{name}`", "yes" if name in schema.get("required", ()) else "", default, each.get("description", "")


def _types(response: Mapping[str, Any]) -> str:
    """Return the content types of a response; an upstream's own are not repeated in each row."""
    types = list(response.get("content", {}))
    if "application/problem+json" in types:
        return "`application/problem+json`"
    return "the upstream's" if len(types) > 1 else ", ".join(f"`{each}`" for each in types)


def capacity() -> str:
    """Return the table of what so many streams need."""
    return table(("", *(f"{streams:,}" for streams in STREAMS)), rows())


def measured() -> str:
    """Return the table of what was measured, and of what is assumed."""
    texts, values = comments("docs.capacity", "Measured"), Measured()
    return table(
        ("measured", "value"), ((texts[each.name], f"{getattr(values, each.name):g}") for each in fields(Measured))
    )


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "refusals": refusals,
    "end-reasons": end_reasons,
    "metrics": metrics,
    "endpoints": endpoints,
    "capacity": capacity,
    "measured": measured,
}


class Generated(SphinxDirective):
    """Put one of the parts where it stands: `{generated} settings`."""

    required_arguments = 1

    def run(self) -> list[Node]:
        """Return what Sphinx makes of the part's Markdown."""
        return self.parse_text_to_nodes(PARTS[self.arguments[0]](), allow_section_headings=True)


def setup(app: Any) -> dict[str, bool]:
    """Give Sphinx the directive."""
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
