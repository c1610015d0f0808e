"""The built-in demonstration upstream: two dialects of language models, which respond with fixed sentences.

`POST /v1/chat/completions` is OpenAI's chat completions, `POST /api/v1/services/aigc/text-generation/generation` is
DashScope's own. The relay reaches it over a real connection, like any upstream.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flask import Flask, Response, abort, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from ..protocol.event import ServerSentEvent

TEXT = (
    "你好！这是 flask-sse-relay 内置的演示，背后没有任何大模型。"
    "这段文字逐个词元生成，经过一条真实的网络连接，到达一个，转发一个。🌊\n\n"
    "Hello! This is the built-in demonstration of flask-sse-relay, and no language model is behind it. "
    "Every token of this text is an event of its own, relayed to you the moment it arrives. "
    "Name your own upstreams in SSE_UPSTREAMS, restart, and real responses stream here."
)

#: The model that every response names, whichever was requested.
MODEL = "demo"

#: The key that is accepted; so is none at all. Any other is refused, to show what a wrong key looks like.
KEY = "demo"

#: Seconds between two tokens, about what a language model takes.
DELAY = 0.04

#: Longest request body, bytes; it is only looked through, never used.
MAX_BODY = 1024 * 1024

_GENERATION_PATH = "/api/v1/services/aigc/text-generation/generation"
_TOKEN = re.compile(r"\s*(?:[\u4e00-\u9fff]{1,2}|[^\s\u4e00-\u9fff]+)|\s+")


def tokens_of(text: str) -> list[str]:
    """Return the text split as a tokenizer might: one or two Chinese characters, or a word with the space before it."""
    return _TOKEN.findall(text)


_TOKENS = tuple(tokens_of(TEXT))


def _demonstration(delay: float) -> Flask:
    """Return an app that serves both dialects.

    :param delay: seconds between two tokens of a stream.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.before_request(_check_key)
    app.add_url_rule("/v1/models", view_func=_list_models)
    app.add_url_rule("/v1/chat/completions", "chat", lambda: _complete_chat(delay), methods=["POST"])
    app.add_url_rule(_GENERATION_PATH, "generation", lambda: _generate(delay), methods=["POST"])
    app.register_error_handler(HTTPException, _refuse)
    return app


def _check_key() -> None:
    given = request.headers.get("Authorization")
    if given is None:
        return
    scheme, _, key = given.partition(" ")
    if scheme.lower() != "bearer" or key.strip() != KEY:
        abort(401, f"This demonstration accepts the API key {KEY!r}, or none; another one was sent.")


def _json(value: object, status: int = 200) -> Response:
    return Response(_encode(value), status=status, content_type="application/json")


def _encode(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _refuse(error: HTTPException) -> Response:
    """Return an error in the shape of the dialect whose path was called."""
    status, message = error.code or 500, error.description or error.name
    if request.path.startswith("/api/"):
        code = {401: "InvalidApiKey"}.get(status, "InvalidParameter" if status < 500 else "InternalError")
        response = _json({"code": code, "message": message, "request_id": str(uuid.uuid4())}, status)
    else:
        kind = "invalid_request_error" if status < 500 else "server_error"
        named = {401: "invalid_api_key", 404: "unknown_url"}.get(status)
        response = _json({"error": {"message": message, "type": kind, "param": None, "code": named}}, status)
    # RFC 9110 section 15.5.6: "The origin server MUST generate an Allow header field in a 405 response".
    if allowed := dict(error.get_headers()).get("Allow"):
        response.headers["Allow"] = allowed
    return response


def _object(value: object, name: str) -> dict[str, Any]:
    """Return a JSON object that may be left out; anything else is refused with 400."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        abort(400, f"{name} must be an object.")
    return value


def _flag(value: object, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        abort(400, f"{name} must be true or false.")
    return bool(value)


def _read_body() -> dict[str, Any]:
    try:
        body = json.loads(request.get_data())
    except (ValueError, RecursionError):  # the latter for very deep nesting
        abort(400, "The request body is not JSON.")
    if not isinstance(body, dict):
        abort(400, "The request body must be a JSON object.")
    return body


def _count_prompt(messages: object) -> int:
    """Return how many tokens the messages of a request hold; anything else is refused with 400."""
    if not isinstance(messages, list) or not messages:
        abort(400, "messages must be a list with at least one message.")
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
        abort(400, "Each of messages must be an object with a role.")
    return sum(len(tokens_of(text)) for message in messages for text in _texts(message.get("content")))


def _texts(content: object) -> list[str]:
    """Return the texts of a message's content: a string, or a list of parts of which some are text."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _list_models() -> Response:
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "flask-sse-relay"}
    return _json({"object": "list", "data": [model]})


# OpenAI's dialect


def _complete_chat(delay: float) -> Response:
    body = _read_body()
    prompt_tokens = _count_prompt(body.get("messages"))
    has_usage = _flag(_object(body.get("stream_options"), "stream_options").get("include_usage"), "include_usage")
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(_TOKENS),
        "total_tokens": prompt_tokens + len(_TOKENS),
    }
    if _flag(body.get("stream"), "stream"):
        events = _iter_chat_events(usage if has_usage else None, delay)
        return Response(events, content_type="text/event-stream; charset=utf-8")
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _json({**_chat_head("chat.completion"), "choices": [choice], "usage": usage})


def _chat_head(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": MODEL}


def _iter_chat_events(usage: dict[str, int] | None, delay: float) -> Iterator[bytes]:
    """Yield the events of a streamed completion; with `usage`, the last chunk contains it and all others null."""
    every = _chat_head("chat.completion.chunk")

    def encode(choices: list[dict[str, Any]], used: dict[str, int] | None = None) -> bytes:
        reported = {} if usage is None else {"usage": used}
        return ServerSentEvent(data=_encode({**every, "choices": choices, **reported})).encode()

    def choice(delta: dict[str, str], reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]

    yield encode(choice({"role": "assistant", "content": ""}))
    for token in _TOKENS:
        time.sleep(delay)
        yield encode(choice({"content": token}))
    yield encode(choice({}, "stop"))
    if usage is not None:
        yield encode([], usage)
    yield ServerSentEvent(data="[DONE]").encode()


# DashScope's own dialect


@dataclass(frozen=True, kw_only=True)
class _Generation:
    """One request for a generation, and the values its responses have in common."""

    input_tokens: int
    #: Whether `output` holds a message (as in OpenAI's dialect) or a plain text.
    has_message: bool
    #: Whether each event holds what is new, or all of the text so far.
    is_incremental: bool
    request_id: str

    def respond(self, text: str, output_tokens: int, reason: str) -> dict[str, Any]:
        output: dict[str, Any] = {"finish_reason": reason, "text": text}
        if self.has_message:
            output = {"choices": [{"finish_reason": reason, "message": {"role": "assistant", "content": text}}]}
        usage = {
            "input_tokens": self.input_tokens,
            "output_tokens": output_tokens,
            "total_tokens": self.input_tokens + output_tokens,
        }
        return {"output": output, "usage": usage, "request_id": self.request_id}


def _read_generation() -> _Generation:
    body = _read_body()
    given = _object(body.get("input"), "input")
    parameters = _object(body.get("parameters"), "parameters")
    prompt = given.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        abort(400, "input.prompt must be a string.")
    if parameters.get("result_format") not in (None, "text", "message"):
        abort(400, 'parameters.result_format must be "text" or "message".')
    return _Generation(
        input_tokens=len(tokens_of(prompt)) if prompt is not None else _count_prompt(given.get("messages")),
        has_message=parameters.get("result_format") == "message",
        is_incremental=_flag(parameters.get("incremental_output"), "parameters.incremental_output"),
        request_id=str(uuid.uuid4()),
    )


def _generate(delay: float) -> Response:
    generation = _read_generation()
    if request.headers.get("X-DashScope-SSE", "").lower() == "enable":
        return Response(_iter_generation_events(generation, delay), content_type="text/event-stream;charset=UTF-8")
    return _json(generation.respond(TEXT, len(_TOKENS), "stop"))


def _iter_generation_events(generation: _Generation, delay: float) -> Iterator[bytes]:
    """Yield the events of a streamed generation; before the last one, `finish_reason` is the string "null"."""
    text = ""
    for number, token in enumerate((*_TOKENS, ""), 1):
        if token:
            time.sleep(delay)
        text += token
        piece = token if generation.is_incremental else text
        data = _encode(generation.respond(piece, min(number, len(_TOKENS)), "null" if token else "stop"))
        # Written out, for DashScope puts no space after the colons, and the status into a comment.
        yield f"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:{data}\n\n".encode()


# The server


class _QuietHandler(WSGIRequestHandler):
    """Serves HTTP/1.1, for its chunked bodies, and logs no request."""

    protocol_version = "HTTP/1.1"
    # Seconds; for a peer that connects and sends nothing.
    timeout = 30

    def log(self, type: str, message: str, *args: object) -> None:
        """Log nothing: the gateway has a line for each stream already."""


class DemonstrationServer:
    """The demonstration on a loopback port of its own, which is bound at once and served from `ensure_started()` on.

    :param delay: seconds between two tokens of a stream.
    """

    def __init__(self, *, delay: float = DELAY) -> None:
        self._delay = delay
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._socket.getsockname()[1]
        #: Base URL of the upstream.
        self.url = f"http://127.0.0.1:{self._port}/"
        self._release = weakref.finalize(self, self._socket.close)
        self._locks: dict[int, threading.Lock] = {}
        self._started: tuple[BaseWSGIServer, threading.Thread] | None = None
        self._started_in: int | None = None

    def ensure_started(self) -> None:
        """Serve in a thread of this process, if it does not yet; threads do not survive a fork, the socket does."""
        if self._started_in == os.getpid():
            return
        # Made now, for gevent may have patched meanwhile: a greenlet that waits for an older one stops the process.
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            if self._started_in != os.getpid():
                self._start()

    def _start(self) -> None:
        app = _demonstration(self._delay)
        server = make_server(
            "127.0.0.1", self._port, app, threaded=True, request_handler=_QuietHandler, fd=self._socket.fileno()
        )
        thread = threading.Thread(target=server.serve_forever, name="demonstration", daemon=True)
        thread.start()
        self._started, self._started_in = (server, thread), os.getpid()

    def close(self) -> None:
        """Stop listening; responses that have begun go on to their end."""
        if self._started is not None and self._started_in == os.getpid():
            server, thread = self._started
            server.shutdown()
            # It closes its own descriptor of the socket as the last thing it does.
            thread.join()
        self._release()
