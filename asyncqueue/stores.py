"""The stores of a server: which they are, as code and settings say, and what is open of them in each event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from asyncqueue import urls, wire
from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Broker, Polling
from asyncqueue.config import Reloader, Settings, layered, load, taken_up
from asyncqueue.engine.eager import EagerRunner
from asyncqueue.engine.messages import Rules
from asyncqueue.engine.publisher import Publisher
from asyncqueue.engine.settlement import Settlement
from asyncqueue.errors import ConfigError
from asyncqueue.go_compat import GoCompat
from asyncqueue.locks.base import Lock
from asyncqueue.migrating import Migrating, Migration
from asyncqueue.redact import redact_url, without_credentials
from asyncqueue.workflow import COMPANION_SUFFIX

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connected:
    """The open parts of a server in one event loop."""

    broker: Broker
    backend: Backend | None
    settlement: Settlement
    publisher: Publisher
    eager: EagerRunner | None


Assemble = Callable[[Broker, Backend | None, AsyncExitStack], Awaitable[Connected]]
"""Puts an engine on open stores; what is to be let go of when they are closed goes onto the stack."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The stores that code asks for: one URL for all of them, or each apart, as a URL or as a driver. None: as the
    settings say."""

    url: str | None
    broker: str | Broker | None
    backend: str | Backend | None
    lock: str | Lock | None

    def under(self, over: Settings) -> Choice:
        """The same, but for what ``over`` says."""
        said = over.model_fields_set
        return Choice(
            None if "broker" in said else self.url,
            over.broker if "broker" in said else self.broker,
            over.result_backend if "result_backend" in said else self.backend,
            over.lock or self.lock,
        )


class Stores:
    """Broker, backend and lock of one server, and its settings, which may change while they are open."""

    def __init__(self, choice: Choice, settings: Settings, assemble: Assemble) -> None:
        self.settings = settings
        self.reload_path: Path | None = None
        self._assemble = assemble
        self._given = choice
        self._override: tuple[Settings, Settings] | None = None
        self._listeners: list[Callable[[Settings], None]] = []
        self._choose(choice)
        self._homes: dict[asyncio.AbstractEventLoop, _Home] = {}
        self._pid = os.getpid()
        self._inherited: list[object] = []

    @property
    def address(self) -> str:
        """Where the broker is, for people; no password."""
        return self._own_broker.address if self._own_broker is not None else redact_url(self._broker_url)

    @property
    def is_eager(self) -> bool:
        """Whether tasks run as they are sent."""
        return self._own_broker is None and urls.scheme_of(self._broker_url) == urls.EAGER

    @property
    def keeps_results(self) -> bool:
        """Whether there is a backend."""
        return self._own_backend is not None or self.is_eager or urls.scheme_of(self._backend_url) != urls.NULL

    @property
    def rules(self) -> Rules:
        """What settling and sending depend on, as the settings say now."""
        return self._rules

    # — what is open —

    async def connected(self) -> Connected:
        """The open parts, in this process and event loop; opened on first use. Raises ``Unavailable``, ``Refused`` or
        ``ConfigError``."""
        home = self._home()
        if home.connected is None:
            async with home.opening:
                if home.connected is None:
                    home.connected = await self._connect(home)
        return home.connected

    async def lock(self) -> Lock | None:
        """The lock, open; None where there is none. Raises as ``connected`` does."""
        await self.connected()
        home = self._home()
        async with home.opening:
            if home.lock is None and (self._own_lock is not None or self._lock_url):
                lock = self._own_lock or urls.lock_for(self._lock_url, self.settings)
                await lock.open()
                home.closing.push_async_callback(lock.close)
                home.lock = lock
        return home.lock

    def is_open(self, backend: Backend) -> bool:
        """Whether this backend is the one that is open in this event loop now."""
        connected = self._home().connected
        return connected is not None and connected.backend is backend

    async def close(self) -> None:
        """Wait for sends that are under way and let go of the services, in this event loop. A later use opens them
        again."""
        home = self._home()
        connected, home.connected, home.lock = home.connected, None, None
        if connected is not None:
            await connected.publisher.close()
            await home.closing.aclose()

    def make(self) -> tuple[Broker, Backend | None]:
        """Broker and backend, not yet open. Raises ``ConfigError``."""
        if self.is_eager:
            return urls.eager_stores(self.settings)
        broker = self._own_broker or urls.broker_for(self._broker_url, self.settings)
        if self._own_backend is not None:
            return broker, self._own_backend
        if not self.keeps_results:
            return broker, None
        return broker, urls.backend_for(self._backend_url, self.settings)

    async def migrate(self, *, dry_run: bool) -> Sequence[Migration]:
        """Make in the services what is missing there; only tell it, where ``dry_run``. Raises as ``connected`` does."""
        broker, backend = self.make()
        lock = self._own_lock or (urls.lock_for(self._lock_url, self.settings) if self._lock_url else None)
        parts: Sequence[tuple[str, object, object]] = (
            ("broker", broker, self._own_broker),
            ("result backend", backend, self._own_backend),
            ("lock", lock, self._own_lock),
        )
        found: dict[tuple[str, str], Migration] = {}  # what two of them want in one place is one thing
        for part, driver, own in parts:
            if not isinstance(driver, Migrating):
                continue
            try:
                changes = await (driver.missing() if dry_run else driver.migrate())
            finally:
                if own is None:
                    await driver.close()
            for change in changes:
                found.setdefault((driver.address, change), Migration(part, driver.address, change))
        return list(found.values())

    def _home(self) -> _Home:
        if self._pid != os.getpid():
            # forked: what is open is the parent's, and would be taken from it if it were closed or collected here
            self._inherited.append(self._homes)
            self._homes, self._pid = {}, os.getpid()
        loop = asyncio.get_running_loop()
        home = self._homes.get(loop)
        if home is None:
            self._homes = {each: kept for each, kept in self._homes.items() if not each.is_closed()}
            home = self._homes[loop] = _Home()
        return home

    async def _connect(self, home: _Home) -> Connected:
        async with AsyncExitStack() as stack:
            broker, backend = self.make()
            await broker.open()
            stack.push_async_callback(broker.close)
            if backend is not None:
                await backend.open()
                stack.push_async_callback(backend.close)
            connected = await self._assemble(broker, backend, stack)
            home.closing = stack.pop_all()
        return connected

    # — which stores, and how they change —

    def override(self, path: str | os.PathLike[str]) -> None:
        """Lay a YAML file, and the environment above it, over what the code says; before the first use. Raises
        ``ConfigError``."""
        over = load(path)
        self._override = self.settings, over
        self.settings = layered(self.settings, over)
        self._choose(self._given.under(over))
        self.reload_path = Path(path)

    def reloader(self, path: str | os.PathLike[str]) -> Reloader:
        """Watches a configuration file and applies what can be applied; ``await reloader.run()``."""
        if self._override is None:
            return Reloader(path, self.settings, self.apply, environ={})  # as from_yaml reads it: the file alone
        beneath, above = self._override

        async def apply(settings: Settings, changed: frozenset[str]) -> None:
            self._choice = self._given.under(settings)
            await self.apply(layered(beneath, settings), changed)

        return Reloader(path, above, apply)

    def on_settings(self, listener: Callable[[Settings], None]) -> None:
        """Call ``listener`` whenever settings were reloaded."""
        self._listeners.append(listener)

    def off_settings(self, listener: Callable[[Settings], None]) -> None:
        """Call ``listener`` no more."""
        self._listeners.remove(listener)

    async def apply(self, settings: Settings, changed: frozenset[str]) -> None:
        """Take up of these settings what can be taken up while the stores are open; the rest stays as it is."""
        self.settings = settings = taken_up(self.settings, settings)
        self._rules = _rules_of(settings, self._broker_url, self._backend_url)
        for home in list(self._homes.values()):
            if home.connected is not None:
                _retune(home.connected, settings)
        for listener in self._listeners:
            listener(settings)
        self._reconnect()  # last: a certificate that cannot be read holds up nothing else

    def _choose(self, choice: Choice) -> None:
        """Take these, and the settings, for what the server is. Raises ``ConfigError`` for a URL that cannot work."""
        if self.settings.go_queues and not self.settings.go_compat:
            raise ConfigError("go_queues names queues of Go's workers, and go_compat is off; expected go_compat: true")
        if not isinstance(choice.url, str | None):
            raise ConfigError(
                f"the URL of a server must be a text, not {type(choice.url).__name__}; a driver is broker="
            )
        self._choice = choice
        self._own_broker = _driver("broker", choice.broker)
        self._own_backend = _driver("backend", choice.backend)
        self._own_lock = _driver("lock", choice.lock)
        self._broker_url, self._backend_url, self._lock_url = self._urls(choice)
        urls.check(self._broker_url, self._backend_url, self._lock_url)
        self._rules = _rules_of(self.settings, self._broker_url, self._backend_url)

    def _urls(self, choice: Choice) -> tuple[str, str, str]:
        """Broker, backend and lock URL: as given, else as the settings say, else the broker's own where it can be, and
        is not a driver that was given."""
        said = self.settings.model_fields_set
        url = choice.url
        broker_url = choice.broker if isinstance(choice.broker, str) else self.settings.broker if url is None else url
        if isinstance(choice.backend, str):
            backend_url = choice.backend
        elif url is None and "result_backend" in said:
            backend_url = self.settings.result_backend
        else:
            backend_url = broker_url if self._own_broker is None and self._own_backend is None else urls.NULL
        if isinstance(choice.lock, str):
            lock_url = choice.lock
        elif url is None and self.settings.lock:
            lock_url = self.settings.lock
        elif self._own_broker is not None and not url:
            lock_url = ""
        else:
            lock_url = urls.lock_beside(url or broker_url, backend_url)
        return broker_url, backend_url, lock_url

    def _reconnect(self) -> None:
        """Connect as the settings say from now on, where they still lead to the stores that we have."""
        broker, backend, lock = self._urls(self._choice)
        self._broker_url = _to_same_place(self._broker_url, broker)
        self._backend_url = _to_same_place(self._backend_url, backend)
        self._lock_url = _to_same_place(self._lock_url, lock)
        for home in list(self._homes.values()):
            if home.connected is None:
                continue
            if self._own_broker is None:
                lease = self.settings.worker.lease
                urls.reconnect(home.connected.broker, self._broker_url, self.settings, lease=lease)
            if self._own_backend is None:
                urls.reconnect(home.connected.backend, self._backend_url, self.settings)
            if self._own_lock is None:
                urls.reconnect(home.lock, self._lock_url, self.settings)


@dataclass(slots=True)
class _Home:
    """What is open in one event loop."""

    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    connected: Connected | None = None
    lock: Lock | None = None
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)


def _driver(part: str, said: str | T | None) -> T | None:
    if isinstance(said, str | None):
        return None
    if isinstance(said, type) or not callable(getattr(said, "open", None)):
        what = f"the class {said.__name__}" if isinstance(said, type) else type(said).__name__
        raise ConfigError(f"{part} must be a URL or a driver, not {what}")
    return said


def _rules_of(settings: Settings, broker_url: str, backend_url: str) -> Rules:
    limits = wire.Limits(max_bytes=settings.limits.message_bytes, max_depth=settings.limits.depth)
    go = GoCompat()
    if settings.go_compat:
        on_sqs = urls.is_sqs(broker_url)
        go = GoCompat(
            is_on=True,
            queues=frozenset(settings.go_queues),
            keeps_failed=on_sqs,
            prints_results=urls.is_dynamodb(backend_url),
            companion_suffix="-aq" if on_sqs else COMPANION_SUFFIX,
        )
    return Rules(settings.default_queue, settings.worker.unknown_task_after, limits, go)


def _retune(connected: Connected, settings: Settings) -> None:
    """Hand the open stores what they take up at once."""
    if connected.backend is not None:
        connected.backend.results_expire_in = settings.results_expire_in
    if isinstance(connected.broker, Polling):
        connected.broker.normal_poll = settings.redis.normal_tasks_poll_period / 1_000
        connected.broker.delayed_poll = settings.redis.delayed_tasks_poll_period / 1_000


def _to_same_place(old: str, new: str) -> str:
    """The new URL, if only its credentials are new."""
    return new if without_credentials(new) == without_credentials(old) else old
