"""SQS keeps the contracts of broker and inspector, on ElasticMQ; and what is its own."""

from __future__ import annotations

import secrets

import pytest

from asyncqueue.brokers.base import Broker
from asyncqueue.brokers.sqs import SqsBroker
from asyncqueue.testing import BrokerContract, InspectorContract
from tests.services import free_port

LEASE = 2.0


class OnSqs:
    """Queues of their own for each test. Delays and leases are whole seconds here."""

    delay = 1.0
    knows_tokens = False
    shows_messages = False
    shows_delayed = False

    @pytest.fixture
    def service(self, sqs_url: str) -> None:
        self.url = sqs_url
        self.queue = f"{secrets.token_hex(4)}-contract"
        self.other_queue = f"{self.queue}-2"

    async def make_broker(self) -> Broker:
        return SqsBroker(self.url, lease=LEASE)

    async def make_unreachable(self) -> Broker:
        return SqsBroker(f"http://test:test@127.0.0.1:{free_port()}/1?region=here", lease=LEASE)


class TestBroker(OnSqs, BrokerContract):
    """Standard queues."""


class TestInspector(OnSqs, InspectorContract):
    """Standard queues."""
