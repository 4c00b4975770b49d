"""Routes on RabbitMQ, by walking them as the server would: delays add up, and a bounded number of queues serves all."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncqueue.connections.amqp_topology import MAX_DELAY, SHORT, Binding, Exchange, Queue, Route, Topology

MONTH = 30 * 86_400
TOPOLOGY = Topology()


def walk(route: Route, topology: Topology = TOPOLOGY) -> tuple[float, list[str]]:
    """How long (seconds) a message waits on its way, and the queues that it passes, to the last."""
    types = {each.name: each.type for each in route.needs if isinstance(each, Exchange)}
    bindings = [each for each in route.needs if isinstance(each, Binding)]
    queues = {each.name: each for each in route.needs if isinstance(each, Queue)}
    exchange, key, waited, passed = route.exchange, route.routing_key, 0.0, []
    while True:
        (target,) = {
            each.target
            for each in bindings
            if each.source == exchange and _matches(each.routing_key, key, types[exchange])
        } or {key}
        if target in types:
            exchange = target
            continue
        passed.append(target)
        arguments = queues[target].arguments
        if "x-dead-letter-exchange" not in arguments:
            return waited, passed
        waited += arguments["x-message-ttl"] / 1000
        exchange, key = arguments["x-dead-letter-exchange"], arguments.get("x-dead-letter-routing-key", key)


def _matches(pattern: str, key: str, kind: str) -> bool:
    if kind != "topic":
        return pattern == key
    words, given_words = pattern.split("."), key.split(".")
    if words[-1] == "#":
        words.pop()
        given_words = given_words[: len(words)]
    return len(words) == len(given_words) and all(
        word in ("*", said) for word, said in zip(words, given_words, strict=True)
    )


@given(
    st.floats(0.001, MONTH, allow_nan=False),
    st.sampled_from(["machinery_tasks", "machinery_task", "mails", "a.b.c", "0.1.2", "mails.aq"]),
)
def test_a_message_waits_for_its_delay_in_whole_seconds_and_arrives_in_its_queue(delay: float, queue: str) -> None:
    waited, passed = walk(TOPOLOGY.delayed(queue, delay))
    assert waited == math.ceil(delay)
    assert passed[-1] == TOPOLOGY.name(queue)


@given(st.floats(0.001, MAX_DELAY, allow_nan=False))
def test_no_message_passes_a_queue_twice(delay: float) -> None:
    _, passed = walk(TOPOLOGY.delayed("mails", delay))
    assert len(passed) == len(set(passed)), "the server drops a message that goes round in a circle"


def test_ten_thousand_different_delays_use_a_bounded_number_of_queues() -> None:
    chance = random.Random(5)
    delays = chance.sample(range(1, MAX_DELAY + 1), 10_000)
    names = {
        each.name
        for delay in [*delays, *range(1, 200)]
        for each in TOPOLOGY.delayed("mails", delay).needs
        if isinstance(each, Queue)
    }
    print(f"{len(delays)} different delays: {len(names)} queues")
    assert len(names) <= len(SHORT) + 5 * 15 + 4 + 1


def test_no_server_lets_a_message_wait_longer_in_one_queue_than_we_ask() -> None:
    for each in TOPOLOGY.delayed("mails", MAX_DELAY).needs:
        if isinstance(each, Queue):
            assert each.arguments.get("x-message-ttl", 0) < 2**32


def test_a_delay_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match=str(MAX_DELAY)):
        TOPOLOGY.delayed("mails", MAX_DELAY + 1)


def test_a_delay_that_is_over_is_none() -> None:
    assert TOPOLOGY.delayed("mails", 0.0) == TOPOLOGY.delayed("mails", -5.0) == TOPOLOGY.route("mails")


def test_the_default_queue_is_known_by_its_name_and_by_its_binding_key() -> None:
    assert TOPOLOGY.route("machinery_task") == TOPOLOGY.route("machinery_tasks")
    assert TOPOLOGY.route("machinery_tasks").routing_key == "machinery_task"


def test_any_other_queue_is_bound_by_its_own_name_alone() -> None:
    bindings = [each for each in TOPOLOGY.route("mails").needs if isinstance(each, Binding)]
    assert [(each.target, each.routing_key) for each in bindings] == [("mails", "mails")]


def test_without_an_exchange_the_servers_own_is_used() -> None:
    topology = Topology(exchange="")
    assert topology.route("mails") == Route("", "mails", (Queue("mails"),))
    for delay in (5.0, 5_000.0):
        assert walk(topology.delayed("mails", delay), topology)[1][-1] == "mails"
