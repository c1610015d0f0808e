"""The APIs of language models, as far as their clients need them: what each streams for a text, by its path."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from .upstream import EVENT_STREAM, LAST_CHUNK, Connection, Script, chunk, head


def chat_events(texts: Sequence[str]) -> Iterator[bytes]:
    """Yield the events of OpenAI's chat completions."""
    for text in texts:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        document = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
        yield f"data: {json.dumps(document)}\n\n".encode()
    yield b"data: [DONE]\n\n"


def generation_events(texts: Sequence[str]) -> Iterator[bytes]:
    """Yield the events of DashScope's own protocol."""
    for number, text in enumerate(texts, 1):
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "null"}
        data = json.dumps({"output": {"choices": [choice]}, "usage": {}, "request_id": "1"})
        yield f"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:{data}\n\n".encode()


def message_events(texts: Sequence[str]) -> Iterator[bytes]:
    """Yield the events of Anthropic's messages."""
    for name, data in _message_events(texts):
        yield f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def _message_events(texts: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    usage = {"input_tokens": 3, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
    yield "message_start", {"message": {**message, "stop_reason": None, "stop_sequence": None}}
    yield "content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}
    yield "ping", {}
    for text in texts:
        yield "content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}}
    yield "content_block_stop", {"index": 0}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    yield "message_delta", {"delta": end, "usage": {"output_tokens": 3}}
    yield "message_stop", {}


#: How the path of each API ends.
DIALECTS = {"/chat/completions": chat_events, "/generation": generation_events, "/v1/messages": message_events}


def speak(*texts: str) -> Script:
    """Return a script that responses each request in the dialect of its path."""

    def script(connection: Connection) -> None:
        while True:
            target = connection.read_request().target
            encode = next(encode for path, encode in DIALECTS.items() if target.endswith(path))
            connection.send(head(200, EVENT_STREAM, "request-id: req_1", "Transfer-Encoding: chunked"))
            for event in encode(texts):
                connection.send(chunk(event))
            connection.send(LAST_CHUNK)

    return script
