"""The forms of a log line: text of one line, or a JSON object; the service uses them, and a site may."""

from __future__ import annotations

import datetime
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

#: What every record has; the rest came by `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

#: Characters that begin a new line somewhere, steer a terminal, or cannot be written.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: What needs no quotes as a value.
_PLAIN = re.compile(r"[A-Za-z0-9._:/@+-]+")


class TextFormatter(logging.Formatter):
    """One line for each record, whatever is in it; a traceback follows, indented, so that it cannot pass for lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _CONTROL.sub(_escape, super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"    {_CONTROL.sub(_escape, line)}" for line in super().formatException(ei).split("\n"))


def _escape(control: re.Match[str]) -> str:
    return control[0].encode("unicode_escape").decode()


class JSONFormatter(logging.Formatter):
    """One JSON object for each record: `time`, `level`, `logger`, `message`, what came by `extra`, and `exception`.

    A record that has an `event` has all of its text in its fields, so the event is the message.
    """

    def format(self, record: logging.LogRecord) -> str:
        given = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": given.pop("event", None) or record.getMessage(),
        }
        # These come last as well, so that no field can replace them.
        entry = {**entry, **given, **entry}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


#: The values of SSE_LOG_FORMAT.
FORMATTERS: Mapping[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JSONFormatter}


def log_event(
    log: logging.Logger, level: int, event: str, fields: Mapping[str, Any], *, cause: BaseException | None = None
) -> None:
    """Log what happened, as text of one line; the fields are on the record too, for formatters that want them apart.

    :param fields: by names that no record has of its own.
    :param cause: logged with its traceback.
    """
    if log.isEnabledFor(level):
        exc_info = None if cause is None else (type(cause), cause, cause.__traceback__)
        # `Logger.log` would search the stack for the line that logs, which is always this one.
        extra = {"event": event, **fields}
        log.handle(log.makeRecord(log.name, level, __file__, 0, "%s %s", (event, _line(fields)), exc_info, extra=extra))


def _line(fields: Mapping[str, Any]) -> str:
    words = []
    for name, value in fields.items():
        # `quote`, written out for what most fields have.
        if value is None:
            value = "-"
        elif type(value) is not int and (type(value) is not str or not _PLAIN.fullmatch(value)):
            value = quote(value)
        words.append(f"{name}={value}")
    return " ".join(words)


def quote(value: object) -> str:
    """Return a value as one word, so that nothing in it can pass for something else."""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = "-" if value is None else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
