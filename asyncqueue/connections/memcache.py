"""How to reach Memcached: URL, servers and which of them has which key, connections, and what its errors mean.

The one place that connects. aiomcache keeps the connections and reads the statistics; what is asked here are meta
commands, any number in one go: one line each, and one reply, which also says how long an entry has left. (aiomcache's
own verbs ask for one thing at a time, leave a reply unread when they are cancelled, so that the next one takes it for
its own, and block the loop for ever where a server goes away between.) Nothing here retries.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil
from typing import Final, TypeAlias, TypeVar
from zlib import crc32

from aiomcache import Client, ClientException
from aiomcache.client import acquire
from aiomcache.pool import Connection, MemcachePool

from asyncqueue.errors import AsyncQueueError, ConfigError, EntryTooLarge, Refused, Unavailable
from asyncqueue.redact import redact_url

T = TypeVar("T")

TIMEOUT = 5.0
"""How long (seconds) a reply may take, connecting included."""

CONNECTIONS = 4
"""How many connections to each server, made with the first command."""

OLDEST = (1, 6, 10)
"""The first memcached whose meta commands are those of today."""

AT_ONCE = 500
"""The most commands of one round trip."""

BYTES_AT_ONCE = 4_000_000
"""How many bytes one round trip sends, but for a single entry that has more."""

LONGEST_KEY = 250
"""The longest (bytes) that a key can be."""

ITEM_OVERHEAD = 64
"""What an entry takes (bytes) of the size limit of its server beside its key and its value."""

USUAL_ITEM_SIZE_MAX = 1024 * 1024
"""The size limit (bytes) of an entry on a server that does not tell."""

FOREVER = -1
"""What the server says is left of an entry that has no end."""

LONGEST_RELATIVE = 30 * 86_400
"""What is longer (seconds) is a moment to the server."""

LAST_MOMENT = 2**31 - 1
"""The last moment (unix seconds) that the server knows."""

ANYTHING: Final = None
"""What a ``Write`` replaces that does not look."""

NOTHING = 0
"""What a ``Write`` replaces that is for where no entry is."""


# ---------------------------------------------------------------------------------------------------- where


@dataclass(frozen=True, slots=True)
class Place:
    """One server: a host and a port, or the path of a unix socket."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_FORM = "memcache://host:port[,host:port…], or paths of unix sockets in their place"
_PLACE = re.compile(r"(?:\[([0-9a-fA-F:.%]+)\]|([\w.-]+)):(\d{1,5})", re.ASCII)


def parse_url(url: str) -> tuple[Place, ...]:
    """The servers in a URL, in its order, which decides who has which key. Raises ``ConfigError``."""
    scheme, separator, rest = url.partition("://")
    if scheme != "memcache" or not separator:
        raise ConfigError(f"{redact_url(url)!r} is no memcache:// URL; expected {_FORM}")
    try:
        return tuple(_place(each) for each in rest.split(","))
    except ValueError as exc:
        raise ConfigError(f"{redact_url(url)!r}: {exc}; expected {_FORM}") from None


def _place(text: str) -> Place:
    if "@" in text:
        raise ValueError("Memcached takes no login")
    if "?" in text:
        raise ValueError("it takes no options")
    if text.startswith("/") and text.strip("/"):
        return Place(text, 0)
    if not text:
        raise ValueError("the name of a server is missing")
    if (found := _PLACE.fullmatch(text)) is None:
        raise ValueError(f"{text!r} is no host with a port")
    if not 0 < int(found[3]) < 65_536:
        raise ValueError(f"{text!r} has no port between 1 and 65535")
    return Place(found[1] or found[2], int(found[3]))


# ---------------------------------------------------------------------------------------------------- what is said


@dataclass(frozen=True, slots=True)
class Key:
    """The name of an entry, and which server it is on."""

    server: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Item:
    """An entry as it was found. ``number`` is another one after every write; ``left`` is how long (seconds) it will be
    there, or ``FOREVER``. ``data`` is empty where it was not asked for."""

    data: bytes
    number: int
    left: int


@dataclass(frozen=True, slots=True)
class Write:
    """An entry to be written. ``ends`` is as ``ending`` says it. ``over`` is the number of what it replaces: where
    something else is by then, nothing is written; see also ``ANYTHING`` and ``NOTHING``."""

    key: Key
    data: bytes
    ends: int
    over: int | None = ANYTHING


def ending(until: float, now: float, left: int = 0) -> int:
    """How to say that an entry lasts until then (unix seconds), and no shorter than the ``left`` seconds it has.

    Never too short: the server's clock goes in whole seconds, and may be one second ahead.
    """
    if left == FOREVER or until >= LAST_MOMENT - 1:
        return 0
    moment = ceil(until) + 1
    if left <= moment - now:
        return moment
    return left if left <= LONGEST_RELATIVE else ceil(now) + left


def lasting_within(left: int, now: float) -> int:
    """How to say that an entry lasts for no longer than another one that is there for ``left`` seconds."""
    if left == FOREVER:
        return 0
    shorter = max(left - 1, 1)  # the server's clock may tick in between
    return shorter if shorter <= LONGEST_RELATIVE else int(now) + shorter


Answer: TypeAlias = "T | AsyncQueueError"
"""What one server said; or why it said nothing, which is no matter of the others."""


def first_error(answers: Iterable[object]) -> None:
    """Raise the first error among answers."""
    for answer in answers:
        if isinstance(answer, AsyncQueueError):
            raise answer


def without_errors(answers: Sequence[Answer[T]]) -> list[T]:
    """The answers, where none of them is an error; else raises the first."""
    first_error(answers)
    return [answer for answer in answers if not isinstance(answer, AsyncQueueError)]


# ---------------------------------------------------------------------------------------------------- link


class Link:
    """Some servers, used as one store, in one event loop.

    Answers come in the order of what was asked; an error among them is that of one server.
    """

    def __init__(self, places: Sequence[Place], *, timeout: float = TIMEOUT) -> None:
        self.places = tuple(places)
        self._timeout = timeout
        self._servers: list[_Server] = []

    @property
    def address(self) -> str:
        """Where it is, for people."""
        return ",".join(map(str, self.places))

    async def open(self) -> None:
        """Reach the servers; those that do not answer may do so later. Raises ``Unavailable`` where none does."""
        if self._servers:
            return
        servers = [_Server(place, self._timeout) for place in self.places]
        try:
            errors = [error for error in await asyncio.gather(*(server.greet() for server in servers)) if error]
            fatal = [error for error in errors if not isinstance(error, Unavailable)]
            if fatal or len(errors) == len(servers):
                raise (fatal or errors)[0]
            self._servers = servers
        finally:
            if self._servers is not servers:
                for server in servers:
                    await server.close()

    async def close(self) -> None:
        """Let go of the connections."""
        servers, self._servers = self._servers, []
        for server in servers:
            await server.close()

    def key(self, name: str) -> Key:
        """Where Machinery keeps the entry of a UUID. Raises ``Refused`` for what can be no key."""
        encoded = _encoded(name)
        count = len(self.places)
        return Key(crc32(encoded[:256]) % count if count > 1 else 0, encoded)

    def beside(self, name: str, companion: str) -> Key:
        """The key of an entry of ours that belongs to another one, on the same server."""
        return Key(self.key(name).server, _encoded(companion))

    async def read(self, keys: Sequence[Key]) -> list[Answer[Item | None]]:
        """Entries; None where there is none."""
        return [_item(reply) for reply in await self._ask([(key, b"mg %b c t v\r\n" % key.name) for key in keys])]

    async def glance(self, keys: Sequence[Key]) -> list[Answer[Item | None]]:
        """Entries without their data."""
        return [_item(reply) for reply in await self._ask([(key, b"mg %b c t\r\n" % key.name) for key in keys])]

    async def prolong(self, ends: Mapping[Key, int]) -> list[Answer[Item | None]]:
        """Let entries last until then, as ``ending`` says it; how they were before, without their data."""
        # the server does what the flags say in their order
        return [
            _item(reply)
            for reply in await self._ask([(key, b"mg %b c t T%d\r\n" % (key.name, end)) for key, end in ends.items()])
        ]

    async def drop(self, keys: Sequence[Key]) -> None:
        """Drop entries; no matter which of them are there. Those on servers that answer are gone in any case."""
        first_error(await self._ask([(key, b"md %b\r\n" % key.name) for key in keys]))

    async def write(self, writes: Sequence[Write]) -> list[Answer[int | None]]:
        """Write entries; the number that each has from now on, or None where something else was there."""
        replies = await self._ask([(write.key, _stored(write)) for write in writes])
        return [_written(write, reply) for write, reply in zip(writes, replies, strict=True)]

    def require_room(self, what: str, write: Write, spare: int = 0) -> None:
        """Raise ``EntryTooLarge`` for an entry that its server has no room for, with ``spare`` bytes more.

        ``what`` is the kind of entry. Of a server that has never answered no limit is known.
        """
        self._require_open()
        limit = self._servers[write.key.server].item_size_max
        size = len(write.data) + len(write.key.name) + ITEM_OVERHEAD
        if limit and size + spare > limit:
            raise EntryTooLarge(
                f"{what} {write.key.name.decode()}: an entry of {size + spare} bytes, over the limit of {limit} bytes "
                f"of Memcached at {self.places[write.key.server]} (its option -I)"
            )

    async def _ask(self, commands: Sequence[tuple[Key, bytes]]) -> list[Answer[_Reply]]:
        self._require_open()
        concerned: dict[int, list[int]] = {}
        for at, (key, _) in enumerate(commands):
            concerned.setdefault(key.server, []).append(at)
        asking = [self._servers[server].ask([commands[at][1] for at in places]) for server, places in concerned.items()]
        said = await asyncio.gather(*asking) if len(asking) > 1 else [await each for each in asking]
        answers = {
            at: one
            for places, some in zip(concerned.values(), said, strict=True)
            for at, one in zip(places, some, strict=True)
        }
        return [answers[at] for at in range(len(commands))]

    def _require_open(self) -> None:
        if not self._servers:
            raise Unavailable(f"the connection to Memcached at {self.address} is closed")


_BAD_IN_KEY = re.compile(rb"[\x00-\x20\x7f]")


def _encoded(name: str) -> bytes:
    encoded = name.encode(errors="surrogatepass")
    if not encoded or len(encoded) > LONGEST_KEY or _BAD_IN_KEY.search(encoded):
        shown = name if len(name) <= 64 else f"{name[:64]}…"
        raise Refused(f"{shown!r} can be no key of Memcached: expected 1 to {LONGEST_KEY} bytes without spaces")
    return encoded


def _stored(write: Write) -> bytes:
    over = "" if write.over is ANYTHING else " ME" if write.over == NOTHING else f" C{write.over}"
    head = f" {len(write.data)} T{write.ends}{over} c\r\n".encode()
    return b"".join((b"ms ", write.key.name, head, write.data, b"\r\n"))


def _item(answer: Answer[_Reply]) -> Answer[Item | None]:
    if isinstance(answer, AsyncQueueError):
        return answer
    return None if answer.word == b"EN" else Item(answer.data, answer.token(b"c"), answer.token(b"t"))


def _written(write: Write, answer: Answer[_Reply]) -> Answer[int | None]:
    match answer:
        case _TooLarge():
            return EntryTooLarge(f"{write.key.name.decode()}, an entry of {len(write.data)} bytes: {answer}")
        case AsyncQueueError():
            return answer
        case _Reply():
            return answer.token(b"c") if answer.word == b"HD" else None


# ---------------------------------------------------------------------------------------------------- one server


@dataclass(frozen=True, slots=True)
class _Reply:
    """The answer to one command: a word, flags that each begin with their letter, and the data of an entry."""

    word: bytes
    flags: Sequence[bytes] = ()
    data: bytes = b""

    def token(self, letter: bytes) -> int:
        return next(int(flag[1:]) for flag in self.flags if flag.startswith(letter))


class _TooLarge(Refused):
    """The server has no room for an entry of this size."""


class _Server:
    """One server, with as many connections as it needs."""

    def __init__(self, place: Place, timeout: float) -> None:
        self.item_size_max = 0  # not known yet
        self._place = place
        self._timeout = timeout
        self._client = _Client(place)
        # who waits in aiomcache's pool is not told that a connection was dropped and that there is room for another one
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._is_closed = False

    async def greet(self) -> AsyncQueueError | None:
        """Learn what it is; why that cannot be used, or None."""
        try:
            async with self._in_time():
                await self._learn()
        except AsyncQueueError as exc:
            return exc
        return None

    async def ask(self, commands: Sequence[bytes]) -> list[Answer[_Reply]]:
        """The answers to some commands. Where one is left out, so are those after it."""
        answers: list[Answer[_Reply]] = []
        try:
            for some in _in_parts(commands):
                async with self._in_time() as limit:
                    if not self.item_size_max:
                        await self._learn()
                    replies = await self._client.ask(some, lambda: self._go_on(limit))
                    answers += [self._said_no(reply) or reply for reply in replies]
        except AsyncQueueError as exc:
            answers += [exc] * (len(commands) - len(answers))
        return answers

    async def close(self) -> None:
        self._is_closed = True
        await self._client.close()

    async def _learn(self) -> None:
        try:
            await self._ask_what_it_is()
        finally:
            if not self.item_size_max:  # a reply of `stats` may be left unread
                await self._client.close()

    async def _ask_what_it_is(self) -> None:
        (version,) = await self._client.ask([b"version\r\n"])
        number = re.match(rb"(\d+)\.(\d+)\.(\d+)", b" ".join(version.flags))
        if number is not None and tuple(map(int, number.groups())) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise Refused(f"Memcached at {self._place} is version {number[0].decode()}; {oldest} or newer is needed")
        settings = await self._client.stats(b"settings")
        self.item_size_max = int(settings.get(b"item_size_max") or USUAL_ITEM_SIZE_MAX)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[asyncio.Timeout]:
        """One turn on a connection. What goes wrong, and what takes too long, is said in the words of this package."""
        try:
            async with asyncio.timeout(self._timeout) as limit, self._room:
                yield limit
        except TimeoutError as exc:
            raise Unavailable(f"Memcached at {self._place}: no answer within {self._timeout:g} s") from exc
        except (_Misunderstood, ValueError) as exc:
            raise Refused(f"Memcached at {self._place}: {exc}") from exc
        except (OSError, EOFError, ClientException) as exc:
            raise Unavailable(f"Memcached at {self._place}: {str(exc) or type(exc).__name__}") from exc
        finally:
            if self._is_closed:  # what came back to the pool after it was emptied
                await self._client.close()

    def _go_on(self, limit: asyncio.Timeout) -> None:
        """A reply has come: the next one has as much time."""
        limit.reschedule(asyncio.get_running_loop().time() + self._timeout)

    def _said_no(self, reply: _Reply) -> AsyncQueueError | None:
        if reply.word != b"SERVER_ERROR":
            return None
        text = f"Memcached at {self._place}: {b' '.join(reply.flags).decode(errors='replace')}"
        return _TooLarge(text) if b"large" in reply.flags else Unavailable(text)


class _Misunderstood(Exception):
    """A reply that is none: what comes after it on the connection is not known."""


class _Client(Client):
    """aiomcache's, with one more verb, and on unix sockets too."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.host, place.port, pool_size=CONNECTIONS)
        if not place.port:
            self._pool = _SocketPool(place.host, 0, minsize=CONNECTIONS, maxsize=CONNECTIONS)

    @acquire
    async def ask(
        self, connection: Connection, commands: Sequence[bytes], heard: Callable[[], None] = lambda: None
    ) -> list[_Reply]:
        """Send commands in one go; the reply to each. ``heard`` is called at each."""
        replies: list[_Reply] = []
        try:
            connection.writer.writelines(commands)
            for _ in commands:
                replies.append(await _next_reply(connection.reader))
                heard()
        finally:
            if len(replies) < len(commands):  # cancelled too: the pool keeps no connection that has an exception set
                connection.reader.set_exception(ConnectionAbortedError("a reply was left unread"))
        return replies


_WORDS = frozenset({b"HD", b"VA", b"EN", b"NF", b"NS", b"EX", b"VERSION", b"SERVER_ERROR"})


async def _next_reply(reader: asyncio.StreamReader) -> _Reply:
    line = await reader.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("it closed the connection")
    word, *flags = line.split()
    if word not in _WORDS:
        raise _Misunderstood(line.decode(errors="replace").strip())
    if word != b"VA":
        return _Reply(word, flags)
    data = await reader.readexactly(int(flags[0]) + 2)
    return _Reply(word, flags[1:], data[:-2])


class _SocketPool(MemcachePool):
    async def _create_new_conn(self) -> Connection | None:
        if self.size() >= self._maxsize:
            return None
        connection = Connection(*await asyncio.open_unix_connection(self._host))
        if self.size() < self._maxsize:
            return connection
        connection.writer.close()  # others were faster
        return None


def _in_parts(commands: Sequence[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for command in commands:
        if part and (len(part) == AT_ONCE or size + len(command) > BYTES_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(command)
        size += len(command)
    if part:
        yield part
