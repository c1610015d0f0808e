"""Recordings of one process: every view at every position, every state, who may, and what it costs whom."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from .support.ending import error_event, eventually
from .support.program import free_port
from .support.recording import BODY, TTL, Paced, location, post, read, reply, view
from .support.service import Service, call, forward
from .support.upstream import EVENT_STREAM, Connection, Upstream, head, respond

PASSCODES = {"ada": "ada's passcode", "bob": "bob's passcode"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def shared(upstream: Upstream) -> Iterator[Service]:
    with Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_THROTTLE="", SSE_METRICS=True) as service:
        yield service


@pytest.fixture
def service(shared: Service) -> Service:
    return shared


@pytest.fixture(autouse=True)
def settled(upstream: Upstream) -> Iterator[None]:
    """Leave nothing of a test to the next one."""
    yield
    upstream.settle()


def recorded(service: Service, upstream: Upstream, *pieces: bytes, **fields: str) -> str:
    """Record a whole response, and return where it is."""
    upstream.script = respond(*pieces)
    with closing(post(service, **fields)) as client:
        place = location(client)
        assert client.read_body() == b"".join(pieces)
        assert client.is_complete
    return place


# The POST's own response.


def test_the_response_says_where_it_is_recorded(service: Service, upstream: Upstream) -> None:
    upstream.script = respond(BODY)
    with closing(post(service, Stream_TTL="30")) as client:
        found = client.read_head()
        assert found.status == 200
        assert found.field(
            "Location",
        ).startswith("/streams/")  # type: ignore[union-attr]  # None fails the test as well
        assert len(found.field("Location").removeprefix("/streams/")) >= 22  # type: ignore[union-attr]  # None fails the test as well
        assert found.field("Stream-Next-Offset") == "0" * 16
        assert found.field("Stream-TTL") == "30"
        assert found.field("Content-Type") == "text/event-stream"
        assert client.read_body() == BODY
        assert client.is_complete


def test_what_opts_in_stays_here(service: Service, upstream: Upstream) -> None:
    recorded(service, upstream, BODY, Stream_Leave="5", Idempotency_Key="k" * 16 + str(time.time()))
    sent = {name.lower() for name, _ in upstream.requests[-1].fields}
    assert sent.isdisjoint({"stream-ttl", "stream-leave", "idempotency-key"})


def test_the_granted_time_is_bounded(service: Service, upstream: Upstream) -> None:
    upstream.script = respond(BODY)
    with closing(post(service, Stream_TTL="999999")) as client:
        assert client.read_head().field("Stream-TTL") == "300"


def test_a_forward_request_opts_in_by_its_json(service: Service, upstream: Upstream) -> None:
    upstream.script = respond(BODY)
    with closing(forward(service, upstream.url, resume=20)) as client:
        place = location(client)
        assert client.head is not None
        assert client.head.field("Stream-TTL") == "20"
        assert client.read_body() == BODY
    assert read(service, place).body == BODY


def test_scripts_of_other_origins_can_resume(service: Service, upstream: Upstream) -> None:
    upstream.script = respond(BODY)
    with closing(post(service, Origin="https://site.example")) as client:
        exposed = client.read_head().field("Access-Control-Expose-Headers") or ""
        place = client.head.field("Location")  # type: ignore[union-attr]  # None fails the test as well
        assert {"Location", "Stream-Next-Offset", "Stream-TTL"} <= set(exposed.split(", "))
    asked: dict[str, Any] = {"Origin": "https://site.example", "Access-Control-Request-Method": "POST"}
    preflight = reply(
        call(
            service,
            "OPTIONS",
            "/upstream/test/",
            {**asked, "Access-Control-Request-Headers": "stream-ttl, stream-leave, idempotency-key"},
        )
    )
    allowed = preflight.fields["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("stream-ttl", "stream-leave", "idempotency-key"))
    for method in ("PATCH", "DELETE"):
        preflight = reply(call(service, "OPTIONS", str(place), {**asked, "Access-Control-Request-Method": method}))
        assert method in preflight.fields["access-control-allow-methods"]
    assert (
        "Stream-Closed"
        in read(service, str(place), Origin="https://site.example").fields["access-control-expose-headers"]
    )


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(respond(b"{}", status=429, fields=("Content-Type: application/json",)), id="an error"),
        pytest.param(respond(b"x", fields=(EVENT_STREAM, "Content-Encoding: gzip")), id="a content coding"),
    ],
)
def test_other_responses_are_relayed_without_recording(
    service: Service, upstream: Upstream, script: Callable[[Connection], object]
) -> None:
    upstream.script = script
    with closing(post(service)) as client:
        found = client.read_head()
        assert found.field("Location") is None
        assert found.field("Stream-TTL") is None
        client.read_body()
        assert client.is_complete


def test_a_client_that_does_not_opt_in_gets_no_recording(service: Service, upstream: Upstream) -> None:
    upstream.script = respond(BODY)
    with closing(call(service, "POST", "/upstream/test/", {"Stream-Leave": "5"}, b"{}")) as client:
        assert client.read_head().field("Location") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"Stream-TTL": "soon"},
        {"Stream-TTL": "0"},
        {"Stream-TTL": "-5"},
        {"Stream-TTL": "1.5"},
        {"Stream-TTL": ""},
        {"Stream-TTL": "9" * 400},
        {"Stream-TTL": "60", "Stream-Leave": "never"},
        {"Stream-TTL": "60", "Stream-Leave": "-1"},
        {"Stream-TTL": "60", "Idempotency-Key": "short"},
        {"Stream-TTL": "60", "Idempotency-Key": "k" * 256},
        {"Stream-TTL": "60", "Idempotency-Key": "with a blank inside it"},
        {"Idempotency-Key": "short"},
    ],
    ids=str,
)
def test_a_malformed_field_is_refused(service: Service, upstream: Upstream, fields: dict[str, str]) -> None:
    seen = len(upstream.requests)
    found = reply(call(service, "POST", "/upstream/test/", {**fields}, b"{}"))
    assert found.status == 400
    assert json.loads(found.body)["code"] == "invalid_request"
    assert len(upstream.requests) == seen


@pytest.mark.parametrize("resume", [0, -1, 1.5, "60", True, [], 10**30])
def test_a_malformed_resume_is_refused(service: Service, upstream: Upstream, resume: object) -> None:
    found = reply(forward(service, upstream.url, resume=resume))
    if resume == 10**30:
        assert found.status in (200, 400)
        return
    assert found.status == 400
    assert "resume" in json.loads(found.body)["detail"]


# The views.


def test_every_position_of_every_raw_view_gives_the_rest(service: Service, upstream: Upstream) -> None:
    place = recorded(service, upstream, *(BODY[at : at + 1] for at in range(len(BODY))))
    for at in range(len(BODY)):
        for live in ("", "&live=long-poll", "&live=tail"):
            found = read(service, place, f"offset={at}{live}")
            assert found.status == 200
            assert found.is_complete
            assert found.body == BODY[at:], (at, live)


def test_the_view_of_what_is_there(service: Service, upstream: Upstream) -> None:
    place = recorded(service, upstream, BODY)
    found = read(service, place)
    assert found.fields["content-type"] == "application/octet-stream"
    assert found.fields["cache-control"] == "no-store"
    assert found.fields["stream-next-offset"] == f"{len(BODY):016d}"
    assert found.fields["stream-up-to-date"] == found.fields["stream-closed"] == "true"
    assert found.body == BODY
    assert read(service, place, "offset=-1").body == BODY
    assert read(service, place, f"offset={5:016d}").body == BODY[5:]
    assert read(service, place, "offset=now").body == b""


def test_a_long_recording_is_read_in_pieces(service: Service, upstream: Upstream) -> None:
    piece = b"data: " + b"x" * 99_992 + b"\n\n"
    place = recorded(service, upstream, *[piece] * 25)
    body, offset, statuses = b"", 0, []
    while True:
        found = read(service, place, f"offset={offset}")
        body += found.body
        offset = found.offset
        statuses.append("stream-up-to-date" in found.fields)
        if "stream-closed" in found.fields:
            break
    assert body == piece * 25
    assert statuses == [False, False, True]


def test_a_head_request_says_the_same_without_a_body(service: Service, upstream: Upstream) -> None:
    place = recorded(service, upstream, BODY)
    for query in ("offset=3", f"offset={len(BODY)}", "offset=3&live=tail"):
        got, head_ = read(service, place, query), read(service, place, query, method="HEAD")
        assert head_.body == b""
        for name in ("content-type", "stream-next-offset", "stream-up-to-date", "stream-closed"):
            assert head_.fields.get(name) == got.fields.get(name)
    assert read(service, place, method="HEAD").offset == len(BODY)


def test_a_reader_before_the_first_byte_gets_all(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(post(service)) as client:
        place = location(client)
        with closing(view(service, place, "live=tail")) as tail:
            assert tail.read_head().field("Content-Type") == "text/event-stream"
            script.send(BODY)
            assert tail.read_until(b": end\n\n") == client.read_until(b": end\n\n") == BODY
            script.complete()
            assert tail.read_body() == client.read_body() == BODY
            assert tail.is_complete
            assert client.is_complete


def test_a_client_that_comes_back_gets_exactly_the_rest(service: Service, upstream: Upstream) -> None:
    for cut in range(0, len(BODY), 5):
        upstream.script = script = Paced()
        with closing(post(service)) as client:
            place = location(client)
            script.send(BODY[:cut] or b"")
            if cut:
                while len(client.body) < cut:
                    client.read_piece()
        with closing(view(service, place, f"offset={cut}&live=tail")) as again:
            again.read_head()
            script.send(BODY[cut:])
            script.complete()
            assert BODY[:cut] + again.read_body() == BODY
            assert again.is_complete


def test_a_long_poll_waits_for_the_first_byte(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(post(service)) as client:
        place = location(client)
        with closing(view(service, place, "live=long-poll")) as poll:
            script.send(b"data: a\n\n")
            assert poll.read_head().status == 200
            assert poll.read_body() == b"data: a\n\n"
            assert poll.head is not None
            assert poll.head.field("Stream-Up-To-Date") == "true"
            assert poll.head.field("Stream-Closed") is None
        with closing(view(service, place, "offset=9&live=long-poll")) as poll:
            script.complete()
            found = poll.read_head()
            assert (found.status, found.field("Stream-Closed")) == (204, "true")
            assert found.field("Stream-Next-Offset") == f"{9:016d}"


def test_the_events_view_sends_whole_events_with_positions(service: Service, upstream: Upstream) -> None:
    place = recorded(service, upstream, BODY + b"data: not finished\n")
    found = read(service, place, "live=events")
    assert found.fields["content-type"].startswith("text/event-stream")
    text = found.body.decode()
    assert text.startswith("data: ä\nid: 0000000000000013\n\n")
    assert "id: 7" not in text
    assert "not finished" not in text
    assert text.count("\n\n") == 4
    # Every id continues behind its event.
    for event in found.body.split(b"\n\n")[:-1]:
        id_ = int(event.rpartition(b"id: ")[2])
        rest = read(service, place, "live=events", Last_Event_ID=str(id_))
        assert found.body.endswith(rest.body)
        again = read(service, place, f"live=events&lastEventId={id_}")
        assert (again.status, again.body) == (rest.status, rest.body)


def test_an_event_source_stops_at_the_end(service: Service, upstream: Upstream) -> None:
    place = recorded(service, upstream, BODY + b"data: not finished\n")
    assert read(service, place, "live=events", Last_Event_ID=str(len(BODY))).status == 204
    assert read(service, place, "live=events", Last_Event_ID=str(len(BODY) + 19)).status == 204


def test_an_interrupted_event_source_gets_one_error(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(post(service)) as client:
        place = location(client)
        with closing(view(service, place, "live=events")) as events:
            script.send(b"data: a\n\ndata: b")
            events.read_until(b"\n\n")
            script.truncate()
            events.read_body()
            assert events.ending == "aborted"
        error = error_event("upstream_truncated", "0000000000000016")
        assert events.body == b"data: a\nid: 0000000000000009\n\n" + error
    late = read(service, place, "live=events", Last_Event_ID="9")
    assert late.status == 200
    assert late.body.startswith(b"event: error\nid: 0000000000000016\n")
    assert read(service, place, "live=events", Last_Event_ID="16").status == 410


def test_the_events_view_needs_an_event_stream(service: Service, upstream: Upstream) -> None:
    upstream.script = respond(b"{}", fields=("Content-Type: application/json",))
    with closing(post(service)) as client:
        place = location(client)
        client.read_body()
    assert read(service, place).body == b"{}"
    assert read(service, place, "live=events").status == 400
    assert read(service, place, "live=tail").fields["content-type"] == "application/json"


@pytest.mark.parametrize("live", ["sse", "yes", "TAIL"])
def test_other_views_are_refused(service: Service, upstream: Upstream, live: str) -> None:
    place = recorded(service, upstream, BODY)
    found = read(service, place, f"live={live}")
    assert found.status == 400
    assert json.loads(found.body)["code"] == "invalid_request"


# The states.


def test_a_complete_recording_that_is_read(service: Service, upstream: Upstream) -> None:
    place, end = recorded(service, upstream, BODY), len(BODY)
    for live, status in (("", 200), ("&live=tail", 200), ("&live=long-poll", 204), ("&live=events", 204)):
        found = read(service, place, f"offset={end}{live}")
        assert (found.status, found.body) == (status, b"")
        assert found.fields["stream-closed"] == "true"


def test_an_interrupted_recording_that_is_read(service: Service, upstream: Upstream) -> None:
    """While no client listens, too."""
    upstream.script = script = Paced()
    with closing(post(service)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
    script.truncate()
    eventually(lambda: read(service, place, "offset=9").status == 410, "it does not end")
    for live in ("", "&live=tail", "&live=long-poll", "&live=events"):
        for offset in (9, 10, 1000):
            found = read(service, place, f"offset={offset}{live}")
            assert found.status == 410
            assert json.loads(found.body)["code"] == "stream_interrupted"
            assert found.fields["stream-end"] == "upstream_truncated"
            assert "stream-closed" not in found.fields
    kept = read(service, place)
    assert kept.body == b"data: a\n\n"
    assert "stream-closed" not in kept.fields
    tail = read(service, place, "live=tail")
    assert (tail.body, tail.ending) == (b"data: a\n\n", "aborted")


def test_a_live_reader_of_a_truncated_recording_is_aborted(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(post(service)) as client:
        place = location(client)
        with closing(view(service, place, "live=tail")) as tail:
            script.send(b"data: a\n\n")
            tail.read_until(b"a\n\n")
            script.truncate()
            # Nothing but the upstream's bytes, so that who counts is right.
            assert tail.read_body() == client.read_body() == b"data: a\n\n"
            assert tail.ending == client.ending == "aborted"


@pytest.mark.parametrize("offset", ["x", "-2", "1.5", "+1", "0x10", "%EF%BC%91", "1" * 30, "1%202"])
def test_a_malformed_offset_is_refused(service: Service, upstream: Upstream, offset: str) -> None:
    place = recorded(service, upstream, BODY)
    for live in ("", "&live=tail", "&live=long-poll", "&live=events"):
        found = read(service, place, f"offset={offset}{live}")
        assert found.status == 400
        assert json.loads(found.body)["code"] == "invalid_offset"


def test_a_malformed_last_event_id_never_starts_again(service: Service, upstream: Upstream) -> None:
    place = recorded(service, upstream, BODY)
    for id_ in ("x", "-2", "7; 8"):
        assert read(service, place, "live=events", Last_Event_ID=id_).status == 400


def test_a_position_behind_a_complete_end_is_refused(service: Service, upstream: Upstream) -> None:
    place = recorded(service, upstream, BODY)
    for live in ("", "&live=tail", "&live=long-poll", "&live=events"):
        found = read(service, place, f"offset={len(BODY) + 1}{live}")
        assert (found.status, json.loads(found.body)["code"]) == (400, "invalid_offset")


def test_a_position_behind_an_open_end_waits(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(post(service)) as client:
        place = location(client)
        with closing(view(service, place, "offset=5&live=tail")) as tail:
            assert tail.read_head().status == 200
            script.send(b"0123456789")
            script.complete()
            assert tail.read_body() == b"56789"


def test_a_position_before_what_is_kept(upstream: Upstream) -> None:
    upstream.script = script = Paced()
    settings: dict[str, Any] = {"SSE_UPSTREAMS": {"test": upstream.url}, "SSE_RESUME_MAX_BYTES": 1024}
    with Service(**settings) as service, closing(post(service)) as client:
        place = location(client)
        for number in range(10):
            script.send(b"x" * 512)
            while len(client.body) < 512 * (number + 1):
                client.read_piece()
        script.complete()
        assert client.read_body() == b"x" * 5120
        for live in ("", "&live=tail", "&live=long-poll", "&live=events"):
            found = read(service, place, f"offset=5{live}")
            assert (found.status, json.loads(found.body)["code"]) == (410, "offset_expired")
            assert found.fields["stream-start-offset"] == f"{4096:016d}"
        assert read(service, place, "offset=4096").body == b"x" * 1024


def test_an_expired_recording(upstream: Upstream) -> None:
    with Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_RESUME_TTL=1, SSE_THROTTLE="") as service:
        place = recorded(service, upstream, BODY)
        eventually(lambda: read(service, place).status == 410, "it does not expire")
        assert json.loads(read(service, place).body)["code"] == "stream_expired"


def test_an_unknown_recording_and_another_clients_are_the_same(upstream: Upstream) -> None:
    with Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_PASSCODES=PASSCODES) as service:
        ada, bob = ({"Authorization": f"Bearer {PASSCODES[name]}", "X-Request-Id": "one"} for name in ("ada", "bob"))
        place = recorded(service, upstream, BODY, **ada)
        for method, query in (
            ("GET", ""),
            ("HEAD", ""),
            ("PATCH", "action=abort"),
            ("DELETE", ""),
            ("GET", "live=tail"),
        ):
            theirs = read(service, place, query, method=method, **bob)
            unknown = read(service, "/streams/" + "x" * 32, query, method=method, **bob)
            assert theirs.status == 404
            assert theirs.body == unknown.body
            same = ("x-ratelimit-remaining", "x-ratelimit-reset", "date")
            assert [i for i in theirs.fields.items() if i[0] not in same] == [
                i for i in unknown.fields.items() if i[0] not in same
            ]
        assert read(service, place).status == 401
        assert read(service, place, **ada).body == BODY
        read(service, place, method="DELETE", **ada)
        assert read(service, place, **bob).status == 404
        assert read(service, place, **ada).status == 410


def test_readers_of_one_recording_are_bounded(service: Service, upstream: Upstream) -> None:
    upstream.script = Paced()
    with closing(post(service)) as client:
        place = location(client)
        tails = [view(service, place, "live=tail") for _ in range(9)]
        statuses = sorted(tail.read_head().status for tail in tails)
        assert statuses[0] == 200
        assert statuses[-1] == 429
        for tail in tails:
            tail.close()


# Leaving, stopping, erasing.


def test_leaving_is_not_stopping(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(post(service)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
    script.send(b"data: b\n\n")
    script.complete()
    eventually(lambda: "stream-closed" in read(service, place).fields, "it does not go on")
    assert read(service, place).body == b"data: a\n\ndata: b\n\n"


def test_leaving_stops_at_once_where_the_client_says_so(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(post(service, Stream_Leave="0")) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
    script.wait_closed()
    eventually(lambda: read(service, place, "offset=9").status == 410, "it does not end")
    assert read(service, place, "offset=9").fields["stream-end"] == "client_gone"


def test_a_client_that_does_not_opt_in_stops_by_leaving(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(call(service, "POST", "/upstream/test/", body=b"{}")) as client:
        client.read_head()
    script.wait_closed(2)


def test_the_last_reader_stops_a_recording_by_leaving(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(post(service, Stream_Leave="0")) as client:
        place = location(client)
        tail = view(service, place, "live=tail")
        tail.read_head()
    script.send(b"data: a\n\n")
    tail.read_until(b"a\n\n")
    tail.close()
    script.wait_closed()


def test_stopping_keeps_what_was_received(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(post(service)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
        began = time.monotonic()
        assert read(service, place, "action=abort", method="PATCH").status == 204
        script.wait_closed(1)
        assert time.monotonic() - began < 1
        client.read_body()
        assert client.ending == "aborted"
    assert read(service, place, "action=abort", method="PATCH").status == 204
    assert read(service, place).body == b"data: a\n\n"
    assert read(service, place, "offset=9").fields["stream-end"] == "stopped"


def test_erasing_stops_and_keeps_nothing(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    with closing(post(service)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        assert read(service, place, method="DELETE").status == 204
        script.wait_closed(1)
        client.read_body()
        assert client.ending == "aborted"
    assert read(service, place, method="DELETE").status == 204
    assert json.loads(read(service, place).body)["code"] == "stream_expired"


def test_patch_needs_its_action(service: Service, upstream: Upstream) -> None:
    place = recorded(service, upstream, BODY)
    assert read(service, place, method="PATCH").status == 400
    assert read(service, place, "action=stop", method="PATCH").status == 400
    found = read(service, place, method="POST")
    assert found.status == 405
    assert found.fields["allow"] == "GET, HEAD, PATCH, DELETE, OPTIONS"


def test_a_slow_reader_does_not_hold_the_upstream_up(service: Service, upstream: Upstream) -> None:
    piece = b"data: " + b"x" * 9_992 + b"\n\n"
    upstream.script = respond(*[piece] * 300)
    with closing(call(service, "POST", "/upstream/test/", TTL, b"{}", receive_buffer=4096)) as client:
        place = location(client)
        eventually(lambda: "stream-closed" in read(service, place, "offset=2999999").fields, "it is held up")
        assert client.read_body() == piece * 300
        assert client.is_complete


def test_the_lease_belongs_to_the_recording(upstream: Upstream) -> None:
    """To open and to leave would else be unlimited spending."""
    settings: dict[str, Any] = {
        "SSE_UPSTREAMS": {"test": upstream.url},
        "SSE_THROTTLE": "",
        "SSE_MAX_STREAMS_PER_CLIENT": 2,
    }
    with Service(**settings) as service:
        scripts = []
        for _ in range(2):
            upstream.script = script = Paced()
            scripts.append(script)
            with closing(post(service)) as client:
                location(client)
        assert reply(post(service)).status == 429
        scripts[0].complete()
        scripts[1].complete()
        upstream.script = respond(BODY)
        eventually(lambda: reply(post(service)).status == 200, "the lease is not released")


# Idempotency.


def test_the_same_request_attaches(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced(status=201, fields=(EVENT_STREAM, "X-Request-Id: theirs"))
    key, before = f"key-of-one-request-{time.time()}", len(upstream.requests)
    with closing(post(service, Idempotency_Key=key)) as client:
        place = location(client)
        script.send(b"data: a\n\n")
        client.read_until(b"a\n\n")
    with closing(post(service, Idempotency_Key=key)) as again:
        assert location(again) == place
        assert again.head is not None
        assert again.head.status == 201
        assert again.head.field("Stream-Next-Offset") == "0" * 16
        assert again.head.field("X-Upstream-Request-Id") == "theirs"
        again.read_until(b"a\n\n")
        script.send(b"data: b\n\n")
        script.complete()
        assert again.read_body() == b"data: a\n\ndata: b\n\n"
        assert again.is_complete
    assert reply(post(service, Idempotency_Key=key)).body == b"data: a\n\ndata: b\n\n"
    assert len(upstream.requests) == before + 1


def test_the_key_alone_opts_in(service: Service, upstream: Upstream) -> None:
    upstream.script = respond(BODY)
    fields: dict[str, Any] = {"Idempotency-Key": f"key-without-a-time-{time.time()}"}
    places = set()
    for _ in range(2):
        with closing(call(service, "POST", "/upstream/test/", fields, b"{}")) as client:
            places.add(location(client))
            assert client.read_body() == BODY
    assert len(places) == 1
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("difference", ["body", "path", "method"])
def test_another_request_with_the_same_key_is_refused(service: Service, upstream: Upstream, difference: str) -> None:
    upstream.script = respond(BODY)
    fields: dict[str, Any] = {**TTL, "Idempotency-Key": f"key-of-{difference}-{time.time()}"}
    assert reply(call(service, "POST", "/upstream/test/", fields, b"{}")).body == BODY
    method = "PUT" if difference == "method" else "POST"
    path = "/upstream/test/" + ("other" if difference == "path" else "")
    found = reply(call(service, method, path, fields, b"[]" if difference == "body" else b"{}"))
    assert found.status == 422
    assert json.loads(found.body)["code"] == "idempotency_key_reused"
    assert len(upstream.requests) == 1


def test_requests_at_once_run_once(service: Service, upstream: Upstream) -> None:
    upstream.script = script = Paced()
    key = f"key-of-many-{time.time()}"
    clients = [post(service, Idempotency_Key=key) for _ in range(8)]
    script.send(BODY)
    script.complete()
    assert [reply(client).body for client in clients] == [BODY] * 8
    assert len(upstream.requests) == 1


def test_a_key_is_released_where_nothing_was_recorded(service: Service, upstream: Upstream) -> None:
    key = f"key-of-a-failure-{time.time()}"
    upstream.script = respond(b"{}", status=500, fields=("Content-Type: application/json",), framing="close")
    assert reply(post(service, Idempotency_Key=key)).status == 500
    upstream.script = respond(BODY)
    assert reply(post(service, Idempotency_Key=key)).body == BODY


def test_a_key_is_released_where_the_upstream_was_never_reached(upstream: Upstream) -> None:
    port = free_port()
    with Service(SSE_UPSTREAMS={"test": f"http://127.0.0.1:{port}"}, SSE_THROTTLE="") as service:
        key = f"key-of-an-unreachable-{time.time()}"
        for _ in range(2):
            assert json.loads(reply(post(service, Idempotency_Key=key)).body)["code"] == "upstream_unreachable"


def test_keys_of_two_clients_are_two(upstream: Upstream) -> None:
    upstream.script = respond(BODY)
    with Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_PASSCODES=PASSCODES) as service:
        for passcode in PASSCODES.values():
            found = reply(post(service, Idempotency_Key="the same for both", Authorization=f"Bearer {passcode}"))
            assert found.status == 400, "a blank in the key"
            found = reply(post(service, Idempotency_Key="the-same-for-both", Authorization=f"Bearer {passcode}"))
            assert found.body == BODY
        assert len(upstream.requests) == 2


def test_a_request_waits_for_the_response_head(service: Service, upstream: Upstream) -> None:
    """The first request's upstream thinks for a while; its client loses patience and asks again."""
    may_answer = threading.Event()

    def slow(connection: Connection) -> None:
        connection.read_request()
        connection.wait_for(may_answer)
        connection.send(head(200, EVENT_STREAM, f"Content-Length: {len(BODY)}") + BODY)

    upstream.script = slow
    key = f"key-of-a-slow-one-{time.time()}"
    post(service, Idempotency_Key=key).close()
    upstream.wait_request(1)
    second = post(service, Idempotency_Key=key)
    may_answer.set()
    assert reply(second).body == BODY
    assert len(upstream.requests) == 1


# What operators see.


def test_recordings_are_counted_and_logged(service: Service, upstream: Upstream) -> None:
    start = len(service.log())
    place = recorded(service, upstream, BODY)
    read(service, place)
    read(service, place, "live=tail")
    # Not the end of a recording of the test before, which may be logged only now.
    shown = re.escape(place.removeprefix("/streams/")[:6])
    line = service.wait_log(
        rf"recording end=complete upstream=test client=- bytes=(\d+) .*recording={shown} ", start=start
    )
    assert int(line[1]) == len(BODY)
    # The whole is a right to read.
    assert place.removeprefix("/streams/") not in service.log()
    text = reply(call(service, "GET", "/metrics")).body.decode()
    for metric in (
        'sse_recordings_open{upstream="test"}',
        'sse_recordings_ended_total{reason="complete",upstream="test"}',
        'sse_recorded_bytes_total{upstream="test"}',
        "sse_recordings_bytes",
        'sse_resumes_total{view="now"}',
        'sse_resumes_total{view="tail"}',
    ):
        assert f"\n{metric} " in text, metric


def test_several_processes_without_a_store_record_nothing(upstream: Upstream) -> None:
    upstream.script = respond(BODY)
    with Service("--workers", "2", SSE_UPSTREAMS={"test": upstream.url}) as service:
        with closing(post(service)) as client:
            assert client.read_head().field("Location") is None
            assert client.read_body() == BODY
        service.wait_log("responses are not recorded: SSE_STORAGE_URI is memory://")


def test_recording_can_be_switched_off(upstream: Upstream) -> None:
    upstream.script = respond(BODY)
    with Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_RESUME_TTL=0) as service:
        with closing(post(service, Idempotency_Key="k")) as client:
            assert client.read_head().field("Location") is None
            assert client.read_body() == BODY
        # It is the upstream's field then.
        assert upstream.requests[-1].field("Idempotency-Key") == "k"
        assert read(service, "/streams/x").status == 404
