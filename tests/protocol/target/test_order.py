"""The order of an upstream's targets: stable, in proportion to the weights, and moved as little as possible."""

from __future__ import annotations

from collections import Counter

import pytest

from sse.protocol.target.order import order_targets

WEIGHTS = {"a": 3.0, "b": 1.0, "c": 1.0}
VALUES = [f"client-{number}" for number in range(5000)]


def test_every_target_is_in_the_order_once() -> None:
    assert all(sorted(order_targets(value, WEIGHTS)) == ["a", "b", "c"] for value in VALUES)


def test_the_order_does_not_depend_on_the_tables_spelling() -> None:
    turned = dict(reversed(WEIGHTS.items()))
    assert all(order_targets(value, WEIGHTS) == order_targets(value, turned) for value in VALUES)


def test_known_orders_stay() -> None:
    """Hosts of two versions must agree, or the prompts' caches of all clients go cold at an update."""
    known = {"ann": ["a", "c", "b"], "bob": ["a", "c", "b"], "": ["a", "b", "c"]}
    assert {value: order_targets(value, WEIGHTS) for value in known} == known


def test_targets_come_first_in_proportion_to_their_weight() -> None:
    first = Counter(order_targets(value, WEIGHTS)[0] for value in VALUES)
    assert first["a"] == pytest.approx(3000, rel=0.1)
    assert first["b"] == pytest.approx(1000, rel=0.15)


def test_a_target_that_is_taken_out_moves_only_its_own_values() -> None:
    rest = {"b": 1.0, "c": 1.0}
    for value in VALUES:
        order = order_targets(value, WEIGHTS)
        assert order_targets(value, rest) == [target for target in order if target != "a"]
