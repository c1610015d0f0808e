"""What upstreams report of tokens, by dialect, in every cut; synthetic values, one shape for each API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sse.protocol.usage import HEAD_SIZE, TAIL_SIZE, Usage, UsageTap, find_usage, usage_state


def events(*documents: Any, end: str = "\n", space: str = " ") -> bytes:
    texts = (doc if isinstance(doc, str) else json.dumps(doc, separators=(",", ":")) for doc in documents)
    return "".join(f"data:{space}{text}{end}{end}" for text in texts).encode()


def chat(usage: Any, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": usage, **more}


FULL = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 12},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
PLAIN = {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}
DONE = "[DONE]"
EXPECTED = Usage(input=20, cached=12, output=9, reasoning=4, model="m")
SHORT = Usage(input=20, output=9, model="m")
RESPONSES = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 12},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 29,
}


def response(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "response": {"id": "r1", "model": "m", **more}}


def start(**usage: int) -> dict[str, Any]:
    return {"type": "message_start", "message": {"id": "msg", "model": "m", "content": [], "usage": usage}}


def delta(**usage: int) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


GEMINI = {
    "promptTokenCount": 20,
    "candidatesTokenCount": 9,
    "thoughtsTokenCount": 30,
    "cachedContentTokenCount": 12,
    "totalTokenCount": 59,
}
GEMINI_EARLY = {"promptTokenCount": 20, "totalTokenCount": 50, "thoughtsTokenCount": 30}
GEMINI_EXPECTED = Usage(input=20, cached=12, output=39, reasoning=30, model="m")
ZERO_START = {"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 0}
ANTHROPIC = {"input_tokens": 9, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 1}
ANTHROPIC_EXPECTED = Usage(input=10, cached=1, cache_write=0, output=16, model="m")

DIALECTS = {
    "openai-chat": (events(chat(None), chat(None), chat(FULL), DONE), EXPECTED),
    "openai-chat-null-after": (events(chat(FULL), chat(None), DONE), EXPECTED),
    "openai-chat-crlf": (events(chat(None), chat(FULL), DONE, end="\r\n"), EXPECTED),
    "openai-chat-cr": (events(chat(None), chat(FULL), DONE, end="\r"), EXPECTED),
    "openai-chat-bom": (b"\xef\xbb\xbf" + events(chat(None), chat(FULL), DONE), EXPECTED),
    "openai-chat-bom-before-usage": (b"\xef\xbb\xbf" + events(chat(FULL), DONE), EXPECTED),
    "mistral-two-spaces": (events(chat(None), chat(PLAIN), space="  "), SHORT),
    "deepseek": (
        events(chat({**PLAIN, "prompt_cache_hit_tokens": 12, "prompt_cache_miss_tokens": 8})),
        Usage(input=20, cached=12, output=9, model="m"),
    ),
    "kimi": (
        events({"model": "m", "choices": [{"index": 0, "usage": {**PLAIN, "cached_tokens": 12}}]}),
        Usage(input=20, cached=12, output=9, model="m"),
    ),
    "groq": (events({"model": "m", "choices": [], "x_groq": {"id": "q", "usage": PLAIN}}), SHORT),
    "xai-reasoning-outside": (
        events(
            chat(
                {
                    "prompt_tokens": 20,
                    "completion_tokens": 2,
                    "total_tokens": 52,
                    "completion_tokens_details": {"reasoning_tokens": 30},
                }
            )
        ),
        Usage(input=20, output=32, reasoning=30, model="m"),
    ),
    "vllm-cumulative": (
        events(*(chat({"prompt_tokens": 20, "completion_tokens": n, "total_tokens": 20 + n}) for n in range(10))),
        SHORT,
    ),
    "openrouter-comment-first": (b": OPENROUTER PROCESSING\n\n" + events(chat(None), chat(PLAIN), DONE), SHORT),
    "responses-completed": (events(response("created", usage=None), response("completed", usage=RESPONSES)), EXPECTED),
    "responses-incomplete": (events(response("incomplete", usage=RESPONSES)), EXPECTED),
    "responses-failed": (events(response("failed", usage=RESPONSES)), EXPECTED),
    "anthropic": (
        events(start(**ANTHROPIC, output_tokens=1), delta(**ANTHROPIC, output_tokens=16)),
        ANTHROPIC_EXPECTED,
    ),
    "anthropic-delta-has-output-only": (
        events(start(**ANTHROPIC, output_tokens=1), delta(output_tokens=16)),
        ANTHROPIC_EXPECTED,
    ),
    "anthropic-start-all-zero": (events(start(**ZERO_START), delta(**ANTHROPIC, output_tokens=16)), ANTHROPIC_EXPECTED),
    "anthropic-several-deltas": (
        events(start(**ANTHROPIC, output_tokens=1), delta(output_tokens=7), delta(output_tokens=16)),
        ANTHROPIC_EXPECTED,
    ),
    "gemini-sse": (
        events(
            {"candidates": [], "usageMetadata": GEMINI_EARLY, "modelVersion": "m"},
            {"candidates": [], "usageMetadata": GEMINI, "modelVersion": "m"},
        ),
        GEMINI_EXPECTED,
    ),
    "gemini-arguments-that-look-like-usage": (
        events(
            {
                "candidates": [{"content": {"parts": [{"functionCall": {"args": {"usageMetadata": {"a": 1}}}}]}}],
                "usageMetadata": GEMINI,
                "modelVersion": "m",
            }
        ),
        GEMINI_EXPECTED,
    ),
    "dashscope": (
        events(
            {"output": {}, "usage": {"total_tokens": 23, "output_tokens": 3, "input_tokens": 20}, "request_id": "q"},
            {
                "output": {},
                "usage": {
                    "output_tokens": 9,
                    "input_tokens": 20,
                    "output_tokens_details": {"reasoning_tokens": 4},
                    "prompt_tokens_details": {"cached_tokens": 12},
                },
            },
            space="",
        ),
        Usage(input=20, cached=12, output=9, reasoning=4),
    ),
    "dashscope-applications": (
        events(
            {
                "usage": {
                    "models": [
                        {"model_id": "a", "input_tokens": 12, "output_tokens": 4},
                        {"model_id": "b", "input_tokens": 8, "output_tokens": 5},
                    ]
                }
            }
        ),
        Usage(input=20, output=9),
    ),
    "ollama": (
        b'{"model":"m","message":{"content":"hi"},"done":false}\n'
        b'{"model":"m","done":true,"total_duration":5,"prompt_eval_count":20,"eval_count":9}\n',
        SHORT,
    ),
    "ollama-cached-prompt-is-unknown": (b'{"model":"m","done":true,"eval_count":9}\n', Usage(output=9, model="m")),
    "cohere-2": (
        events(
            {
                "type": "message-end",
                "delta": {
                    "usage": {
                        "billed_units": {"input_tokens": 20, "output_tokens": 9},
                        "tokens": {"input_tokens": 900, "output_tokens": 30},
                    }
                },
            }
        ),
        Usage(input=20, output=9),
    ),
    "cohere-1": (
        events({"response": {"meta": {"billed_units": {"input_tokens": 20, "output_tokens": 9}}}}),
        Usage(input=20, output=9),
    ),
    "whole-chat": (
        json.dumps({"model": "m", "choices": [{"message": {}}], "usage": FULL}, indent=1).encode(),
        EXPECTED,
    ),
    "whole-embeddings": (
        json.dumps({"model": "m", "data": [], "usage": {"prompt_tokens": 20, "total_tokens": 20}}).encode(),
        Usage(input=20, output=0, model="m"),
    ),
    "whole-gemini-array": (
        json.dumps(
            [{"usageMetadata": GEMINI_EARLY}, {"usageMetadata": GEMINI, "modelVersion": "m"}], indent=2
        ).encode(),
        GEMINI_EXPECTED,
    ),
    "whole-bedrock": (
        b'{"output":{},"usage":{"inputTokens":20,"outputTokens":9,"totalTokens":29}}',
        Usage(input=20, output=9),
    ),
    "tool-arguments-before-it": (
        json.dumps({"model": "m", "content": [{"input": {"usage": {"input_tokens": 7}}}], "usage": FULL}).encode(),
        EXPECTED,
    ),
    "zeros-are-values": (
        events(chat({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})),
        Usage(input=0, output=0, model="m"),
    ),
}


def kept(*pieces: bytes) -> Usage | None:
    tap = UsageTap()
    for piece in pieces:
        tap.feed(piece)
    tap.finish()
    return tap.usage()


@pytest.mark.parametrize(("body", "expected"), DIALECTS.values(), ids=DIALECTS)
def test_each_dialect_is_read(body: bytes, expected: Usage) -> None:
    assert kept(body) == expected


@pytest.mark.parametrize(("body", "expected"), DIALECTS.values(), ids=DIALECTS)
def test_every_cut_gives_the_same(body: bytes, expected: Usage) -> None:
    for cut in range(len(body)):
        assert kept(body[:cut], body[cut:]) == expected
    assert kept(*(body[at : at + 1] for at in range(len(body)))) == expected


@pytest.mark.parametrize(("body", "expected"), DIALECTS.values(), ids=DIALECTS)
def test_a_body_that_was_cut_is_never_read_as_more(body: bytes, expected: Usage) -> None:
    for cut in range(len(body)):
        found = kept(body[:cut])
        if found is not None:
            assert (found.output or 0) <= (expected.output or 0)


NOTHING = {
    "empty": b"",
    "no-usage": events(chat(None), DONE),
    "an-empty-object": events({"usage": {}}),
    "text-that-says-so": events({"choices": [{"delta": {"content": '"usage": {"prompt_tokens": 5}'}}]}),
    "not-json": b'data: "usage": nothing\n\n',
    "floats": events(chat({"prompt_tokens": 1.5, "completion_tokens": 2.0})),
    "booleans": events(chat({"prompt_tokens": True, "completion_tokens": False})),
    "negative": events(chat({"prompt_tokens": -1, "completion_tokens": -2})),
    "beyond-what-json-carries": events(chat({"prompt_tokens": 2**53 + 1})),
    "texts": events(chat({"prompt_tokens": "20"})),
    "a-list": events(chat([1, 2])),
    "deep": b'{"usage":' + b"[" * 100_000,
    "binary": bytes(range(256)) * 40,
}


@pytest.mark.parametrize("body", NOTHING.values(), ids=NOTHING)
def test_what_is_no_usage_is_none(body: bytes) -> None:
    assert kept(body) is None


def test_usage_at_the_end_of_an_event_of_2_mb_is_found() -> None:
    document = response("completed", output=["x" * 2_000_000], usage=RESPONSES)
    body = events(response("created", usage=None), document)
    found = kept(*(body[at : at + 1400] for at in range(0, len(body), 1400)))
    assert found == EXPECTED


def test_the_first_event_counts_however_long_the_rest_is() -> None:
    between = events({"type": "content_block_delta", "delta": {"text": "x" * 100}}) * 2000
    body = events(start(**ANTHROPIC, output_tokens=1)) + between + events(delta(output_tokens=16))
    assert kept(*(body[at : at + 200] for at in range(0, len(body), 200))) == ANTHROPIC_EXPECTED


def test_the_kept_end_of_a_pretty_printed_document_is_read() -> None:
    body = json.dumps({"model": "m", "choices": ["x" * 100_000], "usage": FULL}, indent=2).encode()
    found = kept(*(body[at : at + 1000] for at in range(0, len(body), 1000)))
    assert found is not None
    assert (found.input, found.output) == (20, 9)


def test_little_is_kept_of_much() -> None:
    tap = UsageTap()
    for _ in range(5000):
        tap.feed(b"data: x\n\n" * 20)
        assert sum(map(len, tap._pieces)) + len(tap._head) <= HEAD_SIZE + 2 * TAIL_SIZE + 180


@pytest.mark.parametrize(
    ("usage", "is_complete", "is_encoded", "state"),
    [
        (SHORT, True, False, "final"),
        (SHORT, False, False, "partial"),
        (None, True, False, "none"),
        (None, True, True, "encoded"),
    ],
)
def test_states(usage: Usage | None, is_complete: bool, is_encoded: bool, state: str) -> None:
    assert usage_state(usage, is_complete=is_complete, is_encoded=is_encoded) == state


def test_counts_are_merged_by_their_maximum() -> None:
    assert find_usage([events(chat(PLAIN)), events(chat(PLAIN))]) == SHORT
