"""`flask sse doctor`, run as an operator runs it, against real parts of which each is broken in its turn."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from sse.settings import Settings

from ..support.program import RedisServer, free_port, program
from ..support.proxy import LISTEN, PLAIN, Edit, start_nginx
from ..support.service import ROOT, Process, Service, environment, run
from ..support.upstream import (
    EVENT_STREAM,
    Connection,
    SilentListener,
    Upstream,
    authority,
    chunk,
    head,
    respond,
)

#: Seconds that a whole examination may take.
PATIENCE = 60

#: In every secret, and nowhere else.
WORD = "canary"

#: What leaves the doctor nothing to say about the settings, with few enough streams for any machine.
SOUND: dict[str, Any] = {"SSE_PASSCODES": {"front-end": f"{WORD}-passcode"}, "SSE_MAX_STREAMS": 100}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor said."""

    status: int
    output: str
    errors: str

    def lines(self, level: str) -> list[str]:
        """Return the findings of a level, each with its remedy, in one line."""
        return [" ".join(found.split()) for found in re.findall(rf"^{level} .*\n(?: .*\n)*", self.output, re.MULTILINE)]

    def finding(self, what: str) -> str:
        """Return the one finding about something, its level first, with its remedy."""
        found = re.findall(rf"^\w+ +{re.escape(what)} .*\n(?: .*\n)*", self.output, re.MULTILINE)
        assert len(found) == 1, f"{len(found)} findings on {what}:\n{self.output}{self.errors}"
        return " ".join(found[0].split())


def doctor(
    *args: str, app: str = "app", root: Path = ROOT, env: dict[str, str] | None = None, files: int = 0, **settings: Any
) -> Report:
    """Run the command.

    :param files: the hard and soft limit of file descriptors; 0 leaves it.
    """
    command = [sys.executable, "-m", "flask", "--app", app, "sse", "doctor", *args]
    if files:
        command = ["bash", "-c", f'ulimit -n {files}; exec "$@"', "bash", *command]
    shown = run(command, cwd=root, env=environment(settings, env or {}), timeout=PATIENCE)
    assert "Traceback" not in shown.stderr, shown.stderr
    assert WORD not in shown.stdout + shown.stderr, "a secret came out"
    return Report(status=shown.returncode, output=shown.stdout, errors=shown.stderr)


def table(url: str) -> dict[str, Any]:
    return {"SSE_UPSTREAMS": {"test": {"url": url, "headers": {"Authorization": f"Bearer {WORD}-key"}}}}


def address(service: Service | Upstream) -> str:
    return f"{service.host}:{service.port}"


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """`nginx(service, *edits)` starts nginx with deploy/nginx.conf and edits in front of it, and returns its URL."""
    program("nginx", "nginx")
    with ExitStack() as stack:

        def start(service: Service, *edits: Edit, listen: Sequence[Edit] = PLAIN) -> str:
            proxy = start_nginx([address(service)], tmp_path, [*listen, *edits])
            stack.callback(proxy.stop)
            return proxy.url

        yield start


# All is well, and nothing is.


def test_a_sound_deployment_has_no_findings(
    nginx: Callable[..., str],
    service: Callable[..., Service],
    upstream: Callable[..., Upstream],
    redis_server: RedisServer,
) -> None:
    server = upstream(respond(fields=[f"Date: {formatdate(usegmt=True)}"], framing="length"), tls=True)
    settings = {**SOUND, **table(server.url), "SSE_CA_FILE": server.ca_file, "SSE_STORAGE_URI": redis_server.url}
    url = nginx(service(SSE_TRUSTED_PROXIES=1))
    report = doctor(url, SSE_TRUSTED_PROXIES=1, **settings)
    assert (report.lines("fail"), report.lines("warn"), report.status, report.errors) == ([], [], 0, "")
    assert "events come one by one" in report.finding("stream")
    assert "certificate for" in report.finding("upstream test")
    request = server.wait_request()
    assert (request.method, request.target, request.field("Authorization")) == ("HEAD", "/", None)


def test_its_lines_are_aligned_and_plain_without_a_terminal() -> None:
    report = doctor()
    assert all(re.match(r"(ok  |warn|fail)  \S.{18} \S|( {26})\S", line) for line in report.output.splitlines())
    assert "\x1b" not in report.output


def test_what_is_only_to_look_at_leaves_the_status_alone() -> None:
    report = doctor(SSE_MAX_STREAMS=100)
    assert report.status == 0
    assert re.match("warn .*every client may call .*SSE_PASSCODES", report.finding("access"))
    assert re.match("warn .*only upstream .*SSE_UPSTREAMS", report.finding("demonstration"))


def test_open_access_to_keys_is_named() -> None:
    report = doctor(SSE_OPEN=True, **table("http://127.0.0.1:9/"))
    assert re.match("warn .*with the upstreams' keys .*SSE_PASSCODES", report.finding("access"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param({"SSE_THROTTLE": "x"}, "SSE_THROTTLE: ", id="value"),
        pytest.param({"SSE_THROTTEL": ""}, "SSE_THROTTEL is not a setting", id="key"),
        pytest.param(table("http://127.0.0.1:9/"), "SSE_PASSCODES is empty", id="together"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_key(settings: dict[str, Any], said: str) -> None:
    report = doctor(**settings)
    assert (report.status, report.output) == (1, "")
    assert report.errors.startswith(f"Error: {said}")
    assert report.errors.count("\n") == 1


def test_a_site_that_has_the_command_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import click\nfrom flask import Flask\nfrom sse import SSE\napp = Flask(__name__)\n"
        "app.cli.command('sse')(click.argument('rest', nargs=-1)(lambda rest: print('mine')))\nSSE(app)\n"
    )
    report = doctor(app="shop", root=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (report.output, report.status) == ("mine\n", 0)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8000", "http://", "http://127.0.0.1/?a=b"])
def test_what_is_no_url_is_refused(url: str) -> None:
    report = doctor(url)
    assert (report.status, "must be an http or https URL" in report.errors) == (2, True)


# gunicorn


@pytest.mark.parametrize(
    ("arguments", "settings", "what", "said"),
    [
        pytest.param("-k sync", {}, "worker class", "fail .*SyncWorker.* -k gevent", id="sync"),
        pytest.param("-k gthread", {}, "worker class", "warn .*holds a thread.* -k gevent", id="gthread"),
        pytest.param("-k gevent_pywsgi", {}, "worker class", "warn .*head waits.* -k gevent", id="pywsgi"),
        pytest.param("-k nonsense", {}, "gunicorn", "fail .*'nonsense' invalid or not found.*fix", id="no-class"),
        pytest.param("--nonsense", {}, "gunicorn", "fail .*arguments: --nonsense.*GUNICORN_CMD_ARGS", id="argument"),
        pytest.param("-c /dev/null -k gevent", {}, "patching", "warn .*done by the worker.*patch_all", id="unpatched"),
        pytest.param("-c /dev/null -k gevent --preload", {}, "patching", "fail .*loaded before.*patch_all", id="late"),
        pytest.param("-w 3", {}, "recordings", "fail .*3 workers.*SSE_STORAGE_URI", id="recordings"),
        pytest.param("-w 3", {"SSE_RESUME_TTL": 0}, "workers", "warn .*3 times.*URI.*redis://", id="workers"),
        pytest.param("--worker-connections 199", {}, "worker connections", "warn .*hangs.* = 200 or", id="connections"),
        pytest.param(
            "--worker-connections 300",
            {"SSE_MAX_STREAMS": 0},
            "worker connections",
            "warn .*SSE_MAX_STREAMS to 200",
            id="no-limit",
        ),
        pytest.param("--reuse-port", {}, "reuse port", "warn .*reset.*no --reuse-port", id="reuse-port"),
        pytest.param(
            "-c /dev/null -k gevent --max-requests 9",
            {"SSE_METRICS": True},
            "max_requests",
            "warn .*leaves files",
            id="files",
        ),
        pytest.param("--graceful-timeout 9", {}, "restart", "warn .*within 9 s graceful_timeout = 28", id="graceful"),
        pytest.param("-c /dev/null -k gevent", {}, "restart", "warn .*killed.*end_with_worker", id="no-error-event"),
        pytest.param("-c /dev/null -k gevent", {}, "control socket", "warn .*_disable = True", id="control-socket"),
    ],
)
def test_what_is_wrong_with_gunicorn_is_named(arguments: str, settings: dict[str, Any], what: str, said: str) -> None:
    report = doctor(env={"GUNICORN_CMD_ARGS": arguments}, **{**SOUND, **settings})
    assert re.match(said, report.finding(what))
    assert report.status == said.startswith("fail")


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [({}, ""), ({}, "-k gevent --worker-connections 200"), ({"SSE_STORAGE_URI": "redis://127.0.0.1:9"}, "-w 2")],
)
def test_nothing_is_wrong_with_gunicorn_as_it_is_delivered(settings: dict[str, Any], arguments: str) -> None:
    report = doctor(env={"GUNICORN_CMD_ARGS": arguments}, **SOUND, **settings)
    checks = ("worker class", "patching", "workers", "recordings", "worker connections", "restart", "control socket")
    for what in checks:
        assert report.finding(what).startswith("ok")


def test_a_patch_that_comes_too_late_is_found(tmp_path: Path) -> None:
    """gevent does not reach a class that was imported by name."""
    (tmp_path / "late.py").write_text(
        "from ssl import SSLContext\nimport requests\nfrom gevent import monkey\nmonkey.patch_all()\n"
    )
    report = doctor(env={"GUNICORN_CMD_ARGS": f"-k gevent -c {tmp_path}/late.py"}, **SOUND)
    assert re.match("fail .*after it was used.*first lines of gunicorn.conf.py", report.finding("patching"))


def test_the_probe_has_gunicorns_import_path(tmp_path: Path) -> None:
    """Beside the program that reads it are modules of the package with common names."""
    (tmp_path / "wrong.py").write_text("import certificate\n")
    report = doctor(env={"GUNICORN_CMD_ARGS": f"-c {tmp_path}/wrong.py"}, **SOUND)
    assert re.match("fail .*No module named 'certificate'.*fix gunicorn.conf.py", report.finding("gunicorn"))


def test_a_missing_gunicorn_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from app import app")
    report = doctor(app="shop", root=tmp_path, env={"PYTHONPATH": str(ROOT)}, **SOUND)
    assert re.match("warn .*no gunicorn.conf.py.*GUNICORN_CMD_ARGS", report.finding("gunicorn"))


def test_to_read_the_configuration_leaves_nothing_behind(tmp_path: Path) -> None:
    doctor(env={"TMPDIR": str(tmp_path)}, SSE_METRICS=True, **SOUND)
    assert list(tmp_path.iterdir()) == []


def test_http_2_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("worker_class = 'gevent'\nhttp_protocols = 'h1'\n")
    assert "HTTP/2" not in doctor(env={"GUNICORN_CMD_ARGS": f"-c {tmp_path}/conf.py"}, **SOUND).output
    pytest.importorskip("h2")
    (tmp_path / "conf.py").write_text("worker_class = 'gevent'\nhttp_protocols = 'h2,h1'\n")
    report = doctor(env={"GUNICORN_CMD_ARGS": f"-c {tmp_path}/conf.py"}, **SOUND)
    assert re.match("warn .*one stream of a connection at a time.*proxy in front", report.finding("HTTP/2"))


@pytest.mark.parametrize(("mode", "is_named"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_settings_file_that_others_can_read_is_named(mode: int, is_named: bool, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("SSE_MAX_STREAMS = 100\n")
    path.chmod(mode)
    report = doctor(env={"SSE_CONFIG": str(path)})
    assert ("settings file" in report.output) is is_named
    if is_named:
        assert re.match("warn .*read by other users.*chmod 600", report.finding("settings file"))


def test_too_few_file_descriptors_are_a_failure() -> None:
    settings = {**SOUND, "SSE_MAX_STREAMS": 2000}
    report = doctor(files=4199, **settings)
    assert re.match("fail .*4199.* 4200 .*ulimit .*LimitNOFILE=4200", report.finding("file descriptors"))
    assert report.status == 1
    assert doctor(files=4200, **settings).finding("file descriptors").startswith("ok")


# The store


def test_a_store_that_wants_another_password_is_a_failure(redis_server: RedisServer) -> None:
    Redis.from_url(redis_server.url).config_set("requirepass", f"{WORD}-right")
    for credential in ("", f":{WORD}-wrong@"):
        report = doctor(**SOUND, SSE_STORAGE_URI=f"redis://{credential}127.0.0.1:{redis_server.port}/0")
        assert re.match(f"fail .*redis://127.0.0.1:{redis_server.port}/0: .*password", report.finding("store"))
        assert report.status == 1
    report = doctor(**SOUND, SSE_STORAGE_URI=f"redis://:{WORD}-right@127.0.0.1:{redis_server.port}/0")
    assert re.match(r"ok .*redis://127.0.0.1:\d+/0: .*ms", report.finding("store"))


def _deny(client: Redis) -> None:
    client.acl_setuser("default", enabled=True, nopass=True, commands=["+@all", "-eval"], keys=["*"])


def _fill(client: Redis) -> None:
    client.config_set("maxmemory", 1)


def _follow(client: Redis) -> None:
    client.replicaof("127.0.0.1", "9")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(_deny, "lacks a permission.*ACL SETUSER", id="forbidden"),
        pytest.param(_fill, "out of memory.*maxmemory", id="full"),
        pytest.param(_follow, "replica.*primary", id="replica"),
    ],
)
def test_a_store_that_does_not_take_what_we_write_is_a_failure(
    redis_server: RedisServer, spoil: Callable[[Redis], None], said: str
) -> None:
    spoil(Redis.from_url(redis_server.url))
    report = doctor(**SOUND, SSE_STORAGE_URI=redis_server.url)
    assert re.match(f"fail .*{said}", report.finding("store"))


def test_a_store_that_is_dead_silent_or_no_redis_is_a_failure(
    redis_server: RedisServer, upstream: Callable[..., Upstream]
) -> None:
    redis_server.stop()
    report = doctor(**SOUND, SSE_STORAGE_URI=redis_server.url)
    assert re.match("fail .*connection refused.*SSE_STORAGE_URI", report.finding("store"))
    with SilentListener() as silent:
        report = doctor(**SOUND, SSE_STORAGE_URI=silent.url.replace("http", "redis"))
    assert re.match("fail .*no reply in time.*firewall", report.finding("store"))
    other = upstream(lambda connection: connection.send(head(400, "Content-Length: 0")))
    report = doctor(**SOUND, SSE_STORAGE_URI=other.url.replace("http", "redis"))
    assert re.match("fail .*not a Redis server.*fix the port", report.finding("store"))


def test_a_store_that_forgets_is_named_and_nothing_of_ours_stays(redis_server: RedisServer) -> None:
    client = Redis.from_url(redis_server.url)
    for policy, is_wrong in (("volatile-ttl", False), ("allkeys-lru", True)):
        client.config_set("maxmemory-policy", policy)
        report = doctor(**SOUND, SSE_STORAGE_URI=redis_server.url)
        assert any("eviction allkeys-lru" in line for line in report.lines("warn")) is is_wrong
        assert report.status == 0
    assert client.keys() == []


def test_a_slow_store_is_named(redis_server: RedisServer) -> None:
    def relay(one: socket.socket, other: socket.socket, delay: float) -> None:
        with suppress(OSError), one, other:
            while data := one.recv(65536):
                time.sleep(delay)
                other.sendall(data)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", redis_server.port))
            threading.Thread(target=relay, args=(client, server, 0.1), daemon=True).start()
            threading.Thread(target=relay, args=(server, client, 0), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, args=(listener,), daemon=True)
    thread.start()
    report = doctor(**SOUND, SSE_STORAGE_URI=f"redis://127.0.0.1:{listener.getsockname()[1]}")
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(PATIENCE)
    assert re.match(r"warn .*takes 1\d\d\.\d ms .*nearer", report.finding("store"))


# The upstreams


def _dated(seconds: float, *fields: str) -> Callable[[Connection], None]:
    def script(connection: Connection) -> None:
        connection.read_request()
        date = formatdate(time.time() + seconds, usegmt=True)
        connection.send(head(404, f"Date: {date}", "Content-Length: 0", *fields))

    return script


def _silent(connection: Connection) -> None:
    connection.read_request()
    connection.wait_closed()


@pytest.fixture(scope="module")
def upstreams_report() -> Iterator[Report]:
    """What is said of a table in which each upstream has something else."""
    now, day = datetime.now(UTC), timedelta(days=1)
    with ExitStack() as stack:

        def start(*args: Any, **options: Any) -> str:
            return stack.enter_context(Upstream(*args, **options)).url

        silent = stack.enter_context(SilentListener())
        plain = start(lambda connection: connection.wait_closed())
        urls = {
            "sound": start(_dated(0), tls=True),
            "timeless": start(respond(framing="length")),
            "cached": start(_dated(-600, "Age: 600")),
            "expired": start(tls=True, expires=now - day),
            "ending": start(_dated(0), tls=True, expires=now + 13 * day),
            "other-name": start(tls=True, names=["other.test"]),
            "no-tls": plain.replace("http", "https"),
            "ahead": start(_dated(-3600)),
            "behind": start(_dated(3600)),
            "mute": start(_silent),
            "garbage": start(lambda connection: connection.send(b"SSH-2.0-x\r\n" * 3)),
            "unknown-name": "https://unused.invalid/",
            "closed": f"http://127.0.0.1:{free_port()}/",
            "unanswered": silent.url,
        }
        headers = {"X-Api-Key": f"{WORD}-key"}
        keys: dict[str, Any] = {name: {"url": url, "headers": headers} for name, url in urls.items()}
        pair = [{"id": "a", "url": urls["sound"]}, {"id": "b"}, {"id": "c"}]
        keys["pair"] = {"url": urls["timeless"], "targets": pair}
        ca_file = str(authority()[1])
        yield doctor(**SOUND, SSE_UPSTREAMS=keys, SSE_CA_FILE=ca_file, SSE_CONNECT_TIMEOUT=2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sound", "ok .*certificate for"),
        ("pair (a)", "ok .*certificate for"),
        ("pair (b, c)", "ok "),
        ("timeless", "ok "),
        ("cached", "ok "),
        ("expired", "fail .*certificate has expired.*renew"),
        ("ending", r"warn .*certificate ends in 1[23]\.\d days.*renewed"),
        ("other-name", "fail .*certificate is for other .*name"),
        ("no-tls", "fail .*(TLS handshake failed.*port|no connection in time)"),
        ("ahead", "warn .*clock is 36.. s ahead of .*timedatectl"),
        ("behind", "warn .*clock is 3[56].. s behind .*timedatectl"),
        ("mute", "fail .*no response in time"),
        ("garbage", "fail .*not an HTTP server.*scheme and port"),
        ("unknown-name", "fail .*name does not resolve.*resolver"),
        ("closed", "fail .*no connection: connection refused check that it is running"),
        ("unanswered", "fail .*no connection in time.*firewall.*SSE_CONNECT_TIMEOUT"),
    ],
)
def test_what_is_wrong_with_an_upstream_is_named(upstreams_report: Report, name: str, said: str) -> None:
    assert re.match(said, upstreams_report.finding(f"upstream {name}"))


def test_a_broken_upstream_is_a_failure(upstreams_report: Report) -> None:
    assert upstreams_report.status == 1
    assert len(upstreams_report.lines("fail")) == 8


def test_an_unknown_authority_is_a_failure(upstream: Callable[..., Upstream]) -> None:
    report = doctor(**SOUND, **table(upstream(tls=True).url))
    assert re.match("fail .*untrusted authority.*SSE_CA_FILE", report.finding("upstream test"))


def test_a_public_name_that_leads_inside_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import socket\nfrom app import app\n"
        "found = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', ('10.0.0.1', 443))]\n"
        "socket.getaddrinfo = lambda *args, **options: found\n"
    )
    settings = {**SOUND, **table("https://api.example.com/")}
    report = doctor(app="shop", root=tmp_path, env={"PYTHONPATH": str(ROOT)}, **settings)
    assert re.match("fail .*resolves to a refused address.*public addresses", report.finding("upstream test"))
    assert "10.0.0.1" not in report.output


# The way to it


def public(url: str, **options: Any) -> Report:
    return doctor(url, **{**SOUND, "SSE_TRUSTED_PROXIES": 1, **options})


#: nginx as it comes, without any setting of the relay's.
UNHEARD: Edit = (r"^ *gzip off;$", "gzip off; proxy_ignore_headers X-Accel-Buffering;")
BUFFERING: Edit = (r"^ *proxy_buffering off;$", "")
OLD: Edit = (r"^ *proxy_http_version 1.1;$", "")
COMPRESSING: Edit = (r"^ *gzip off;$", "gzip on; gzip_types text/event-stream; gzip_min_length 0;")


def test_straight_to_the_service_all_is_well(shared_service: Service) -> None:
    report = public(shared_service.url)
    assert (report.finding("stream")[:2], report.finding("health")[:2], report.status) == ("ok", "ok", 0)


def test_a_proxy_that_buffers_is_a_failure(nginx: Callable[..., str], shared_service: Service) -> None:
    report = public(nginx(shared_service, UNHEARD, BUFFERING, OLD))
    assert re.match(
        "fail .* no head came .*a proxy on the way buffers it nginx: proxy_buffering off", report.finding("stream")
    )
    assert report.status == 1


def test_a_proxy_that_holds_the_head_back_is_named(nginx: Callable[..., str], shared_service: Service) -> None:
    report = public(nginx(shared_service, UNHEARD, BUFFERING))
    assert re.match("warn .*waits for the first event.*nginx: proxy_buffering off", report.finding("head"))


def test_a_proxy_that_compresses_is_a_failure(nginx: Callable[..., str], shared_service: Service) -> None:
    """It is asked again without, for that is another thing."""
    report = public(nginx(shared_service, COMPRESSING))
    assert re.match(r"fail .*\(gzip\).*nginx: gzip off; Caddy: no encode", report.finding("compression"))
    assert report.finding("stream").startswith("ok")


def test_a_proxy_that_is_not_configured_is_named(nginx: Callable[..., str], shared_service: Service) -> None:
    url = nginx(shared_service)
    report = public(url, SSE_TRUSTED_PROXIES=0)
    assert re.match("warn .*share its address.*SSE_TRUSTED_PROXIES = 1", report.finding("proxies"))
    assert "proxies" not in public(url).output
    assert "proxies" not in public(shared_service.url, SSE_TRUSTED_PROXIES=0).output


def test_metrics_that_anybody_can_read_are_named(service: Callable[..., Service]) -> None:
    report = public(service(SSE_METRICS=True).url)
    assert re.match("warn .*/metrics can be read.*location = /metrics", report.finding("metrics"))


def test_a_health_check_that_does_not_pass_is_a_failure(nginx: Callable[..., str], shared_service: Service) -> None:
    report = public(nginx(shared_service, (r"^ *location / \{$", "location = /healthz { deny all; } location / {")))
    assert re.match("fail .*/healthz is 403.*let it through", report.finding("health"))


def test_tls_is_looked_at(nginx: Callable[..., str], shared_service: Service, tmp_path: Path) -> None:
    ca, ca_file = authority()
    env = {"REQUESTS_CA_BUNDLE": str(ca_file)}

    def behind(protocol: str, **certificate: Any) -> str:
        ca.issue_cert("127.0.0.1", **certificate).private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
        files = f"ssl_certificate {tmp_path}/pem; ssl_certificate_key {tmp_path}/pem;"
        listen = (PLAIN[0][0], f"{files} listen {LISTEN} {protocol} ")
        return nginx(shared_service, listen=[listen, *PLAIN[1:]]).replace("http", "https")

    report = public(behind("ssl http2"), env=env)
    assert (report.finding("public TLS")[:2], report.status, "public HTTP" in report.output) == ("ok", 0, False)
    url = behind("ssl", not_after=datetime.now(UTC) + timedelta(days=5))
    report = public(url, env=env)
    assert re.match("warn .*ends in [45] days.*renewed", report.finding("public TLS"))
    assert re.match("warn .*no HTTP/2.*listen 443 ssl http2", report.finding("public HTTP"))
    report = public(url)
    assert re.match("fail .*untrusted authority.*REQUESTS_CA_BUNDLE", report.finding("public TLS"))
    report = public(behind("ssl", not_after=datetime.now(UTC) - timedelta(days=1)), env=env)
    assert re.match("fail .*has expired.*renew", report.finding("public TLS"))


def test_without_tls_is_named_where_others_can_listen(tmp_path: Path, shared_service: Service) -> None:
    """The name leads here, but does not look like it."""
    (tmp_path / "shop.py").write_text(
        "import socket\nfrom app import app\nreal = socket.getaddrinfo\n"
        "socket.getaddrinfo = lambda host, *args, **options: real('127.0.0.1', *args, **options)\n"
    )
    env = {"PYTHONPATH": str(ROOT)}
    report = public(f"http://relay.example:{shared_service.port}/", app="shop", root=tmp_path, env=env)
    assert re.match("warn .*can be read on their way", report.finding("public TLS"))
    assert report.finding("stream").startswith("ok")


FIELDS = (EVENT_STREAM, "Cache-Control: no-cache, no-transform", "Transfer-Encoding: chunked")


def _events(*bursts: int, fields: Sequence[str] = FIELDS, version: str = "HTTP/1.1", head_waits: bool = False) -> Any:
    """Return a front that sends so many events at once, 0.3 s apart, after the head or together with it."""

    def script(connection: Connection) -> None:
        if connection.read_request().target != "/sse":
            connection.send(head(200, "Content-Length: 0", "Connection: close"))
            return
        first = head(200, *fields, version=version)
        for burst in bursts:
            if not head_waits:
                connection.send(first)
                first = b""
            time.sleep(0.3)
            piece = b"data: x\n\n" * burst
            connection.send(first + (chunk(piece) if "Transfer-Encoding: chunked" in fields else piece))
            first = b""
        connection.wait_closed()

    return script


@pytest.mark.parametrize(
    ("front", "what", "said"),
    [
        pytest.param(_events(1, 2, 3), "stream", "ok", id="slow-machine"),
        pytest.param(_events(6), "stream", "fail .*6 events came in 1 burst.*proxy_buffering", id="one-burst"),
        pytest.param(_events(5, 5), "stream", "fail .*10 events came in 2 bursts", id="each-second"),
        pytest.param(_events(3), "stream", "fail .* 3 events came within 5 s", id="stuck"),
        pytest.param(_events(*[1] * 6, head_waits=True), "head", "warn .*waits for the first event", id="late-head"),
        pytest.param(
            _events(*[1] * 6, fields=[EVENT_STREAM, FIELDS[2]]), "Cache-Control", "warn .*is missing", id="field"
        ),
        pytest.param(
            _events(*[1] * 6, fields=FIELDS[:2], version="HTTP/1.0"), "HTTP version", "warn .*1.0.*HTTP/1.1", id="1.0"
        ),
        pytest.param(respond(fields=["Content-Type: text/html"]), "stream", "fail .*does not come as text/", id="type"),
        pytest.param(respond(status=401), "stream", "fail .*/sse is 401.*log", id="status"),
        pytest.param(respond(status=301), "stream", "fail .*redirects.*where it leads", id="redirect"),
        pytest.param(respond(status=404), "stream", "fail .*neither .*/sse nor .*event streams", id="nothing"),
    ],
)
def test_what_is_wrong_with_the_stream_is_named(
    upstream: Callable[..., Upstream], front: Any, what: str, said: str
) -> None:
    report = public(upstream(front).url)
    assert re.match(said, report.finding(what))
    if what == "stream":
        assert "head" not in re.findall(r"^warn +(\S+)", report.output, re.MULTILINE)
    if front is not None and said.startswith("fail"):
        assert report.status == 1


def test_a_refused_connection_to_the_url_is_a_failure() -> None:
    report = public(f"http://user:{WORD}@127.0.0.1:{free_port()}")
    assert re.match("fail .*http://127.0.0.1:.* no response check that", report.finding("public URL"))
    with SilentListener() as silent:
        assert re.match("fail .*no response in time", public(silent.url).finding("public URL"))


def test_a_stream_of_ones_own_can_be_looked_at(upstream: Callable[..., Upstream], tmp_path: Path) -> None:
    """A site has no demonstration; what its stream should send by when is for its author to know."""
    (tmp_path / "gunicorn.conf.py").write_text("from sse.gunicorn.settings import *\n")
    (tmp_path / "app.py").write_text(
        "import time\nfrom flask import Flask\nfrom sse import SSE, EventSourceResponse\n"
        "app = Flask(__name__)\napp.config.from_prefixed_env()\nSSE(app, url_prefix='/ai')\n"
        "app.add_url_rule('/healthz', view_func=lambda: 'ok')\n"
        "app.add_url_rule('/slow', 'slow', \n"
        "    lambda: EventSourceResponse('a' for _ in iter(lambda: time.sleep(0.1), 1)))\n"
        "app.add_url_rule('/once', 'once', lambda: EventSourceResponse(list('abcdef')))\n"
        "app.add_url_rule('/few', 'few', lambda: EventSourceResponse(['a']))\n"
    )
    path = {"PYTHONPATH": str(ROOT)}
    with Service(root=tmp_path, env=path) as site:
        reports = {name: public(f"{site.url}/{name}") for name in ("slow", "once", "few", "healthz", "")}
    assert reports["slow"].finding("stream").startswith("ok")
    assert re.match("warn .*6 events came in 1 burst", reports["once"].finding("stream"))
    assert re.match("warn .*1 events came", reports["few"].finding("stream"))
    assert re.match("fail .*is not an event stream.*give the URL", reports["healthz"].finding("stream"))
    assert re.match("fail .*neither.*give the URL", reports[""].finding("stream"))
    assert all("health" not in report.output.replace("/healthz", "") for report in reports.values())


def test_it_is_listed_among_the_commands() -> None:
    """Without being imported: what a site does not call, it does not pay for."""
    code = (
        "import sys, app\nassert 'sse.doctor' not in sys.modules\n"
        "assert 'doctor' in app.app.cli.commands['sse'].commands"
    )
    with Process([sys.executable, "-c", code], env={**os.environ}) as process:
        assert process.wait_exit() == 0, process.log()


def test_every_setting_it_names_is_one() -> None:
    texts = "".join(path.read_text() for path in (ROOT / "sse/cli/doctor").glob("*.py"))
    # SSE_CONFIG names the file that settings are in.
    named = set(re.findall(r"SSE_[A-Z_]+[A-Z]", texts)) - {"SSE_CONFIG"}
    assert named and named <= {f"SSE_{name.upper()}" for name in Settings.__dataclass_fields__}
