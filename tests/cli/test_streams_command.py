"""`flask sse streams` and `flask sse end`, run as an operator runs them, with the workers of a real gunicorn."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app import create_app
from sse.relay.control import TIMEOUT

from ..support.ending import EVENT, STREAM, error_event, eventually, headless
from ..support.program import RedisServer
from ..support.recording import Paced, location, post, read
from ..support.service import RawClient, Service, call, start_refused
from ..support.upstream import Connection, Upstream, chunk

CANARY = "canary-secret"
PASSCODES = {"ada": f"{CANARY}-ada", "bob": f"{CANARY}-bob"}
COLUMNS = ["id", "client", "upstream", "target", "since", "bytes", "events", "state"]


@dataclass(frozen=True)
class Operator:
    """What an operator has: the command line, in an environment with the setting."""

    directory: Path

    def run(self, *args: str, **settings: Any) -> tuple[int, str, str]:
        """Return the exit status of a command, what it wrote, and what it complained."""
        app = create_app({"SSE_CONTROL_DIR": str(self.directory), **settings})
        done = app.test_cli_runner().invoke(args=["sse", *args])
        return done.exit_code, done.stdout, done.stderr

    def streams(self) -> list[dict[str, Any]]:
        status, output, complaint = self.run("streams", "--json")
        assert (status, complaint) == (0, "")
        found: list[dict[str, Any]] = json.loads(output)
        return found

    def end(self, id: str) -> None:
        assert self.run("end", id) == (0, "", "")


def worker_of(stream: dict[str, Any]) -> int:
    return int(stream["id"].partition("-")[0])


@dataclass
class Gateway:
    """Two workers, an upstream, and their operator."""

    service: Service
    upstream: Upstream
    operator: Operator

    def open(self, stack: ExitStack, client: str = "ada", id: str = "", name: str = "test") -> RawClient:
        """Open a stream and read its first event."""
        fields = {"X-Passcode": PASSCODES[client], "X-Canary": CANARY, **({"X-Request-Id": id} if id else {})}
        opened = stack.enter_context(call(self.service, "GET", f"/upstream/{name}/{CANARY}?key={CANARY}", fields))
        opened.read_until(EVENT)
        return opened

    def open_in_both(self, stack: ExitStack) -> dict[int, dict[str, Any]]:
        """Open streams until each worker has one, and return one of each."""
        for _ in range(50):
            self.open(stack)
            found = {worker_of(stream): stream for stream in self.operator.streams()}
            if set(found) >= set(self.service.worker_pids()):
                return found
        raise AssertionError("all streams are in one worker")

    def find(self, request_id: str) -> dict[str, Any]:
        [found] = [stream for stream in self.operator.streams() if stream["request_id"] == request_id]
        return found


def silent(connection: Connection) -> None:
    connection.read_request()
    connection.send(STREAM + chunk(EVENT))
    connection.wait_closed(60)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("run") / "control"
    with Upstream(silent) as upstream:
        entry = {"url": upstream.url, "headers": {"Authorization": CANARY}}
        table = {"test": entry, "several": {**entry, "targets": [{"id": "a-key", "headers": {"X-Key": CANARY}}]}}
        with Service(
            "--workers",
            "2",
            SSE_UPSTREAMS=table,
            SSE_PASSCODES=PASSCODES,
            SSE_THROTTLE="",
            SSE_MAX_STREAMS_PER_CLIENT=0,
            SSE_CONTROL_DIR=str(directory),
            SSE_LOG_FORMAT="json",
            SSE_METRICS=True,
        ) as service:
            yield Gateway(service, upstream, Operator(directory))


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The two workers, with nothing left of the test before."""
    shared.upstream.script = silent
    yield shared
    shared.upstream.settle()
    eventually(lambda: not shared.operator.streams(), "streams are left")


def test_the_streams_of_all_workers_are_listed(gateway: Gateway) -> None:
    began = datetime.now(UTC)
    with ExitStack() as stack:
        gateway.open(stack, "bob", "of-bob")
        found = gateway.open_in_both(stack)
        of_bob = gateway.find("of-bob")
        lines = gateway.operator.run("streams")[1].splitlines()
    assert set(found) == set(gateway.service.worker_pids())
    assert {each["client"] for each in found.values()} <= {"ada", "bob"}
    assert of_bob.keys() == {*COLUMNS, "request_id"}
    shown = {name: of_bob[name] for name in ("client", "upstream", "target", "bytes", "events", "state")}
    assert shown == {
        "client": "bob",
        "upstream": "test",
        "target": None,
        "bytes": len(EVENT),
        "events": 1,
        "state": "read",
    }
    assert abs(datetime.fromisoformat(of_bob["since"]) - began) < timedelta(seconds=10)
    assert lines[0].split() == COLUMNS
    assert of_bob["id"] in {line.split()[0] for line in lines[1:]}


def test_a_stream_of_several_targets_is_listed_with_its_own(gateway: Gateway) -> None:
    with ExitStack() as stack:
        gateway.open(stack, id="of-several", name="several")
        assert gateway.find("of-several")["target"] == "a-key"


def test_a_list_of_streams_holds_no_secret(gateway: Gateway) -> None:
    with ExitStack() as stack:
        gateway.open(stack)
        for args in (["streams"], ["streams", "--json"]):
            status, output, complaint = gateway.operator.run(*args)
            assert (status, CANARY in output + complaint) == (0, False)
            assert "ada" in output


def test_a_stream_is_ended_at_its_next_boundary(gateway: Gateway) -> None:
    go = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT) + chunk(b"data: b"))
        connection.wait_for(go)
        connection.send(chunk(b"c\n\ndata: d\n\n"))
        connection.wait_closed()

    with ExitStack() as stack:
        other = gateway.open(stack)
        gateway.upstream.script = script
        client = gateway.open(stack, id="ended")
        client.read_until(b"data: b")
        gateway.operator.end(gateway.find("ended")["id"])
        assert gateway.find("ended")["state"] == "ending"
        go.set()
        assert client.read_body() == EVENT + b"data: bc\n\n" + error_event("ended_by_operator")
        assert client.ending == "aborted" and other.ending is None
        [rest] = gateway.operator.streams()
        assert rest["request_id"] != "ended"
    line = json.loads(gateway.service.wait_log(r"^\{.*ended_by_operator.*$")[0])
    assert (line["message"], line["end"], line["request_id"]) == ("stream", "ended_by_operator", "ended")
    with call(gateway.service, "GET", "/metrics") as metrics:
        assert 'sse_streams_ended_total{reason="ended_by_operator",upstream="test"} 1.0' in metrics.read_body().decode()


def test_a_silent_stream_is_ended_at_once(gateway: Gateway) -> None:
    with ExitStack() as stack:
        client = gateway.open(stack, id="silent")
        gateway.operator.end(gateway.find("silent")["id"])
        assert client.read_body() == EVENT + error_event("ended_by_operator")


def test_a_second_end_cuts_inside_an_event(gateway: Gateway) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(STREAM + chunk(EVENT) + chunk(b"data: b"))
        connection.wait_closed()

    gateway.upstream.script = script
    with ExitStack() as stack:
        client = gateway.open(stack, id="stuck")
        client.read_until(b"data: b")
        for _ in range(2):
            gateway.operator.end(gateway.find("stuck")["id"])
        assert (client.read_body(), client.ending) == (EVENT + b"data: b", "aborted")


def test_a_request_that_is_ended_before_its_head_is_refused(gateway: Gateway) -> None:
    gateway.upstream.script = headless
    fields = {"X-Passcode": PASSCODES["ada"], "X-Request-Id": "headless"}
    with call(gateway.service, "POST", "/upstream/test/", fields, b"{}") as client:
        gateway.upstream.wait_request()
        eventually(lambda: bool(gateway.operator.streams()), "not listed")
        found = gateway.find("headless")
        assert (found["state"], found["bytes"], found["events"]) == ("head", 0, None)
        gateway.operator.end(found["id"])
        head = client.read_head()
        assert (head.status, head.field("X-Should-Retry"), client.json()["code"]) == (503, "false", "ended_by_operator")
    gateway.service.wait_log(r'^\{.*"end": "ended_by_operator".*"request_id": "headless"')


def test_a_stream_of_the_sites_own_is_listed_and_ended(gateway: Gateway) -> None:
    with call(gateway.service, "GET", "/sse", {"X-Request-Id": "own"}) as client:
        client.read_until(b"\n\n")
        found = gateway.find("own")
        assert (found["client"], found["upstream"]) == (None, "own:sse_ticker.ticks")
        gateway.operator.end(found["id"])
        assert client.read_body().endswith(b"\n\n" + error_event("ended_by_operator"))


@pytest.mark.parametrize("id", ["{}-999999", "1-1", "0", "", "x", "{}-1 x", "../{}-1"])
def test_an_id_that_is_not_open_is_an_error(gateway: Gateway, id: str) -> None:
    id = id.format(gateway.service.worker_pids()[0])
    status, output, complaint = gateway.operator.run("end", id)
    assert (status, output) == (1, "")
    assert complaint == f"Error: no open stream has the id {id!r}; flask sse streams lists them\n"


def test_a_worker_that_does_not_respond_is_named(gateway: Gateway) -> None:
    """The others are listed all the same."""
    with ExitStack() as stack:
        found = gateway.open_in_both(stack)
        stopped, other = found
        os.kill(stopped, signal.SIGSTOP)
        stack.callback(os.kill, stopped, signal.SIGCONT)
        status, output, complaint = gateway.operator.run("streams", "--json")
        assert {worker_of(stream) for stream in json.loads(output)} == {other}
        assert (status, complaint) == (1, f"Error: no response from the workers {stopped}\n")
    assert TIMEOUT < 10


def test_the_socket_of_a_killed_worker_is_removed(gateway: Gateway) -> None:
    with ExitStack() as stack:
        found = gateway.open_in_both(stack)
        killed, other = found
        os.kill(killed, signal.SIGKILL)
        path = gateway.operator.directory / f"{killed}.sock"
        eventually(lambda: len(set(gateway.service.worker_pids()) - {killed}) == 2, "no new worker")
        assert path.exists()
        assert {worker_of(stream) for stream in gateway.operator.streams()} == {other}
        assert not path.exists()
        assert gateway.operator.run("end", found[killed]["id"])[0] == 1


def test_streams_of_old_workers_are_listed_after_a_reload(gateway: Gateway) -> None:
    with ExitStack() as stack:
        client = gateway.open(stack, id="old")
        old = gateway.service.worker_pids()
        os.kill(gateway.service.pid, signal.SIGHUP)
        sockets = gateway.operator.directory

        def is_reloaded() -> bool:
            listening = {int(path.stem) for path in sockets.glob("*.sock")}
            return len(listening - set(old)) == 2 and len(listening & set(old)) == 1

        eventually(is_reloaded, "the worker without a stream has not removed its socket")
        assert worker_of(gateway.find("old")) in old

        def is_listed() -> bool:
            # The old worker may still accept for a moment.
            gateway.open(stack)
            return any(worker_of(stream) not in old for stream in gateway.operator.streams())

        eventually(is_listed, "no stream of a new worker is listed")
        for stream in gateway.operator.streams():
            if worker_of(stream) in old:
                gateway.operator.end(stream["id"])
        assert client.read_body() == EVENT + error_event("ended_by_operator")
        eventually(lambda: len(list(sockets.glob("*.sock"))) == 2, "an old worker's socket is left")


def test_recordings_are_listed_and_ended(
    service: Callable[..., Service], upstream: Callable[..., Upstream], redis_server: RedisServer, tmp_path: Path
) -> None:
    """A recording and the client that reads it are two: ending one leaves the other."""
    operator, script = Operator(tmp_path / "control"), Paced()
    relay = service(
        "--workers",
        "2",
        SSE_UPSTREAMS={"test": upstream(script).url},
        SSE_STORAGE_URI=redis_server.url,
        SSE_CONTROL_DIR=str(operator.directory),
    )
    with closing(post(relay)) as client:
        place = location(client)
        script.send(EVENT + b"data: b")
        client.read_until(b"data: b")
        by_state = {stream["state"]: stream for stream in operator.streams()}
        assert set(by_state) == {"read", "record"}
        assert by_state["record"]["bytes"] == len(EVENT + b"data: b")
        operator.end(by_state["read"]["id"])
        assert (client.read_body(), client.ending) == (EVENT + b"data: b", "aborted")
        operator.end(by_state["record"]["id"])
        script.send(b"\n\ndata: c\n\n")
        script.wait_closed()
    relay.wait_log("recording end=ended_by_operator ")
    found = read(relay, place, f"offset={len(EVENT) + 9}")
    assert (found.status, found.fields["stream-end"]) == (410, "ended_by_operator")
    assert read(relay, place).body == EVENT + b"data: b\n\n"


def test_readers_of_channels_are_listed_and_ended(service: Callable[..., Service], tmp_path: Path) -> None:
    operator = Operator(tmp_path / "control")
    site = service(app="tests.apps.channels:app", SSE_CONTROL_DIR=str(operator.directory))
    with call(site, "GET", "/read?c=public") as client:
        first = client.read_until(b"\n\n")
        [found] = operator.streams()
        assert found["upstream"] == "own:read"
        operator.end(found["id"])
        assert client.read_body() == first + error_event("ended_by_operator")


def test_nothing_listens_unless_it_is_set(tmp_path: Path) -> None:
    status, _, complaint = Operator(tmp_path).run("streams", SSE_CONTROL_DIR="")
    assert (status, complaint) == (1, "Error: SSE_CONTROL_DIR is not set, so the workers cannot be reached\n")


def test_a_service_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    assert Operator(tmp_path).run("streams")[::2] == (1, "Error: no worker is running\n")
    status, _, complaint = Operator(tmp_path / "missing").run("streams")
    assert (status, "cannot be read: No such file or directory" in complaint) == (1, True)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda path: path.mkdir(mode=0o750), id="mode"),
        pytest.param(lambda path: path.touch(mode=0o600), id="file"),
        pytest.param(lambda path: path.symlink_to("/dev"), id="link"),
    ],
)
def test_a_directory_of_others_stops_the_start(tmp_path: Path, prepare: Callable[[Path], object]) -> None:
    prepare(tmp_path / "control")
    complaint = start_refused(SSE_CONTROL_DIR=str(tmp_path / "control"))
    said = "must be a directory that other users cannot enter (mode 0700)"
    assert f"SSE_CONTROL_DIR: {str(tmp_path / 'control')!r} {said}" in complaint
    assert "Traceback" not in complaint


def test_a_directory_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    complaint = start_refused(SSE_CONTROL_DIR=str(tmp_path / "no" / "control"))
    assert "SSE_CONTROL_DIR: " in complaint and "cannot be used: No such file or directory" in complaint
    assert "Traceback" not in complaint
