"""The forms of a log line: a line is a line, whatever is in it."""

from __future__ import annotations

import datetime
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sse.web.log import FORMATTERS, log_event

#: What a client may send to get a line of its own, or to steer a terminal.
HOSTILE = [
    "a\n2026-01-01 00:00:00,000 INFO stream end=complete",
    "a\r\nb",
    "a\rb",
    "a\x0bb\x0cc\x1cd\x1ee\x85f\u2028g\u2029h",
    'a" end="complete',
    "a end=complete",
    "\x1b[2J\x00\x07",
    "\\",
    "\udc80",
    "",
]


@pytest.fixture
def logger() -> Iterator[Callable[[str], tuple[logging.Logger, io.StringIO]]]:
    """`logger("json")` returns a logger with that formatter, and what it writes to."""
    log = logging.Logger("sse")

    def make(form: str) -> tuple[logging.Logger, io.StringIO]:
        output = io.StringIO()
        handler = logging.StreamHandler(output)
        handler.setFormatter(FORMATTERS[form]())
        log.addHandler(handler)
        return log, output

    yield make


Make = Callable[[str], tuple[logging.Logger, io.StringIO]]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_makes_neither_a_line_nor_a_field_in_text(logger: Make, value: str) -> None:
    log, output = logger("text")
    log_event(log, logging.INFO, "stream", {"client": value, "last": "yes"})
    written = output.getvalue()
    assert written.isascii() and written.removesuffix("\n").isprintable()
    assert written.splitlines() == [written.removesuffix("\n")]
    _, _, fields = written.partition(" stream client=")
    shown, end = json.JSONDecoder().raw_decode(fields)
    assert (shown, fields[end:]) == (value, " last=yes\n")


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_makes_neither_a_line_nor_a_field_in_json(logger: Make, value: str) -> None:
    log, output = logger("json")
    log_event(log, logging.INFO, "stream", {"client": value, "last": "yes"})
    written = output.getvalue()
    assert written.isascii() and written.removesuffix("\n").isprintable()
    shown = json.loads(written)
    assert list(shown) == ["time", "level", "logger", "message", "client", "last"]
    assert (shown["message"], shown["client"], shown["last"]) == ("stream", value, "yes")


@pytest.mark.parametrize("form", FORMATTERS)
@pytest.mark.parametrize("value", HOSTILE)
def test_neither_does_a_message_nor_an_exception(logger: Make, form: str, value: str) -> None:
    log, output = logger(form)
    try:
        raise ValueError(value)
    except ValueError:
        log.exception("failed: %s", value)
    first, *rest = output.getvalue().removesuffix("\n").splitlines()
    assert first.isprintable()
    assert all(line.startswith("    ") and line.isprintable() for line in rest), rest
    assert (form == "json") == (not rest)
    text = json.loads(first)["exception"] if form == "json" else output.getvalue()
    assert "Traceback (most recent call last)" in text and "ValueError" in text


def test_values_are_written_so_that_they_can_be_read_again(logger: Make) -> None:
    fields = {"end": "complete", "events": 3, "client": None, "total": 0.12, "upstream": "own:site.news"}
    log, text = logger("text")
    log_event(log, logging.INFO, "stream", fields)
    assert text.getvalue().endswith(" INFO stream end=complete events=3 client=- total=0.120 upstream=own:site.news\n")
    log, output = logger("json")
    log_event(log, logging.WARNING, "stream", fields)
    shown: dict[str, Any] = json.loads(output.getvalue())
    assert datetime.datetime.fromisoformat(shown.pop("time")).utcoffset() == datetime.timedelta(0)
    assert shown == {"level": "WARNING", "logger": "sse", "message": "stream", **fields}


def test_any_line_of_the_logger_is_an_object(logger: Make) -> None:
    log, output = logger("json")
    log.warning("the store is %s", "away", extra={"tries": 2, "level": "mine", "time": object()})
    shown = json.loads(output.getvalue())
    assert (shown["message"], shown["tries"], shown["level"]) == ("the store is away", 2, "WARNING")
    assert datetime.datetime.fromisoformat(shown["time"])


def test_a_line_that_is_not_wanted_is_not_made() -> None:
    class Never:
        def __str__(self) -> str:
            raise AssertionError("made")

    log = logging.Logger("sse", logging.WARNING)
    log_event(log, logging.INFO, "stream", {"client": Never()})
