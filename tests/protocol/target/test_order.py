"""The order of an upstream's targets: stable, in proportion to the weights, and moved as little as possible."""

from __future__ import annotations

from collections import Counter

import pytest

from sse.protocol.target.entry import UpstreamTarget
from sse.protocol.target.order import order_targets
from sse.protocol.target.parse import parse_target

BASE = parse_target("https://api.example.com/")
A, B, C = (UpstreamTarget(id=id, base=BASE, weight=weight) for id, weight in {"a": 3.0, "b": 1.0, "c": 1.0}.items())
VALUES = [f"client-{number}" for number in range(5000)]


def test_every_target_is_in_the_order_once() -> None:
    assert all({*order_targets(value, (A, B, C))} == {A, B, C} for value in VALUES)


def test_the_order_does_not_depend_on_how_the_table_is_written() -> None:
    assert all(order_targets(value, (A, B, C)) == order_targets(value, (C, B, A)) for value in VALUES)


def test_known_orders_stay() -> None:
    """Hosts of two versions must agree, or the prompts' caches of all clients go cold at an update."""
    known = {"ann": [A, C, B], "bob": [A, C, B], "": [A, B, C]}
    assert {value: order_targets(value, (A, B, C)) for value in known} == known


def test_targets_come_first_in_proportion_to_their_weight() -> None:
    first = Counter(order_targets(value, (A, B, C))[0].id for value in VALUES)
    assert first["a"] == pytest.approx(3000, rel=0.1)
    assert first["b"] == pytest.approx(1000, rel=0.15)


def test_a_target_that_is_taken_out_moves_only_its_own_values() -> None:
    for value in VALUES:
        order = order_targets(value, (A, B, C))
        assert order_targets(value, (B, C)) == [target for target in order if target != A]
