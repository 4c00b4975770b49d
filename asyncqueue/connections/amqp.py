"""How to reach RabbitMQ: addresses, one connection with its channels, and what its errors mean to us.

Nothing here recovers by itself. A connection that broke, or that did not answer in time, is given up at once, and the
next call makes a new one: there is no state in which a socket is open and nobody listens behind it.

The connection is aio-pika's; the channels are those below its objects, where one frame acks many messages and a batch
of publishes waits once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, assert_never, cast
from urllib.parse import parse_qsl

import aio_pika
import aiormq
from aio_pika.abc import ConnectionParameter
from aiormq import Channel
from aiormq import exceptions as amqp_errors
from aiormq.connection import TransportFactory
from yarl import URL

from asyncqueue.connections.amqp_topology import Binding, Declaration, Exchange, Queue
from asyncqueue.connections.tls import tls_context
from asyncqueue.errors import AsyncQueueError, Blocked, ConfigError, MessageTooLarge, Refused, Unavailable
from asyncqueue.redact import redact_url

CONNECT_TIMEOUT = 5.0
"""Seconds to connect, log in and open the virtual host, for each server of a list."""

REPLY_TIMEOUT = 10.0
"""Seconds for the answer to one request, and for the confirmation of one batch."""

HEARTBEAT = 60
"""Seconds after which both sides give up a connection that is silent; whole ones, at least 1."""

# what the library complains of, tracebacks and all, is raised here as an error, and told once; unless somebody asks
for _library in ("aio_pika", "aiormq"):
    if logging.getLogger(_library).level == logging.NOTSET:
        logging.getLogger(_library).setLevel(logging.CRITICAL)

_CLOSE_TIMEOUT = 2.0
_MAX_NAME = 255
_FORMS = {
    "amqp": "amqp://[user:password@]host[:port][/vhost]",
    "amqps": "amqps://[user:password@]host[:port][/vhost][?cafile=FILE&certfile=FILE&keyfile=FILE]",
}
_PORTS = {"amqp": 5672, "amqps": 5671}
_TLS_OPTIONS = ("cafile", "certfile", "keyfile")
_AWAY = re.compile(r"\b(down|inaccessible|stopped|timed out|timeout)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AmqpServer:
    """One server of a list. ``tls`` is None for plain TCP."""

    url: URL = field(repr=False)
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        host = f"[{self.url.host}]" if ":" in (self.url.host or "") else self.url.host
        return f"{host}:{self.url.port}/{self.url.path.removeprefix('/')}"


def parse_urls(url: str, separator: str = "", tls: ssl.SSLContext | None = None) -> tuple[AmqpServer, ...]:
    """The servers that a URL names: one, or with ``separator`` several, in the order in which they are tried.

    Logins and virtual hosts are percent-decoded. ``amqps://`` verifies the server's certificate and name; ``tls`` is a
    context to use there instead of the one that the URL's options make. Raises ``ConfigError``, which never shows a
    password.
    """
    parts = [part.strip() for part in url.split(separator)] if separator else [url]
    return tuple(_parse_one(part, tls) for part in parts if part or len(parts) == 1)


def _parse_one(text: str, tls: ssl.SSLContext | None) -> AmqpServer:
    scheme, separator, _ = text.partition("://")
    if not separator or scheme not in _FORMS:
        raise ConfigError(
            f"{redact_url(text)!r} is no URL of a RabbitMQ server: expected {' or '.join(_FORMS.values())}"
        )
    try:
        url = URL(text)
        if not url.host:
            raise ValueError("the host is missing")
        options = _options(url.query_string, scheme)
    except ValueError as exc:
        said = str(exc) if "missing" in str(exc) or "unknown" in str(exc) else "it cannot be read"
        raise ConfigError(f"{redact_url(text)!r}: {said}; expected {_FORMS[scheme]}") from None
    if scheme == "amqps" and tls is None:
        files = [options.get(name, "") for name in _TLS_OPTIONS]
        tls = tls_context(ca_file=files[0], cert_file=files[1], key_file=files[2])
    if url.port is None:
        url = url.with_port(_PORTS[scheme])
    return AmqpServer(url.with_query(None), tls if scheme == "amqps" else None)


def _options(query: str, scheme: str) -> Mapping[str, str]:
    known = _TLS_OPTIONS if scheme == "amqps" else ()
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - set(known)):
        raise ValueError(f"unknown option {unknown[0]!r}, known are: {', '.join(known) or 'none'}")
    return options


@dataclass(slots=True)
class Access:
    """How connections are made from now on; shared by the links of a broker and of its twins."""

    servers: Sequence[AmqpServer]
    connect_timeout: float = CONNECT_TIMEOUT
    reply_timeout: float = REPLY_TIMEOUT
    heartbeat: int = HEARTBEAT
    client_name: str = ""


class AmqpLink:
    """At most one connection, made when it is needed and again when it broke. Belongs to one event loop.

    Of several servers the first that lets us in is used; which that was is remembered. ``generation`` grows with each
    connection.
    """

    def __init__(self, access: Access, purpose: str) -> None:
        self.access = access
        self.generation = 0
        self._purpose = purpose
        self._connecting = asyncio.Lock()
        self._connection: _Connection | None = None
        self._transport: _Transport | None = None
        self._first = 0
        self._is_left = False

    @property
    def where(self) -> str:
        """The server in use, or all of them."""
        connected = self._connection is not None
        servers = self.access.servers
        return str(servers[self._first % len(servers)]) if connected else ", ".join(map(str, servers))

    @property
    def is_open(self) -> bool:
        """Whether the connection is there, as far as we know."""
        return self._connection is not None and self._connection.is_open

    async def reach(self) -> None:
        """See to it that there is a connection. Raises ``Unavailable`` or ``Refused``."""
        async with self._connecting:
            if not self.is_open and not self._is_left:
                self.abandon()
                self._connection = await self._connect()
                self.generation += 1
            if self._is_left:  # maybe while we were connecting
                self.abandon()
                raise Unavailable(f"RabbitMQ at {self.where}: the broker was closed")

    async def channel(self, *, confirms: bool = False) -> Channel:
        """A channel of one's own. Raises ``Unavailable`` or ``Refused``."""
        await self.reach()
        async with self.asking("open a channel"):
            if self._connection is None:
                raise Unavailable(f"RabbitMQ at {self.where}: the connection was given up")
            return await self._connection.bare_channel(confirms=confirms)

    @asynccontextmanager
    async def asking(self, what: str, timeout: float | None = None) -> AsyncIterator[None]:
        """Turns what goes wrong inside into our errors; gives up the connection when no answer came in time."""
        limit = self.access.reply_timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                try:
                    yield
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    # nobody cancelled us: this is how the library ends what waited on a connection that broke
                    raise Unavailable(f"RabbitMQ at {self.where}: the connection broke (to {what})") from None
        except TimeoutError as exc:
            text = f"RabbitMQ at {self.where} did not {what} within {limit:g} s"
            is_blocked = self._connection is not None and self._connection.is_blocked
            self.abandon()
            if is_blocked:
                raise Blocked(f"{text}: a memory or disk alarm keeps it from taking messages") from exc
            raise Unavailable(f"{text}: no answer") from exc
        except AsyncQueueError:
            raise
        except Exception as exc:
            raise self.meaning(exc, what) from exc

    def meaning(self, exc: Exception, what: str) -> AsyncQueueError:
        """What an exception of the client library or the system means to us."""
        text = _said(exc)
        where = f"RabbitMQ at {self.where}"
        match exc:
            case AsyncQueueError():
                return exc
            case amqp_errors.ProbableAuthenticationError() | amqp_errors.AuthenticationError():
                return Refused(f"{where} does not let us in: {text}")
            case amqp_errors.InvalidFrameError() if "Connection.Close" in text:
                return Refused(
                    f"{where} let us in and then closed: does the virtual host exist, and may this user use it?"
                )
            case amqp_errors.ChannelPreconditionFailed() if "larger than" in text:
                return MessageTooLarge(f"{where} refused to {what}: {text}")
            case amqp_errors.ChannelPreconditionFailed() if "inequivalent arg" in text:
                return Refused(f"{where} has it with other arguments (to {what}): {text}")
            case amqp_errors.ChannelNotFoundEntity() | amqp_errors.ChannelPreconditionFailed() if _AWAY.search(text):
                return Unavailable(f"{where} cannot {what} now: {text}")
            case (
                amqp_errors.ChannelAccessRefused()
                | amqp_errors.ChannelNotFoundEntity()
                | amqp_errors.ChannelLockedResource()
                | amqp_errors.ChannelPreconditionFailed()
                | amqp_errors.ConnectionNotAllowed()
                | amqp_errors.ConnectionNotImplemented()
            ):
                return Refused(f"{where} refused to {what}: {text}")
            case OSError() if "CERTIFICATE_VERIFY_FAILED" in text:
                return Refused(f"{where}: its certificate is not to be trusted: {text}")
            case amqp_errors.DeliveryError():
                return Unavailable(f"{where} did not take a message: {text}")
            case TimeoutError():
                return Unavailable(f"{where} did not {what} in time")
            case _:
                # the library ends what waited on a broken connection with all sorts of exceptions
                return Unavailable(f"{where} could not {what}: {text or type(exc).__name__}")

    def abandon(self) -> None:
        """Give the connection up, without a word to the server: the next call makes a new one."""
        self._connection = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    async def close(self) -> None:
        """Take leave for good, shortly; what was not settled goes back to its queue. Twice is no harm."""
        self._is_left = True
        connection, transport = self._connection, self._transport
        if connection is not None:
            # what is wrong with a connection that is being given up is of no interest
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await connection.close(None)
        if transport is self._transport:
            self.abandon()

    async def _connect(self) -> _Connection:
        errors: list[AsyncQueueError] = []
        servers = self.access.servers
        for turn in range(len(servers)):
            number = (self._first + turn) % len(servers)
            try:
                connection = await self._connect_to(servers[number])
            except AsyncQueueError as exc:
                errors.append(exc)
                continue
            self._first = number
            return connection
        # as long as one of them may come back, trying again may help
        raise next((error for error in errors if isinstance(error, Unavailable)), errors[0])

    async def _connect_to(self, server: AmqpServer) -> _Connection:
        access = self.access
        name = " ".join(filter(None, (access.client_name or "asyncqueue", self._purpose)))
        transport = _Transport(server.tls)
        only = AmqpLink(replace(access, servers=(server,)), self._purpose)  # errors name this server alone
        try:
            async with only.asking("connect", access.connect_timeout):
                url = server.url.with_query(heartbeat=str(access.heartbeat), name=name)
                connection = _Connection(url, transport_factory=transport)
                await connection.connect()
        except BaseException:
            transport.abort()
            raise
        self._transport = transport
        return connection


def is_absent(exc: Exception) -> bool:
    """Whether the server says that there is no such thing, and not that it is out of reach."""
    return isinstance(exc, amqp_errors.ChannelNotFoundEntity) and not _AWAY.search(_said(exc))


class Standing:
    """What is known to stand on the server, as far as this link has declared it."""

    def __init__(self, link: AmqpLink) -> None:
        self._link = link
        self._generation = 0
        self._until: dict[tuple[str, ...], float] = {}
        self._declaring = asyncio.Lock()
        self._channel: Channel | None = None

    async def ensure(self, needs: Sequence[Declaration]) -> None:
        """Declare what is not known to stand. What deletes itself when it is unused is declared anew in time.

        Raises ``Refused`` where it stands with other arguments, which are named.
        """
        async with self._declaring:
            await self._link.reach()
            if self._generation != self._link.generation:
                self._generation, self._channel = self._link.generation, None
                self._until.clear()
            now = asyncio.get_running_loop().time()
            for each, lasting in _lasting(needs):
                margin = 0.0 if lasting == math.inf else lasting / 4
                if self._until.get(each.key, -math.inf) > now + margin:
                    continue
                if self._channel is None or self._channel.is_closed or not self._link.is_open:
                    self._channel = await self._link.channel()  # of its own: a refusal closes it
                async with self._link.asking(f"declare {' '.join(each.key)}"):
                    await _declare(self._channel, each)
                self._until[each.key] = now + lasting / 2

    def stands(self, needs: Sequence[Declaration]) -> bool:
        """Whether what was published to it until now comes to no harm: it stands for at least as long as a message
        waits in it."""
        now = asyncio.get_running_loop().time()
        return all(self._until.get(each.key, -math.inf) >= now for each in needs)

    def forget(self, needs: Sequence[Declaration]) -> None:
        """Somebody has deleted one of these."""
        for each in needs:
            self._until.pop(each.key, None)


def _lasting(needs: Sequence[Declaration]) -> Iterator[tuple[Declaration, float]]:
    """Each with the seconds that it stands unused; a binding goes with its queue."""
    expires = {each.name: each.expires_in for each in needs if isinstance(each, Queue)}
    for each in needs:
        yield each, expires.get(each.target if isinstance(each, Binding) else each.name, math.inf)


async def _declare(channel: Channel, what: Declaration) -> None:
    for name in what.key:
        if len(name.encode()) > _MAX_NAME:
            raise Refused(
                f"RabbitMQ allows names of {_MAX_NAME} bytes, and {name!r} is longer: shorten the queue's name"
            )
    match what:
        case Exchange(name, kind):
            await channel.exchange_declare(name, exchange_type=kind, durable=True)
        case Queue(name, arguments, auto_delete):
            await channel.queue_declare(name, durable=True, auto_delete=auto_delete, arguments=dict(arguments))
        case Binding(source, target, routing_key, arguments, to_exchange):
            bind = channel.exchange_bind if to_exchange else channel.queue_bind
            await bind(target, source, routing_key, arguments=dict(arguments))
        case _:
            assert_never(what)


def _as_it_is(value: Any) -> Any:
    return value


class _Connection(aio_pika.Connection):
    """A connection of aio-pika's, on a socket of ours."""

    PARAMETERS = (
        *aio_pika.Connection.PARAMETERS,
        ConnectionParameter("transport_factory", parser=_as_it_is, is_kwarg=True),
    )

    @property
    def is_open(self) -> bool:
        """Whether it is there, and somebody reads and writes."""
        return self.transport is not None and cast(aiormq.Connection, self.transport.connection).is_opened

    @property
    def is_blocked(self) -> bool:
        """Whether the server has said that it takes no messages now."""
        if self.transport is None:
            return False
        waiting = self.transport.connection.ready()
        try:
            waiting.send(None)
        except StopIteration:
            return False
        except Exception:  # it broke, which is something else
            return False
        waiting.close()
        return True

    async def bare_channel(self, *, confirms: bool) -> Channel:
        """A channel without the object around it, of which something would stay with the connection for ever."""
        assert self.transport is not None
        return cast(Channel, await self.transport.connection.channel(publisher_confirms=confirms))

    def __del__(self) -> None:
        """Nothing: whoever gives it up has torn its socket down, and a collector has no loop to close it in."""


class _Transport(TransportFactory):
    """Opens the socket, and can tear it down whatever the library is waiting for."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self._writer = await asyncio.open_connection(url.host, url.port, ssl=self._tls)
        return reader, self._writer

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


def _said(exc: BaseException) -> str:
    """The text of an exception; those of the library keep theirs in their arguments."""
    return str(exc) or " ".join(str(part) for part in exc.args)
