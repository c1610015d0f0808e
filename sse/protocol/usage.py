"""What an upstream reports of the tokens that a response took, found in the response's first and last bytes.

The meaning of the counts is that of OpenTelemetry's semantic conventions for generative AI: input includes what was
read from or written to a cache, output includes reasoning.

Strategy: nothing is searched while bytes pass. At the end, lines that may hold usage are parsed and read by path.
Inside a JSON string a quote is escaped (RFC 8259, section 7), so the bytes `"usage":` are a key wherever they stand;
where a line was kept only in part, the last such key that holds an object is taken. Usage is cumulative in nearly every
dialect, so the counts of several reports are merged by their maximum, never added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

#: Bytes kept of a response's beginning, where Anthropic's `message_start` and the model's name stand.
HEAD_SIZE = 4 * 1024
#: Bytes kept of its end, at least; up to twice as many between two compactions.
TAIL_SIZE = 16 * 1024
#: Bytes of the longest line that is parsed whole.
MAX_LINE = 64 * 1024
#: Lines that may report usage and are parsed, from each end of what was kept.
FIRST_LINES, LAST_LINES = 2, 8
#: The largest count that is believed: the largest integer that every JSON parser reads exactly (RFC 8259, section 6).
MAX_COUNT = 2**53
#: Characters of a model's name that are reported.
MAX_MODEL = 200

State = Literal["final", "partial", "none", "encoded"]
Object = Mapping[str, Any]

_LINE_END = re.compile(rb"\r\n|\r|\n")
_KEY = re.compile(rb'"(usage|usageMetadata|billed_units|eval_count)"[ \t\r\n]*:')
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one response; None is a count that was not reported."""

    input: int | None = None
    #: Parts of `input`.
    cached: int | None = None
    cache_write: int | None = None
    output: int | None = None
    #: A part of `output`.
    reasoning: int | None = None
    model: str | None = None

    def merge(self, other: Usage) -> Usage:
        """Return the larger of each count of two reports, and the first model that was named."""
        counts = {name: _larger(getattr(self, name), getattr(other, name)) for name in COUNTS}
        return Usage(**counts, model=self.model or other.model)

    @property
    def is_empty(self) -> bool:
        """Whether no count was reported."""
        return all(getattr(self, name) is None for name in COUNTS)


COUNTS = ("input", "cached", "cache_write", "output", "reasoning")


class UsageTap:
    """Keeps a response's first and last bytes as they pass; see `Tap` of the relay.

    :param clock: returns the time of the first event, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = float) -> None:
        self._clock = clock
        self._head = b""
        self._pieces: list[bytes] = []
        self._size = 0
        self._limit = HEAD_SIZE + TAIL_SIZE
        #: Pieces that passed.
        self.pieces = 0
        #: When the first piece with data passed by the clock; comments and pings are none.
        self.first_event: float | None = None

    def feed(self, piece: bytes) -> None:
        """Keep a piece; now and then, drop what is neither at the beginning nor at the end."""
        self._pieces.append(piece)
        self._size += len(piece)
        self.pieces += 1
        if self.first_event is None and b"data:" in piece:
            self.first_event = self._clock()
        if self._size > self._limit:
            self._compact()

    def finish(self) -> None:
        """Do nothing: what was kept is read by `usage()`."""

    def _compact(self) -> None:
        kept = b"".join(self._pieces)
        if not self._head:
            self._head, kept = kept[:HEAD_SIZE], kept[HEAD_SIZE:]
        self._pieces = [kept[-TAIL_SIZE:]]
        self._size, self._limit = len(self._pieces[0]), 2 * TAIL_SIZE

    def usage(self) -> Usage | None:
        """Return what was reported, None if nothing was."""
        tail = b"".join(self._pieces)
        return find_usage([self._head, tail] if self._head else [tail])


def usage_state(usage: Usage | None, *, is_complete: bool, is_encoded: bool = False) -> State:
    """Return how far a report can be relied on.

    :param is_complete: whether the response ended as its framing promised.
    :param is_encoded: whether its bytes have a content coding; then nothing can be read, and nothing is guessed.
    """
    if is_encoded:
        return "encoded"
    if usage is None:
        return "none"
    return "final" if is_complete else "partial"


def find_usage(parts: list[bytes]) -> Usage | None:
    """Return what a response reports, None if it reports nothing.

    :param parts: all of its bytes, or its first and its last ones.
    """
    found = Usage()
    for part in parts:
        for report in _reports(part):
            found = found.merge(report)
    return None if found.is_empty else found


def _reports(part: bytes) -> Iterator[Usage]:
    """Yield the reports of adjacent bytes: one JSON document, or lines of an event stream or of NDJSON."""
    document = _load(part) if part.lstrip()[:1] in (b"{", b"[") else None
    if document is not None:
        for item in document if isinstance(document, list) else [document]:
            yield _read_document(item)
        return
    lines = _LINE_END.split(part)
    candidates = [line for line in lines if _KEY.search(line)]
    if b'"model"' in lines[0]:
        yield Usage(model=_read_document(_load(_payload(lines[0]))).model)
    chosen = candidates[:FIRST_LINES] + candidates[max(FIRST_LINES, len(candidates) - LAST_LINES) :]
    reports = [_read_line(line) for line in chosen]
    yield from reports
    if all(report.is_empty for report in reports):
        # A document of many lines, of which only a part was kept.
        yield _read_value(part)


def _payload(line: bytes) -> bytes:
    # WHATWG HTML, section 9.2.5: "stream = [ bom ] *event"; JSON allows any white space behind the colon.
    line = line.removeprefix(b"\xef\xbb\xbf")
    return line[5:] if line.startswith(b"data:") else line


def _read_line(line: bytes) -> Usage:
    payload = _payload(line)
    document = _load(payload) if len(payload) <= MAX_LINE else None
    return _read_value(payload) if document is None else _read_document(document)


def _load(text: bytes) -> Any:
    """Return the JSON document that is all of the text, None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_value(text: bytes) -> Usage:
    """Return the value of the last key that holds usage, where the document around it is not known."""
    for match in reversed(list(_KEY.finditer(text))):
        value = _load_value(text[match.end() : match.end() + MAX_LINE])
        if isinstance(value, dict) and value:
            usage = _gemini(value) if match[1] == b"usageMetadata" else _read_object(value)
            if not usage.is_empty:
                return usage
    return Usage()


def _load_value(text: bytes) -> Any:
    try:
        return _DECODER.raw_decode(text.decode("utf-8", "replace").lstrip(" \t\r\n"))[0]
    except (ValueError, RecursionError):
        return None


def _read_document(document: Any) -> Usage:
    """Return what a document reports at the places where the dialects have it."""
    if not isinstance(document, dict):
        return Usage()
    found = Usage(model=_model(document))
    for value, read in _places(document):
        if isinstance(value, dict) and value:
            found = found.merge(read(value))
    return found


def _places(document: Object) -> Iterator[tuple[Any, Callable[[Object], Usage]]]:
    """Yield each place of a document where usage may stand, and what reads it there."""
    response, message, delta = (_object(document, name) for name in ("response", "message", "delta"))
    choices = document.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    for holder in (document, response, message, delta, first, _object(document, "x_groq")):
        yield holder.get("usage"), _read_object
    for holder in (document, response):
        yield _object(holder, "meta").get("billed_units"), _read_object
        yield holder.get("usageMetadata"), _gemini
    if "eval_count" in document:
        yield document, _ollama


def _object(holder: Object, name: str) -> Object:
    value = holder.get(name)
    return value if isinstance(value, dict) else {}


def _model(document: Object) -> str | None:
    holders = (document, _object(document, "response"), _object(document, "message"))
    names = (holder.get(key) for holder in holders for key in ("model", "modelVersion"))
    return next((name[:MAX_MODEL] for name in names if isinstance(name, str) and name), None)


def _read_object(usage: Object) -> Usage:
    """Return the numbers of a `usage` object; its keys determine its dialect."""
    if "prompt_tokens" in usage or "completion_tokens" in usage:
        return _openai_chat(usage)
    if "cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage:
        return _anthropic(usage)
    if "billed_units" in usage or "tokens" in usage:
        return _cohere(usage)
    if "inputTokens" in usage or "outputTokens" in usage:
        return Usage(
            input=_count(usage, "inputTokens"),
            output=_count(usage, "outputTokens"),
            cached=_count(usage, "cacheReadInputTokens"),
        )
    models = usage.get("models")
    return _dashscope_models(models) if isinstance(models, list) else _openai_responses(usage)


def _openai_chat(usage: Object) -> Usage:
    """Read OpenAI's chat completions and the many that are compatible with them."""
    details, output_details = _object(usage, "prompt_tokens_details"), _object(usage, "completion_tokens_details")
    cached = (
        _count(details, "cached_tokens"),
        _count(usage, "prompt_cache_hit_tokens"),
        _count(usage, "cached_tokens"),
    )
    prompt, output = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    reasoning, total = _count(output_details, "reasoning_tokens"), _count(usage, "total_tokens")
    # xAI leaves reasoning out of the completion, and counts it in the total.
    if reasoning and output is not None and total == (prompt or 0) + output + reasoning:
        output += reasoning
    if output is None and prompt is not None:
        # Embeddings have no completion.
        output = 0
    return Usage(input=prompt, output=output, reasoning=reasoning, cached=_first(*cached))


def _openai_responses(usage: Object) -> Usage:
    """Read OpenAI's Responses, and DashScope's own protocol, which names the details of its input as chat does."""
    details = (_object(usage, "input_tokens_details"), _object(usage, "prompt_tokens_details"))
    return Usage(
        input=_count(usage, "input_tokens"),
        output=_count(usage, "output_tokens"),
        cached=_first(*(_count(detail, "cached_tokens") for detail in details)),
        reasoning=_count(_object(usage, "output_tokens_details"), "reasoning_tokens"),
    )


def _anthropic(usage: Object) -> Usage:
    """Read Anthropic's messages, whose `input_tokens` leave out what a cache has to do with."""
    read, written = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
    return Usage(
        input=_sum([_count(usage, "input_tokens"), read, written]),
        cached=read,
        cache_write=written,
        output=_count(usage, "output_tokens"),
    )


def _dashscope_models(models: list[Any]) -> Usage:
    """Read the usage of DashScope's applications, which name each model that took part; here parts are added."""
    found = [_openai_responses(model) for model in models if isinstance(model, dict)]
    return Usage(input=_sum([usage.input for usage in found]), output=_sum([usage.output for usage in found]))


def _gemini(usage: Object) -> Usage:
    """Read Gemini's `usageMetadata`, whose candidates mostly leave out the thoughts; the total has both."""
    prompt, total = _count(usage, "promptTokenCount"), _count(usage, "totalTokenCount")
    tools, thoughts = _count(usage, "toolUsePromptTokenCount") or 0, _count(usage, "thoughtsTokenCount")
    candidates = _count(usage, "candidatesTokenCount")
    output = _sum([candidates, thoughts])
    if total is not None and prompt is not None:
        output = max(total - prompt - tools, 0)
    return Usage(
        input=None if prompt is None else prompt + tools,
        cached=_count(usage, "cachedContentTokenCount"),
        output=output,
        reasoning=thoughts,
    )


def _ollama(document: Object) -> Usage:
    """Read Ollama's last line; a prompt that older versions had cached has no count, which is not 0."""
    return Usage(
        input=_count(document, "prompt_eval_count"),
        output=_count(document, "eval_count"),
        cached=_count(document, "prompt_eval_cached_count"),
    )


def _cohere(usage: Object) -> Usage:
    """Read Cohere's usage: what is billed goes before what was counted."""
    billed, counted = _object(usage, "billed_units"), _object(usage, "tokens")
    return Usage(
        input=_first(_count(billed, "input_tokens"), _count(counted, "input_tokens")),
        output=_first(_count(billed, "output_tokens"), _count(counted, "output_tokens")),
    )


def _count(holder: Object, name: str) -> int | None:
    value = holder.get(name)
    # bool is an int to Python.
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def _first(*counts: int | None) -> int | None:
    return next((count for count in counts if count is not None), None)


def _sum(counts: list[int | None]) -> int | None:
    given = [count for count in counts if count is not None]
    return sum(given) if given else None


def _larger(one: int | None, other: int | None) -> int | None:
    return max((count for count in (one, other) if count is not None), default=None)
