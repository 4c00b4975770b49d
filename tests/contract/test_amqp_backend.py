"""RabbitMQ keeps the contract of a backend, as far as queues can; and what is its own."""

from __future__ import annotations

import pytest

from asyncqueue.backends.amqp import AmqpBackend
from asyncqueue.testing import BackendContract, GroupContract
from asyncqueue.testing.suite import KEPT, Suite
from tests.services import free_port

LIMIT = 3_000_000


class OnRabbit(Suite):
    """A virtual host for each test."""

    driver = "rabbit"
    entry_limit = LIMIT
    expiry = 0.5

    @pytest.fixture
    def service(self, amqp_url: str) -> None:
        self.url = amqp_url

    async def make_backend(self, results_expire_in: float = KEPT) -> AmqpBackend:
        return AmqpBackend(self.url, results_expire_in=results_expire_in, max_entry=LIMIT)

    async def make_unreachable(self) -> AmqpBackend:
        return AmqpBackend(f"amqp://127.0.0.1:{free_port()}/")


class TestAmqpBackend(OnRabbit, BackendContract):
    pass


class TestAmqpGroups(OnRabbit, GroupContract):
    pass
