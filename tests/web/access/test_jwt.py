"""Tokens that are taken and, more of them, tokens that are not."""

from __future__ import annotations

import base64
import json
import threading
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from sse.web.access import jwt as tokens
from sse.web.access.jwt import KeySet, Rules, Verifier

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def jwk(key: rsa.RSAPrivateKey, key_id: str) -> dict[str, Any]:
    document = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**document, "kid": key_id, "use": "sig", "alg": "RS256"}


class Issuer:
    """What a URL of keys answers with, and how often it was asked."""

    def __init__(self) -> None:
        self.keys = [jwk(KEY, "k1")]
        self.fetched = 0
        #: What takes the place of its keys.
        self.response: bytes | OSError | None = None

    def fetch(self) -> bytes:
        self.fetched += 1
        if isinstance(self.response, OSError):
            raise self.response
        if self.response is not None:
            return self.response
        return json.dumps({"keys": self.keys}).encode()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def verifier(issuer: Issuer) -> Verifier:
    return Verifier(Rules(issuer="https://site.example", audience="gateway"), KeySet(issuer.fetch))


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"iss": "https://site.example", "aud": "gateway", "sub": "ann", "exp": now + 300, **more}


def signed(key: Any = KEY, algorithm: str = "RS256", *, kid: str = "k1", **more: Any) -> str:
    given = {name: value for name, value in claims(**more).items() if value is not None}
    return jwt.encode(given, key, algorithm=algorithm, headers={"kid": kid})


def sign(payload: bytes) -> str:
    """Return a token of any claims, of the form that the issuer's have."""
    return jwt.api_jws.encode(payload, KEY, "RS256", headers={"kid": "k1"})


def part(document: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def with_head(**head: Any) -> str:
    """Return a token whose head says something else than what it was signed for."""
    _, payload, signature = signed().split(".")
    return ".".join((part(head), payload, signature))


def test_a_token_of_the_issuer_names_the_client(verifier: Verifier) -> None:
    client = verifier.verify(signed())
    assert client is not None
    assert client.name == "ann"
    assert client.expires is not None and 0 < client.expires - tokens.LEEWAY - time.time() <= 300


REFUSED = {
    "no-token": lambda: "secret",
    "empty-parts": lambda: "..",
    "none": lambda: jwt.encode(claims(), "", algorithm="none", headers={"kid": "k1"}),
    "none-with-a-signature": lambda: with_head(alg="none", kid="k1"),
    "other-key": lambda: signed(OTHER),
    "unknown-key-id": lambda: signed(kid="k2"),
    "not-yet": lambda: signed(nbf=int(time.time()) + 300),
    "expired": lambda: signed(exp=int(time.time()) - 300),
    "without-expiry": lambda: signed(exp=None),
    "without-audience": lambda: signed(aud=None),
    "other-audience": lambda: signed(aud="elsewhere"),
    "without-issuer": lambda: signed(iss=None),
    "other-issuer": lambda: signed(iss="https://evil.example"),
    "without-client": lambda: signed(sub=None),
    "client-that-is-no-name": lambda: signed(sub="a b"),
    "empty-client": lambda: signed(sub=""),
    "other-algorithm": lambda: signed(algorithm="RS512"),
    "critical": lambda: jwt.encode(claims(), KEY, "RS256", headers={"kid": "k1", "crit": ["x"], "x": 1}),
    "too-long": lambda: signed(padding="x" * 9000),
    "cut": lambda: signed()[:-4],
    "nested-head": lambda: f"{base64.urlsafe_b64encode(b'[' * 5997).decode()}.e30.e30",
    "nested-claims": lambda: sign(b"[" * 4000),
    "endless": lambda: sign(json.dumps(claims(exp=float("inf"))).encode()),
    "number-above-all": lambda: sign(json.dumps(claims(exp=10**400)).encode()),
    "other-numbers": lambda: sign(json.dumps(claims(nbf=float("inf"))).encode()),
    "no-object": lambda: sign(b"[]"),
    "no-json-in-the-head": lambda: "e30x." + signed().partition(".")[2],
}


@pytest.mark.parametrize("token", REFUSED.values(), ids=REFUSED)
def test_a_token_that_is_refused(verifier: Verifier, token: Any) -> None:
    assert verifier.verify(token()) is None


def test_the_public_key_as_a_secret_is_refused(issuer: Issuer) -> None:
    """RFC 8725, section 2.1: a verifier that believes the head takes the public key for the secret of HS256."""
    verifier = Verifier(
        Rules(issuer="https://site.example", audience="gateway", algorithms=("RS256", "HS256")), KeySet(issuer.fetch)
    )
    import hashlib
    import hmac

    text = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'k1'})}.{part(claims())}"
    mac = hmac.new(PUBLIC, text.encode(), hashlib.sha256).digest()
    forged = f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    assert verifier.verify(forged) is None


@pytest.mark.parametrize("head", [{"crit": ["x"]}, {"alg": "none"}, {"alg": "HS256"}, {"alg": "RS512"}, {"alg": None}])
def test_a_head_is_refused_before_it_is_believed(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch, head: dict[str, Any]
) -> None:
    """PyJWT refuses them too, in most versions."""
    given: list[Any] = []

    def decode(*args: Any, **options: Any) -> dict[str, Any]:
        given.append(options)
        return claims()

    monkeypatch.setattr(jwt, "get_unverified_header", lambda text: {"alg": "RS256", "kid": "k1", **head})
    monkeypatch.setattr(jwt, "decode", decode)
    assert verifier.verify("a.b.c") is None
    assert not given
    head.clear()
    assert verifier.verify("a.b.c") is not None
    assert given[0]["algorithms"] == ["RS256"]


def test_a_client_that_is_a_number_is_refused(issuer: Issuer) -> None:
    """PyJWT checks the type of `sub` alone."""
    verifier = Verifier(Rules(issuer="https://site.example", audience="gateway", client="uid"), KeySet(issuer.fetch))
    assert verifier.verify(signed(uid="5")) is not None
    assert verifier.verify(signed(uid=5)) is None


def test_a_client_of_a_token_ends_with_it(verifier: Verifier) -> None:
    until = int(time.time()) + 300
    client = verifier.verify(signed(exp=until))
    assert client is not None
    assert (client.name, client.expires, client.is_temporary) == ("ann", until + tokens.LEEWAY, True)


def test_a_key_without_an_id_serves_all_if_it_is_alone(verifier: Verifier, issuer: Issuer) -> None:
    del issuer.keys[0]["kid"]
    assert verifier.verify(signed(kid="any")) is not None
    assert verifier.verify(signed(OTHER, kid="any")) is None


def test_a_key_for_encryption_verifies_nothing(verifier: Verifier, issuer: Issuer) -> None:
    issuer.keys[0]["use"] = "enc"
    assert verifier.verify(signed()) is None


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(OSError("refused"), id="unreachable"),
        pytest.param(b"{", id="not-json"),
        pytest.param(b"\xff", id="not-utf-8"),
        pytest.param(b'{"keys": []}', id="no-keys"),
        pytest.param(b'{"keys": [{"kty": "nonsense"}]}', id="no-key-that-is-known"),
    ],
)
def test_keys_that_cannot_be_had_leave_those_before(
    response: bytes | OSError, monkeypatch: pytest.MonkeyPatch, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    keys = KeySet(issuer.fetch)
    assert keys.refresh()
    issuer.response = response
    assert keys.refresh() and issuer.fetched == 1, "fetched again at once"
    monkeypatch.setattr(tokens, "UNKNOWN_KEY_INTERVAL", 0.0)
    assert keys.refresh()
    assert keys.find("k1") is not None
    assert "the keys cannot be read" in caplog.text


def test_those_who_come_meanwhile_do_not_wait_for_new_keys(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go, finished = threading.Event(), threading.Event(), threading.Event()
    keys = KeySet(issuer.fetch)
    assert keys.refresh()
    monkeypatch.setattr(tokens, "UNKNOWN_KEY_INTERVAL", 0.0)

    def slow() -> bytes:
        began.set()
        go.wait(5)
        finished.set()
        return json.dumps({"keys": issuer.keys}).encode()

    keys._fetch = slow
    thread = threading.Thread(target=keys.refresh)
    thread.start()
    assert began.wait(10)
    assert keys.refresh() and not finished.is_set()
    go.set()
    thread.join()


def test_a_key_that_was_taken_out_is_not_believed_for_long(
    verifier: Verifier, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "VERIFIED_AGE", 0.0)
    monkeypatch.setattr(tokens, "KEYS_AGE", 0.0)
    text = signed()
    assert verifier.verify(text) is not None
    issuer.keys = [jwk(OTHER, "k2")]
    monkeypatch.setattr(tokens, "UNKNOWN_KEY_INTERVAL", 0.0)
    assert verifier.verify(text) is None


def test_verified_tokens_do_not_pile_up(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_VERIFIED", 2)
    for number in range(5):
        assert verifier.verify(signed(jti=str(number))) is not None
        assert len(verifier._verified) <= 2


def test_unknown_keys_cost_one_fetch(verifier: Verifier, issuer: Issuer) -> None:
    for number in range(1000):
        assert verifier.verify(signed(kid=f"x{number}")) is None
    assert issuer.fetched == 1


def test_a_new_key_is_fetched_once_its_time_has_come(
    verifier: Verifier, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verifier.verify(signed()) is not None
    issuer.keys.append(jwk(OTHER, "k2"))
    assert verifier.verify(signed(OTHER, kid="k2")) is None
    monkeypatch.setattr(tokens, "UNKNOWN_KEY_INTERVAL", 0.0)
    assert verifier.verify(signed(OTHER, kid="k2")) is not None
    assert issuer.fetched == 2


def test_the_last_good_keys_stay(verifier: Verifier, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verifier.verify(signed()) is not None
    monkeypatch.setattr(tokens, "KEYS_AGE", 0.0)
    monkeypatch.setattr(tokens, "UNKNOWN_KEY_INTERVAL", 0.0)
    issuer.keys = [{"kty": "nonsense"}]
    assert verifier.verify(signed(jti="2")) is not None
    assert issuer.fetched == 2


def test_a_verified_token_is_not_verified_again(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    text = signed()
    first = verifier.verify(text)
    monkeypatch.setattr(jwt, "decode", lambda *args, **options: pytest.fail("verified again"))
    assert verifier.verify(text) == first


def test_a_verified_token_ends_when_it_says(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    text = signed(exp=int(time.time()) - 10)
    assert verifier.verify(text) is not None
    later = time.time() + 21
    monkeypatch.setattr(time, "time", lambda: later)
    # PyJWT has a clock of its own.
    monkeypatch.setattr(tokens, "LEEWAY", 0.0)
    assert verifier.verify(text) is None


def test_what_was_refused_is_looked_at_again(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    text = signed(nbf=int(time.time()) + 300)
    assert verifier.verify(text) is None
    monkeypatch.setattr(tokens, "LEEWAY", 400.0)
    assert verifier.verify(text) is not None
