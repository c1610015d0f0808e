"""What may be called: the refused targets, all with one response, and the few that are not, through a real gunicorn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .support.relay import Relay
from .support.service import RawClient, Service, call, forward
from .support.upstream import Upstream, respond

#: Where the table's one upstream ends; what is beside it is the same server, and refused.
BASE = "/v1/allowed"

#: `{port}` is the port of a server that does answer, so that what gets through is seen.
REFUSED = """
    http://127.0.0.1:{port}/
    http://127.0.0.1:{port}/v1
    http://127.0.0.1:{port}/v1/
    http://127.0.0.1:{port}/v1/allowedx
    http://127.0.0.1:{port}/v1/allow
    http://127.0.0.1:{port}/V1/ALLOWED/
    http://127.0.0.1:{port}/x/v1/allowed/
    http://127.0.0.1:{port}/v1/allowed/..
    http://127.0.0.1:{port}/v1/allowed/../
    http://127.0.0.1:{port}/v1/allowed/../admin
    http://127.0.0.1:{port}/v1/allowed/./../admin
    http://127.0.0.1:{port}/v1/allowed/a/../../admin
    http://127.0.0.1:{port}/v1/allowed/%2e%2e/admin
    http://127.0.0.1:{port}/v1/allowed/.%2e/admin
    http://127.0.0.1:{port}/v1/allowed/%2E./admin
    http://127.0.0.1:{port}/v1/allowed/%252e%252e/admin
    http://127.0.0.1:{port}/v1/allowed/..%2fadmin
    http://127.0.0.1:{port}/v1/allowed/%2e%2e%2fadmin
    http://127.0.0.1:{port}/v1/allowed/..%252fadmin
    http://127.0.0.1:{port}/v1/allowed/..%5cadmin
    http://127.0.0.1:{port}/v1/allowed/..;/admin
    http://127.0.0.1:{port}/v1/allowed/..;x=y/admin
    http://127.0.0.1:{port}/v1/allowed/a%2f..%2f..%2fadmin
    http://127.0.0.1:{port}/v1/allowed%2fa
    http://127.0.0.1:{port}/v1%2fallowed/a
    http://127.0.0.1:{port}/v1/allowed/%00
    http://127.0.0.1:{port}/v1/allowed/%0d%0aX-Injected:%201
    http://127.0.0.1:{port}/v1/allowed/%%32e%%32e/admin
    http://127.0.0.1:{port}/v1/allowed/%u002e%u002e/admin
    http://127.0.0.1:{port}//v1/allowed/
    http://127.0.0.1:{port}\\@example.com/v1/allowed/
    http://127.0.0.1:{port}/v1/allowed\\..\\admin
    http://127.0.0.1:{port}\\v1\\allowed\\
    http:\\\\127.0.0.1:{port}\\v1\\allowed\\
    http://example.com@127.0.0.1:{port}/v1/allowed/
    http://user:secret@127.0.0.1:{port}/v1/allowed/
    http://@127.0.0.1:{port}/v1/allowed/
    http://127.0.0.1:{port}@example.com/v1/allowed/
    http://127.0.0.1:{port}:80/v1/allowed/
    http://127.0.0.1:{port}#@example.com/v1/allowed/
    http://127.0.0.1:{port}/v1/allowed/#fragment
    http://127.0.0.1:0{port}/v1/allowed/
    http://127.0.0.1:+{port}/v1/allowed/
    http://127.0.0.1:{port}x/v1/allowed/
    http://127.0.0.1:99999/v1/allowed/
    http://127.0.0.1:0/v1/allowed/
    http://127.0.0.1/v1/allowed/
    https://127.0.0.1:{port}/v1/allowed/
    http://127.1:{port}/v1/allowed/
    http://127.0.1:{port}/v1/allowed/
    http://127.000.000.001:{port}/v1/allowed/
    http://0177.0.0.1:{port}/v1/allowed/
    http://0x7f.0.0.1:{port}/v1/allowed/
    http://0x7f000001:{port}/v1/allowed/
    http://0x7F.1:{port}/v1/allowed/
    http://2130706433:{port}/v1/allowed/
    http://017700000001:{port}/v1/allowed/
    http://127.0.0.1.:{port}/v1/allowed/
    http://127.0.0.2:{port}/v1/allowed/
    http://0:{port}/v1/allowed/
    http://0.0.0.0:{port}/v1/allowed/
    http://localhost:{port}/v1/allowed/
    http://LOCALHOST.:{port}/v1/allowed/
    http://x.localhost:{port}/v1/allowed/
    http://localhost.localdomain:{port}/v1/allowed/
    http://127.0.0.1.nip.io:{port}/v1/allowed/
    http://[::1]:{port}/v1/allowed/
    http://[::]:{port}/v1/allowed/
    http://[::127.0.0.1]:{port}/v1/allowed/
    http://[::ffff:127.0.0.1]:{port}/v1/allowed/
    http://[::ffff:7f00:1]:{port}/v1/allowed/
    http://[::ffff:0:127.0.0.1]:{port}/v1/allowed/
    http://[64:ff9b::127.0.0.1]:{port}/v1/allowed/
    http://[64:ff9b:1::7f00:1]:{port}/v1/allowed/
    http://[2002:7f00:1::]:{port}/v1/allowed/
    http://[fe80::1%25lo]:{port}/v1/allowed/
    http://[fe80::1%lo]:{port}/v1/allowed/
    http://[::1:{port}/v1/allowed/
    http://127.0.0.1%00.example.com:{port}/v1/allowed/
    http://127.0.0.1%2f@example.com:{port}/v1/allowed/
    http://%31%32%37.0.0.1:{port}/v1/allowed/
    http://１２７.0.0.1:{port}/v1/allowed/
    http://①②⑦.⓪.⓪.①:{port}/v1/allowed/
    http://127。0。0。1:{port}/v1/allowed/
    http://127．0．0．1:{port}/v1/allowed/
    http://loc\u00adalhost:{port}/v1/allowed/
    http://ⓛocalhost:{port}/v1/allowed/
    http://exa_mple..com:{port}/v1/allowed/
    http://-.:{port}/v1/allowed/
    http://:{port}/v1/allowed/
    http:///v1/allowed/
    http:/127.0.0.1:{port}/v1/allowed/
    http:127.0.0.1:{port}/v1/allowed/
    ftp://127.0.0.1:{port}/v1/allowed/
    file:///etc/passwd
    gopher://127.0.0.1:{port}/_GET
    data:text/event-stream,data:x
    javascript:alert(1)
    unix:///var/run/docker.sock
    http+unix://%2Fvar%2Frun%2Fdocker.sock/info
    ws://127.0.0.1:{port}/v1/allowed/
    jar:http://127.0.0.1:{port}/v1/allowed/
    url:http://127.0.0.1:{port}/v1/allowed/
    https://10.0.0.1/
    https://172.16.0.1/
    https://192.168.1.1/
    https://100.64.0.1/
    https://100.100.100.200/latest/meta-data/
    https://169.254.169.254/latest/meta-data/
    http://169.254.169.254/latest/meta-data/
    https://168.63.129.16/
    https://192.0.0.192/
    https://192.0.2.1/
    https://192.31.196.1/
    https://192.88.99.1/
    https://192.175.48.1/
    https://198.18.0.1/
    https://198.51.100.1/
    https://203.0.113.1/
    https://224.0.0.1/
    https://239.255.255.250/
    https://240.0.0.1/
    https://255.255.255.255/
    https://[fc00::1]/
    https://[fd00:ec2::254]/
    https://[fe80::1]/
    https://[fec0::1]/
    https://[ff02::1]/
    https://[2001:db8::1]/
    https://[2001::1]/
    https://[2001:0:a00:1::]/
    https://[2002:a00:1::]/
    https://[64:ff9b::a00:1]/
    https://[100::1]/
    https://[3fff::1]/
    https://[2606:4700::5efe:10.0.0.1]/
    https://[::10.0.0.1]/
    https://localhost/
    https://router.local/
    https://db.internal/
    https://nas.lan/
    https://printer.home.arpa/
    https://metadata/
    https://metadata.google.internal/
    https://kubernetes.default.svc.cluster.local/
    http://example.com/
    http://api.openai.com/v1/chat/completions
""".split()

#: What whitespace and control characters make of a target that would be allowed without them.
REFUSED_CHARACTERS = [" ", "\t", "\n", "\r\n", "\0", "\x7f", "\u00a0", "\u2028", "\u200b", "\ufeff"]

INVALID = ["", "x", "/", "/v1/", "//127.0.0.1/v1/", "127.0.0.1/v1/", "?", "#", "http", "..", "*", "http://x/\ud800"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Relay]:
    """A service with one upstream and open to all public targets: as much as it can be opened."""
    with Upstream() as upstream:
        settings: dict[str, Any] = {"SSE_ALLOW_PUBLIC_TARGETS": True, "SSE_OPEN": True, "SSE_THROTTLE": ""}
        with Service(SSE_UPSTREAMS={"test": upstream.url + BASE}, **settings) as service:
            yield Relay(service, upstream)


def problem_of(client: RawClient) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
    """Return the status, the problem and the fields of a refusal, without what differs for each request."""
    with client:
        head = client.read_head()
        problem = client.json()
    assert head.field("Content-Type") == "application/problem+json"
    assert problem.pop("request_id") == head.field("X-Request-Id")
    changing = {"date", "x-request-id"}
    return head.status, problem, [(name, value) for name, value in head.fields if name.lower() not in changing]


def test_every_hostile_target_is_refused_with_the_same_answer(guarded: Relay) -> None:
    guarded.upstream.script = respond(b"data: reached\n\n")
    expected = problem_of(forward(guarded.service, "https://10.0.0.1/"))
    assert expected[:2] == (
        403,
        {
            "type": "about:blank",
            "title": "The target is not allowed",
            "status": 403,
            "detail": "The target is not allowed",
            "code": "target_not_allowed",
            "error": {
                "message": "The target is not allowed",
                "type": "permission_error",
                "code": "target_not_allowed",
                "param": None,
            },
        },
    )
    base = f"{guarded.upstream.url}{BASE}/"
    targets = [text.format(port=guarded.upstream.port) for text in REFUSED]
    targets += [f"{base}{character}x" for character in REFUSED_CHARACTERS]
    targets += [base.replace("127", f"127{character}") for character in REFUSED_CHARACTERS]
    wrong = {target: found for target in targets if (found := problem_of(forward(guarded.service, target))) != expected}
    assert not wrong
    assert not guarded.upstream.connections


@pytest.mark.parametrize("target", INVALID)
def test_what_is_no_absolute_url_is_an_invalid_request(guarded: Relay, target: str) -> None:
    status, problem, _ = problem_of(forward(guarded.service, target))
    assert (status, problem["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (BASE, BASE),
        (BASE + "/", BASE + "/"),
        (BASE + "/chat?model=a&x=%20", BASE + "/chat?model=a&x=%20"),
        (BASE + "/a/../b", BASE + "/b"),
        (BASE + "/a/%2e%2e/b", BASE + "/b"),
        ("/v1/%61llowed/b", "/v1/%61llowed/b"),
        ("/v1/x/../allowed/b", BASE + "/b"),
        (BASE + "/%c3%a9/é", BASE + "/%c3%a9/%C3%A9"),
        (BASE + "/meta%2FLlama%2f8B", BASE + "/meta%2FLlama%2f8B"),
        (BASE + "/100%/a?b=%&c=C:\\d", BASE + "/100%/a?b=%&c=C:\\d"),
    ],
)
def test_what_is_sent_is_what_was_judged(guarded: Relay, asked: str, sent: str) -> None:
    guarded.upstream.settle()
    guarded.upstream.script = respond(b"data: reached\n\n")
    with forward(guarded.service, guarded.upstream.url.replace("http", "HTTP") + asked) as client:
        assert client.read_body() == b"data: reached\n\n"
    request = guarded.upstream.wait_request()
    assert (request.target, request.field("Host")) == (sent, f"127.0.0.1:{guarded.upstream.port}")


REFUSED_PATHS = """
    ../admin ../../admin a/../../admin %2e%2e/admin .%2e/admin %252e%252e/admin ..%2fadmin %2e%2e%2fadmin ..%5cadmin
    ..\\admin ..;/admin ..;x/admin a%2f..%2fb a\\b %00 a%5c..%5cb
""".split()


@pytest.mark.parametrize("path", REFUSED_PATHS)
def test_no_path_leads_out_of_an_upstream(guarded: Relay, path: str) -> None:
    guarded.upstream.settle()
    guarded.upstream.script = respond(b"data: reached\n\n")
    status, problem, _ = problem_of(call(guarded.service, "GET", f"/upstream/test/{path}"))
    assert (status, problem["code"]) == (403, "target_not_allowed")
    assert not guarded.upstream.connections


@pytest.mark.parametrize(
    "target",
    [
        "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aprofile%2Fabc/invoke",
        "/meta-llama%2fLlama-3.1-8B?x=%2f",
        "/100%/%zz?q=100%&r=C:\\a&s={[|]}^`'\"<>",
        "/%7Eme/%c3%bc?%7e",
    ],
)
def test_a_target_goes_upstream_as_it_was_written(guarded: Relay, target: str) -> None:
    """A path with an escaped slash was refused, and a query came out in another spelling."""
    guarded.upstream.settle()
    guarded.upstream.script = respond(b"data: reached\n\n")
    with call(guarded.service, "GET", f"/upstream/test{target}") as client:
        assert client.read_body() == b"data: reached\n\n"
    assert guarded.upstream.wait_request().target == BASE + target
    guarded.upstream.settle()


@pytest.mark.parametrize(
    "path",
    ["/upstream/other/", "/upstream/TEST/", "/upstream/te%73t%00/", "/upstream/%2e/x", "/upstream/test/%0d%0aX:1"],
)
def test_an_upstream_that_is_not_in_the_table_is_not_found(guarded: Relay, path: str) -> None:
    status, problem, _ = problem_of(call(guarded.service, "GET", path))
    assert (status, problem["code"]) == (404, "not_found")


def test_without_leave_no_public_target_is_called(relay: Relay) -> None:
    with forward(relay.service, "https://1.1.1.1:1/") as client:
        assert (client.read_head().status, client.json()["code"]) == (403, "target_not_allowed")


def test_a_redirect_is_not_followed(relay: Relay) -> None:
    """The reference followed 21 of them, to wherever they led."""
    script = respond(b"", status=302, fields=[f"Location: {relay.upstream.url}/elsewhere"], framing="length")
    with relay.forward(script) as client:
        head = client.read_head()
        assert (head.status, client.json()["code"]) == (502, "upstream_bad_response")
        assert head.field("Location") is None
    assert [request.target for request in relay.upstream.requests] == ["/"]


def test_a_certificate_of_another_name_is_refused(
    upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    good = upstream(respond(b"data: good\n\n"), tls=True)
    wrong = upstream(respond(b"data: wrong\n\n"), tls=True, names=("api.example.com",))
    table = {"good": good.url, "wrong": wrong.url}
    trusting = service(SSE_UPSTREAMS=table, SSE_CA_FILE=good.ca_file)
    with forward(trusting, good.url) as client:
        assert client.read_body() == b"data: good\n\n"
    with forward(trusting, wrong.url) as client:
        assert (client.read_head().status, client.json()["code"]) == (502, "upstream_unreachable")
    assert not wrong.requests
    distrusting = service(SSE_UPSTREAMS=table)
    with forward(distrusting, good.url) as client:
        assert (client.read_head().status, client.json()["code"]) == (502, "upstream_unreachable")
    assert len(good.requests) == 1


def test_proxies_of_the_environment_are_not_asked(
    upstream: Callable[..., Upstream], service: Callable[..., Service]
) -> None:
    """The reference honoured HTTP_PROXY."""
    target, proxy = upstream(respond(b"data: direct\n\n")), upstream(respond(b"data: proxied\n\n"))
    env = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), proxy.url)
    relay = service(SSE_UPSTREAMS={"test": target.url}, env=env)
    with forward(relay, target.url) as client:
        assert client.read_body() == b"data: direct\n\n"
    assert not proxy.connections
