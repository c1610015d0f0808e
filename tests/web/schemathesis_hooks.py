"""What schemathesis cannot make up: targets that the service's table covers, and a chat for them."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import schemathesis

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT: Any = {"model": "demo", "messages": MESSAGES, "stream": True}
GENERATION = {"model": "demo", "input": {"messages": MESSAGES}}

#: Characters of a `header` that is sent on: the demonstration's server takes no more than 100 fields.
MOST_HEADER = 400


@schemathesis.hook
def before_call(context: Any, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Let valid calls reach the demonstration, and leave invalid ones as they are."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.headers and "Idempotency-Key" in case.headers:
        # The same key for another request is refused, whatever the schema says of each.
        case.headers["Idempotency-Key"] = uuid.uuid4().hex
    body: Any = case.body
    if case.path == "/forward-sse" and isinstance(body, dict):
        case.body = {**body, **aim(body)}
    elif case.path.startswith("/upstream/") and case.method == "POST":
        case.path_parameters = {"name": "chat", "path": "completions"}
        case.body, case.media_type = CHAT, "application/json"
    elif case.path.startswith("/upstream/") and case.method == "GET":
        case.path_parameters = {"name": "v1", "path": "models"}


def aim(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what replaces parts of a forward request so that it means something."""
    is_get = str(asked.get("method", "")).upper() == "GET"
    path = "v1/models" if is_get else "api/v1/services/aigc/text-generation/generation"
    header = asked.get("header", {})
    is_plain = isinstance(header, dict) and all(isinstance(value, str) for value in header.values())
    if not is_plain or len(json.dumps(header)) > MOST_HEADER:
        header = {"X-DashScope-SSE": "enable"}
    target = os.environ["DEMONSTRATION"] + path
    return {"targetUrl": target, "header": header, "body": None if is_get else GENERATION}
