"""What a client may call: routes of an upstream, and the models that a request names."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

#: Path segments after which the next one is a model's name: OpenAI's and Gemini's `models/X`, Azure's `deployments/X`.
_MODEL_FOLDERS = ("models", "deployments")


@dataclass(frozen=True, kw_only=True)
class Route:
    """A method, and the path segments that a target has to begin with, below the upstream's URL."""

    method: str
    segments: tuple[str, ...]

    def covers(self, method: str, path: str) -> bool:
        """Return whether a call is allowed by this route.

        :param path: the path below the upstream's URL, as it was written; `%2F` is no slash.
        """
        return method == self.method and tuple(_segments(path)[: len(self.segments)]) == self.segments


def parse_route(text: str) -> Route:
    """Return the route that `"POST v1/chat/completions"` names.

    :raises ValueError: if it is not a method and a path.
    """
    method, _, path = text.partition(" ")
    segments = _segments(path.strip())
    if not (method.isascii() and method.isalpha() and method.isupper() and segments):
        raise ValueError(f"{text!r} is not a method and a path, such as 'POST v1/chat/completions'")
    if any(segment in (".", "..") or set(segment) & set("?#\\ ") for segment in segments):
        raise ValueError(f"the path of {text!r} is not one that a request can have")
    return Route(method=method, segments=tuple(segments))


def is_route_allowed(routes: Collection[Route], method: str, path: str) -> bool:
    """Return whether one of the routes covers a call; no routes allow all.

    HEAD is allowed where GET is (RFC 9110, section 9.3.2: it is the same but for the content).
    """
    methods = {method, "GET"} if method == "HEAD" else {method}
    return not routes or any(route.covers(known, path) for route in routes for known in methods)


def are_models_allowed(patterns: Collection[str], *, method: str, path: str, query: str, body: bytes | None) -> bool:
    """Return whether every model that a request names is allowed, and a request that runs a model names one.

    :param patterns: names, `*` standing for any characters; none allow all.
    """
    if not patterns:
        return True
    try:
        names = list(_named_models(path, query, body))
    except ValueError:
        return False
    if not names:
        return method in ("GET", "HEAD", "OPTIONS")
    return all(any(fnmatchcase(name, pattern) for pattern in patterns) for name in names)


def _named_models(path: str, query: str, body: bytes | None) -> Iterator[str]:
    """Yield each model that is named.

    :raises ValueError: if a name is not text, or stands there twice, for then two readers may take two models; or if
        the body is of a form that is not read.
    """
    segments = [urllib.parse.unquote(segment) for segment in _segments(path)]
    for folder, name in zip(segments, segments[1:], strict=False):
        if folder in _MODEL_FOLDERS:
            # Gemini: models/NAME:generateContent.
            yield name.partition(":")[0]
    yield from urllib.parse.parse_qs(query, keep_blank_values=True).get("model", [])
    if body:
        yield from _models_of(body)


def _models_of(body: bytes) -> list[str]:
    """Return the `model` of a JSON object, if it names one.

    :raises ValueError: if the body is anything else, in which a model may be named as well, or if it names two.
    """
    try:
        document = json.loads(body, object_pairs_hook=_Pairs)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not isinstance(document, _Pairs):
        raise ValueError("the body is not a JSON object")
    names = [value for key, value in document.pairs if key == "model"]
    if len(names) > 1 or not all(isinstance(name, str) for name in names):
        raise ValueError("model stands there twice, or is not text")
    return names


class _Pairs:
    """An object of JSON with its repeated keys."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]
