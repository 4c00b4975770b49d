"""What a server and its workers stand on: what is registered, the settings, and what is open of the stores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Broker, Inspector
from asyncqueue.clock import Clock
from asyncqueue.config import Reloader, Settings
from asyncqueue.engine.eager import EagerRunner, EagerSettlement, has_lost_its_sender
from asyncqueue.engine.events import Events
from asyncqueue.engine.execution import Execution, Host
from asyncqueue.engine.messages import Rules
from asyncqueue.engine.middleware import Middleware, PublishHook
from asyncqueue.engine.observing import Observers
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.publisher import Publisher
from asyncqueue.engine.registry import Registry
from asyncqueue.engine.settlement import settlement_of
from asyncqueue.errors import ConfigError, Refused
from asyncqueue.locks.base import Lock, TurnLock
from asyncqueue.migrating import Migration
from asyncqueue.stores import Choice, Connected, Stores


class Foundation:
    """The parts of a server, and the engine that they make on its stores. Nothing is connected before it is used."""

    def __init__(self, choice: Choice, settings: Settings, clock: Clock) -> None:
        if not isinstance(settings, Settings):
            raise ConfigError(
                f"settings must be Settings, not {type(settings).__name__}; Settings.parse makes them of a mapping"
            )
        self.clock = clock
        self.events = Events()
        self.observers = Observers(self.events)
        self.patience = Patience(self.events, clock)
        self.registry = Registry()
        self.middlewares: list[Middleware] = []
        self._publish_hooks: list[PublishHook] = []
        self._stores = Stores(choice, settings, self._assemble)

    async def __aenter__(self) -> Self:
        await self.connected()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # — settings —

    @property
    def settings(self) -> Settings:
        """The settings as they are now; a reload changes them."""
        return self._stores.settings

    def rules(self) -> Rules:
        """What settling and sending depend on, as the settings say now."""
        return self._stores.rules

    def override(self, path: str | os.PathLike[str]) -> None:
        """Lay a YAML file, and the environment above it, over what the code says; before the first use.

        It is for whoever runs a program that somebody else wrote. A key that neither of them sets stays as the code
        has it. A worker of this server looks at the file every ten seconds and takes up what can be taken up while it
        runs. Raises ``ConfigError``.
        """
        self._stores.override(path)

    @property
    def reload_path(self) -> Path | None:
        """The file that a worker of this server looks at for new settings."""
        return self._stores.reload_path

    def reloader(self, path: str | os.PathLike[str]) -> Reloader:
        """Watches a configuration file and applies what can be applied; ``await reloader.run()``."""
        return self._stores.reloader(path)

    def on_settings(self, listener: Callable[[Settings], None]) -> None:
        """Call ``listener`` whenever settings were reloaded."""
        self._stores.on_settings(listener)

    def off_settings(self, listener: Callable[[Settings], None]) -> None:
        """Call ``listener`` no more."""
        self._stores.off_settings(listener)

    # — being connected —

    @property
    def broker_address(self) -> str:
        """Where the broker is, for people; no password."""
        return self._stores.address

    async def connected(self) -> Connected:
        """The open parts of this server, in this process and event loop; opened on first use.

        Raises ``Unavailable`` (naming host and port or file), ``Refused`` or ``ConfigError``.
        """
        return await self._stores.connected()

    async def close(self) -> None:
        """Wait for sends that are under way and let go of the services, in this event loop. A later use opens them
        again."""
        await self._stores.close()

    async def lock(self) -> Lock | None:
        """The lock of this server, open; None where it has none."""
        return await self._stores.lock()

    async def turn_lock(self) -> TurnLock:
        """The lock in which processes agree on who sends. Raises ``ConfigError`` where the server's cannot do that."""
        lock = await self.lock()
        if not isinstance(lock, TurnLock):
            what = "has no lock" if lock is None else f"has a {type(lock).__name__}, which keeps no turns"
            raise ConfigError(f"periodic tasks need a lock that keeps turns, and this server {what}: give lock=")
        return lock

    async def inspector(self) -> Inspector:
        """The broker, as something to look into. Raises ``Refused`` where it cannot be."""
        broker = (await self.connected()).broker
        if not isinstance(broker, Inspector):
            raise Refused(f"{broker.address} cannot be looked into")
        return broker

    async def migrate(self, *, dry_run: bool = False) -> Sequence[Migration]:
        """Make in the stores what this server needs there before it can work: tables, indexes, a schema.

        Returns what was made, or what would be where ``dry_run``; nothing where nothing is missing, and for stores that
        need nothing. Twice is no harm. Raises ``Unavailable``, ``Refused`` or ``ConfigError``.
        """
        return await self._stores.migrate(dry_run=dry_run)

    # — the engine on open stores —

    def execution(
        self,
        broker: Broker,
        backend: Backend | None,
        threads: ThreadPoolExecutor,
        host: Host,
        *,
        rules: Callable[[], Rules] | None = None,
        events: Events | None = None,
        within: Sequence[Middleware] = (),
    ) -> Execution:
        """What runs the tasks registered here, in these threads. ``rules`` and ``events`` are those of the server
        unless said otherwise; ``within`` are middlewares within those of the server."""
        return Execution(
            self.registry,
            backend,
            clock=self.clock,
            events=self.events if events is None else events,
            patience=self.patience,
            rules=self.rules if rules is None else rules,
            max_deliveries=lambda: self.settings.worker.max_deliveries,
            longest_delay=broker.capabilities.max_delay,
            threads=threads,
            middlewares=(*self.middlewares, *within),
            observers=self.observers,
            host=host,
        )

    async def _assemble(self, broker: Broker, backend: Backend | None, stack: AsyncExitStack) -> Connected:
        settlement = await settlement_of(broker, backend)
        eager = None
        if self._stores.is_eager:
            settlement = EagerSettlement(settlement)
            threads = stack.enter_context(ThreadPoolExecutor(thread_name_prefix="asyncqueue-eager"))
            host = Host(is_given_up=has_lost_its_sender)
            execution = self.execution(broker, backend, threads, host, rules=self._eager_rules)
            eager = EagerRunner(broker, execution, settlement, backend, clock=self.clock, rules=self._eager_rules)
        publisher = Publisher(
            self.registry,
            settlement,
            clock=self.clock,
            patience=self.patience,
            rules=self.rules,
            timeout=lambda: self.settings.publish_timeout,
            address=broker.address,
            max_batch=broker.capabilities.max_batch,
            longest_delay=broker.capabilities.max_delay,
            hooks=self._publish_hooks,
            events=self.events,
        )
        return Connected(broker, backend, settlement, publisher, eager)

    def _eager_rules(self) -> Rules:
        return replace(self.rules(), unknown_task_after=0.0)  # nobody else will ever know the task
