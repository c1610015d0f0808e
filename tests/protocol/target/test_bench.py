"""How long a target is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse.protocol.target.order import MAX_BENCH, Bench, parse_retry_after

#: RFC 9110, section 10.2.3, has this date for an example: Fri, 31 Dec 1999 23:59:59 GMT.
EXAMPLE = 946684799.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param("120", 120.0, id="seconds"),
        pytest.param("0", 0.0, id="no-time"),
        pytest.param("999999999", 999999999.0, id="many"),
        pytest.param("Fri, 31 Dec 1999 23:59:59 GMT", 9.0, id="date"),
        pytest.param("Friday, 31-Dec-99 23:59:59 GMT", 9.0, id="date-rfc850"),
        pytest.param("Fri Dec 31 23:59:59 1999", 9.0, id="date-asctime"),
        pytest.param("Fri, 31 Dec 1999 23:59:40 GMT", 0.0, id="past"),
        pytest.param("", 0.0, id="empty"),
        pytest.param("-1", 0.0, id="negative"),
        pytest.param("1.5", 0.0, id="fraction"),
        pytest.param("soon", 0.0, id="word"),
        pytest.param("٣", 0.0, id="other-digits"),
        pytest.param("1" * 5000, 0.0, id="long"),
        pytest.param("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", 0.0, id="no-such-year"),
        pytest.param("Fri, 99 Foo 1999 23:59:59 GMT", 0.0, id="no-such-day"),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    assert parse_retry_after(value, EXAMPLE - 9) == seconds


@given(st.text(st.characters(max_codepoint=255)))
def test_no_retry_after_is_an_error(value: str) -> None:
    assert parse_retry_after(value, EXAMPLE) >= 0


def test_a_bench_ends() -> None:
    bench = Bench()
    assert bench.end("openai", "a") == 0
    bench.add("openai", "a", 5, now=100)
    assert (bench.end("openai", "a"), bench.end("openai", "b"), bench.end("other", "a")) == (105, 0, 0)


def test_a_bench_has_a_longest_time() -> None:
    bench = Bench()
    bench.add("openai", "a", 86400, now=100)
    assert bench.end("openai", "a") == 100 + MAX_BENCH


def test_a_later_bench_never_shortens_an_earlier_one() -> None:
    bench = Bench()
    for now, seconds in ((100, 60), (110, 5), (120, 0)):
        bench.add("openai", "a", seconds, now=now)
        assert bench.end("openai", "a") == 160
    bench.add("openai", "a", 60, now=130)
    assert bench.end("openai", "a") == 190
