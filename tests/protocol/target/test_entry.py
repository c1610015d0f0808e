"""Entries of the upstream table that have several targets."""

from __future__ import annotations

from typing import Any

import pytest

from sse.protocol.target.entry import Upstream, parse_upstream
from sse.protocol.target.parse import parse_target
from sse.protocol.target.table import UpstreamTable
from sse.settings import SettingError, Settings

SECRET = "Bearer canary"


def several(base: str = "https://api.example.com/v1", **keys: Any) -> Upstream:
    targets = [
        {"id": "a", "weight": 3},
        {"id": "b", "url": "http://10.0.0.7/llm", "headers": {"Authorization": SECRET}},
    ]
    return parse_upstream("openai", {"url": base, "targets": targets, **keys})


def test_a_target_is_the_upstream_but_for_what_is_its_own() -> None:
    upstream = several(retry=[429, 503], affinity="X-Session")
    a, b = upstream.targets
    assert (a.id, a.weight, a.base, a.headers) == ("a", 3.0, upstream.base, ())
    assert (b.id, b.weight, b.base.url, b.headers) == ("b", 1.0, "http://10.0.0.7/llm", (("Authorization", SECRET),))
    assert (upstream.retry, upstream.affinity) == (frozenset({429, 503}), "x-session")
    assert "canary" not in repr(upstream) + str(upstream)


def test_an_entry_without_targets_has_none() -> None:
    plain = parse_upstream("openai", "https://api.example.com/")
    assert (plain.targets, plain.retry, plain.bases) == ((), frozenset(), {plain.base: []})


@pytest.mark.parametrize(
    ("base", "url", "located"),
    [
        ("https://api.example.com/v1", "https://api.example.com/v1/chat/x?q=%2F", "http://10.0.0.7/llm/chat/x?q=%2F"),
        ("https://api.example.com/v1/", "https://api.example.com/v1/chat", "http://10.0.0.7/llm/chat"),
        ("https://api.example.com/v1/", "https://api.example.com/v1/", "http://10.0.0.7/llm"),
        ("https://api.example.com/v1", "https://api.example.com/v1?q", "http://10.0.0.7/llm?q"),
        ("https://api.example.com/v1", "https://api.example.com/%761//a%2Fb/", "http://10.0.0.7/llm//a%2Fb/"),
        ("https://api.example.com/", "https://api.example.com/v1", "http://10.0.0.7/llm/v1"),
    ],
)
def test_a_target_is_located_below_another_url(base: str, url: str, located: str) -> None:
    upstream = several(base)
    target = parse_target(url)
    assert upstream.covers(target)
    assert upstream.locate(target, upstream.base) is target
    assert upstream.locate(target, upstream.targets[1].base).url == located


def test_addresses_of_targets_are_judged_as_those_of_upstreams() -> None:
    inner = [{"id": "a", "url": "http://10.0.0.7/"}, {"id": "b", "url": "https://b.example.com/"}]
    table = UpstreamTable([parse_upstream("openai", {"url": "https://api.example.com/", "targets": inner})])
    assert table.allows("10.0.0.7", "10.0.0.7") and not table.allows("10.0.0.8", "10.0.0.8")
    assert table.lists("b.example.com")
    assert not table.allows("b.example.com", "10.0.0.7") and table.allows("b.example.com", "93.184.215.14")


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("targets", {"targets": []}),
    ("targets", {"targets": None}),
    ("targets", {"targets": {"a": SECRET}}),
    ("targets[0]", {"targets": [SECRET]}),
    ("targets[0].id", {"targets": [{}]}),
    ("targets[0].id", {"targets": [{"id": SECRET}]}),
    ("targets[0].id", {"targets": [{"id": ""}]}),
    ("targets[0].id", {"targets": [{"id": ".a"}]}),
    ("targets[0].id", {"targets": [{"id": 1}]}),
    ("targets[1].id", {"targets": [{"id": "a"}, {"id": "a"}]}),
    ("targets[1]", {"targets": [{"id": "a"}, {"id": "b", "wieght": SECRET}]}),
    *(
        ("targets[1].weight", {"targets": [{"id": "a"}, {"id": "b", "weight": weight}]})
        for weight in (0, -1, "3", None, True, float("inf"), float("nan"), [SECRET])
    ),
    *(
        ("targets[1].url", {"targets": [{"id": "a"}, {"id": "b", "url": url}]})
        for url in (
            "",
            None,
            7,
            "ftp://b.example.com/",
            f"https://u:{SECRET}@b.example.com/",
            "https://b.example.com/?k=canary",
            "http://0.0.0.0/",
        )
    ),
    *(
        ("targets[0].headers", {"targets": [{"id": "a", "headers": headers}]})
        for headers in (SECRET, [SECRET], {"Host": SECRET}, {"A B": SECRET}, {"A": f"{SECRET}\n"}, {"A": "x", "a": "y"})
    ),
    *(
        ("retry", {"targets": [{"id": "a"}], "retry": retry})
        for retry in (429, "429", ["429"], [399], [600], [True], None, [429.0], [SECRET])
    ),
    *(
        ("affinity", {"targets": [{"id": "a"}], "affinity": affinity})
        for affinity in ("", "a b", 7, None, ["client"], "Host", "Content-Length")
    ),
    ("retry", {"retry": [429]}),
    ("affinity", {"affinity": "client"}),
]


@pytest.mark.parametrize(("key", "keys"), WRONG)
def test_a_wrong_value_is_named_by_its_key(key: str, keys: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as caught:
        Settings.from_config({"SSE_UPSTREAMS": {"openai": {"url": "https://api.example.com/", **keys}}})
    error: BaseException | None = caught.value
    assert str(error).startswith(f"SSE_UPSTREAMS.openai.{key}: ")
    while error is not None:
        assert "canary" not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
