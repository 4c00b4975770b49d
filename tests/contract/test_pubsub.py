"""Pub/Sub keeps the contracts of broker and inspector, on Google's own test server; and what is its own."""

from __future__ import annotations

import pytest

from asyncqueue.brokers.base import Broker
from asyncqueue.brokers.pubsub import PubSubBroker
from asyncqueue.testing import BrokerContract, InspectorContract
from asyncqueue.testing.suite import BrokerSuite
from tests.services import free_port

LEASE = 2.0


class OnPubSub(BrokerSuite):
    """A project of its own for each test. Delays and leases are whole seconds here."""

    delay = 1.0
    knows_tokens = False
    uncounted_nacks = False
    tells_depths = False
    broker: PubSubBroker

    @pytest.fixture
    def service(self, pubsub_url: str) -> None:
        self.url = pubsub_url

    async def make_broker(self) -> PubSubBroker:
        return PubSubBroker(self.url, lease=LEASE, default_queue=self.queue)

    async def make_unreachable(self) -> Broker:
        return PubSubBroker(f"gcppubsub://project/workers?emulator=127.0.0.1:{free_port()}", lease=LEASE)


class TestBroker(OnPubSub, BrokerContract):
    """On pstest."""


class TestInspector(OnPubSub, InspectorContract):
    """On pstest."""
