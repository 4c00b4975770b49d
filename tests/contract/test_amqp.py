"""RabbitMQ keeps the contract of a broker; and what is its own."""

from __future__ import annotations

import pytest

from asyncqueue.brokers.amqp import AmqpBroker
from asyncqueue.connections.amqp_topology import Topology
from asyncqueue.testing import BrokerContract
from asyncqueue.testing.suite import Suite, names
from tests.services import free_port


class OnRabbit(Suite):
    """A virtual host for each test."""

    @pytest.fixture
    def service(self, amqp_url: str) -> None:
        self.url = amqp_url

    def nobody(self) -> str:
        """A URL where no server is."""
        return f"amqp://127.0.0.1:{free_port()}/"


class TestAmqpBroker(OnRabbit, BrokerContract):
    knows_tokens = False
    keeps_places = True
    delay = 1.0

    async def make_broker(self) -> AmqpBroker:
        return AmqpBroker(self.url)

    async def make_unreachable(self) -> AmqpBroker:
        return AmqpBroker(self.nobody())


class TestAmqpBrokerOnQuorumQueues(TestAmqpBroker):
    """Replicated queues, which count deliveries."""

    uncounted_nacks = False

    async def make_broker(self) -> AmqpBroker:
        return AmqpBroker(self.url, topology=Topology(queue_arguments={"x-queue-type": "quorum"}))

    async def test_what_was_given_back_is_next_in_the_order_given(self) -> None:
        # but for that: a quorum queue may show some that waited before those that came back
        await self.publish("a", "b", "c", "d")
        await self.broker.nack(await self.fetch_until(3))
        assert sorted(names(await self.fetch_until(4))) == ["a", "b", "c", "d"]


class TestAmqpBrokerWithPriorities(TestAmqpBroker):
    """Queues that know priorities."""

    knows_priorities = True

    async def make_broker(self) -> AmqpBroker:
        return AmqpBroker(self.url, topology=Topology(queue_arguments={"x-max-priority": 255}))
