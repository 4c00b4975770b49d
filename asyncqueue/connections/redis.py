"""How to talk to a Redis server: connections, scripts, and what its errors mean.

The one place that connects. Nothing here retries but one thing: a script that the server does not know is sent again
in full, since the server has then done nothing.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, ClassVar, TypedDict

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from asyncqueue.connections.redis_place import Alone, Place, RedisAddress, parse_url
from asyncqueue.errors import AsyncQueueError, Refused, Unavailable
from asyncqueue.state import GroupMeta
from asyncqueue.wire import encode_group

CONNECT_TIMEOUT = 5.0
"""How long (seconds) to reach the server, authenticate and select the db."""

REPLY_TIMEOUT = 5.0
"""How long (seconds) a reply may take, beyond what a blocking command waits."""

MAX_CONNECTIONS = 8
"""How many connections a link has in use at once; whoever wants one more waits."""

OLDEST = (6, 2)
"""The oldest server version that will do: BLMOVE is from there."""

IDLE = 10.0
"""A connection that rested longer (seconds) is asked for a sign of life before it is used."""

Reply = Any
"""What a server answers: bytes, int, None, or a list of these."""

Word = str | bytes | int
"""One word of a command."""


# ---------------------------------------------------------------------------------------------------- scripts


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script. ``allow_oom``: it frees or only moves memory, so it must run when the server's memory is full."""

    name: str
    text: str
    allow_oom: bool
    sha: str = field(init=False)
    flagged_text: str = field(init=False)
    flagged_sha: str = field(init=False)

    def __post_init__(self) -> None:
        # before 7.0 a flag line is a syntax error, so there are two texts
        flagged = f"#!lua flags=allow-oom\n{self.text}" if self.allow_oom else self.text
        for name, value in (("sha", _sha(self.text)), ("flagged_text", flagged), ("flagged_sha", _sha(flagged))):
            object.__setattr__(self, name, value)


def read_scripts(*paths: str) -> Mapping[str, Script]:
    """The scripts of ``.lua`` files, by name; paths are relative to the package.

    A line ``--@ name`` or ``--@ name allow-oom`` begins a script. What stands before the first of these lines, in
    all the files together, is put in front of every script.
    """
    prelude, scripts = "", {}
    for path in paths:
        text = files("asyncqueue").joinpath(path).read_text("utf-8")
        head, *sections = re.split(r"^--@ ", text, flags=re.MULTILINE)
        prelude += head
        for section in sections:
            title, _, body = section.partition("\n")
            script, *flags = title.split()
            scripts[script] = (body, "allow-oom" in flags)
    prelude = _without_comments(prelude)
    return {
        name: Script(name, prelude + _without_comments(body), allow_oom) for name, (body, allow_oom) in scripts.items()
    }


def packed(words: tuple[Word, ...]) -> bytes:
    """A command as it is sent."""
    command: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub says a tuple of one
    return command


@lru_cache(1024)
def companion_prefix(key: str) -> str:
    """What the names of the companions of a key begin with, so that they lie in its own slot of a cluster."""
    opening = key.find("{")
    closing = key.find("}", opening + 1)
    if opening >= 0 and closing > opening + 1:
        return f"{{{key[opening + 1 : closing]}}}:aq:{key}:"
    return f"{{{key}}}:aq:"


def raise_first(replies: Sequence[Reply]) -> None:
    """Raise the first error among replies."""
    for reply in replies:
        if isinstance(reply, AsyncQueueError):
            raise reply


def expiry(seconds: float) -> tuple[str, int]:
    """How SET says that an entry is kept for so long: like Machinery in seconds, where they are whole."""
    return ("EX", int(seconds)) if seconds == int(seconds) else ("PX", max(1, round(seconds * 1000)))


def kept_from(not_before: float | None) -> Word:
    """From when on (unix seconds) an entry is kept, as the scripts want it: ms, or nothing for now."""
    return "" if not_before is None else round(not_before * 1000)


def tombstone(group_id: str) -> bytes:
    """The entry of a group that had none when it ended: it has no members, and is triggered."""
    return encode_group(GroupMeta(group_uuid=group_id, chord_triggered=True))


def _without_comments(text: str) -> str:
    lines = (line.strip() for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("--"))


def _sha(text: str) -> str:
    return sha1(text.encode(), usedforsecurity=False).hexdigest()


# ---------------------------------------------------------------------------------------------------- errors

# what a server says while it cannot serve, and may soon; the last one: while a slot of a cluster is on its way
_TRANSIENT = re.compile(
    r"\b(LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|NOGOODSLAVE|BUSY|MISCONF|OOM|UNBLOCKED)\b"
    r"|non local key in a cluster|cannot be used with replica"
)
# what a server says that was the master and is not any more
_DEMOTED = re.compile(r"\b(READONLY|UNBLOCKED|MASTERDOWN)\b|cannot be used with replica")
_TRANSIENT_CLASSES = (
    redis_errors.ReadOnlyError,
    redis_errors.ClusterDownError,  # MASTERDOWN too
    redis_errors.TryAgainError,
    redis_errors.OutOfMemoryError,
)
# what is seen of a server that hangs up, on a connection that was made
_CUT_OFF = re.compile("while reading|closed by server|reset by peer")
# our scripts answer this where a key that they must use is of another type
WRONG_KEY = "WRONGKEY"


class OutOfMemory(Unavailable):
    """The server's memory is full (``maxmemory``): it takes nothing that needs more of it."""


class Elsewhere(Refused):
    """A node of a cluster has done nothing, since another node serves that slot: for good (MOVED), or for this one
    request (ASK, ``is_once``)."""

    def __init__(self, where: str, slot: int, host: str, port: int, *, is_once: bool) -> None:
        super().__init__(f"{where} is a node of a cluster, and {host}:{port} serves this; {NAME_A_CLUSTER}")
        self.slot, self.host, self.port, self.is_once = slot, host, port, is_once


NAME_A_CERTIFICATE = "ssl_certfile and ssl_keyfile in the URL, or tls.cert_file and tls.key_file, name it"
NAME_A_CLUSTER = "a cluster is named by the addresses of several nodes, or by redis.cluster_mode"
NAME_A_MASTER = "behind sentinels a server is named by redis.master_name"


# ---------------------------------------------------------------------------------------------------- connections


class Options(TypedDict, total=False):
    """How a broker, backend or lock reaches Redis, beside its URL.

    ``connect_timeout`` and ``reply_timeout`` are seconds, the latter beyond what a blocking command waits; ``tls`` is a
    context to use instead of the one that the URL's options make; ``client_name`` is shown in CLIENT LIST. ``cluster``:
    the URL's address is a node of a cluster, as several addresses always are; with a ``master_name`` they are
    sentinels, who are given the ``sentinel_password``. ``replicas`` is how many replicas must have what is sent or
    recorded before that counts as done.
    """

    connect_timeout: float
    reply_timeout: float
    tls: ssl.SSLContext | None
    client_name: str
    cluster: bool
    master_name: str
    sentinel_password: str
    replicas: int


@dataclass(slots=True)
class Access:
    """How connections are made from now on. Links that share one change together, in whatever thread they live."""

    place: Place
    connect_timeout: float = CONNECT_TIMEOUT
    reply_timeout: float = REPLY_TIMEOUT
    client_name: str = ""
    replicas: int = 0

    @classmethod
    def to(cls, url: str, options: Options) -> Access:
        """The access that URL and options ask for. Raises ``ConfigError``."""
        place = parse_url(
            url,
            options.get("tls"),
            cluster=options.get("cluster", False),
            master_name=options.get("master_name", ""),
            sentinel_password=options.get("sentinel_password", ""),
        )
        return cls(
            place,
            options.get("connect_timeout", CONNECT_TIMEOUT),
            options.get("reply_timeout", REPLY_TIMEOUT),
            options.get("client_name", ""),
            options.get("replicas", 0),
        )


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself. ``mode`` is standalone, sentinel or cluster, ``uptime`` is in seconds, ``clock_at``
    in unix seconds (None: it does not say)."""

    version: tuple[int, int]
    run_id: str
    mode: str
    uptime: float
    eviction_policy: str
    clock_at: float | None


class Channel:
    """One connection. Whoever breaks off an exchange, by error or cancellation, gives up the connection with it: a
    reply that is still on its way must never be taken for the next one's."""

    __slots__ = ("_connection", "_link", "address", "generation", "used_at")

    def __init__(self, link: RedisLink, connection: Any, address: RedisAddress, generation: int) -> None:
        self._link = link
        self.address = address
        self._connection = connection  # Any: redis-py's annotations are incomplete
        self.generation = generation
        self.used_at = 0.0

    @property
    def is_open(self) -> bool:
        return bool(self._connection.is_connected)

    @property
    def is_stale(self) -> bool:
        """Whether it is of no use any more, as far as is known without asking."""
        # redis-py's own question for this has another name in each of its versions
        reader = self._connection._reader
        return reader is None or bool(reader.at_eof()) or self._link.generation != self.generation

    async def call(self, *words: Word, wait: float = 0.0) -> Reply:
        """One command; ``wait`` is how long (seconds) the command itself may block."""
        (reply,) = await self.exchange(packed(words), 1, wait)
        if isinstance(reply, AsyncQueueError):
            raise reply
        return reply

    async def run(self, script: Script, keys: Sequence[Word], args: Iterable[Word]) -> Reply:
        """One script, sent in full."""
        return await self.call("EVAL", self._link.text_of(script), len(keys), *keys, *args)

    async def exchange(self, payload: bytes, count: int, wait: float = 0.0) -> list[Reply]:
        """Send packed commands and read ``count`` replies; a command's error stands in its place, as one of ours."""
        timeout = self._link.access.reply_timeout + wait
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout):
                await self._connection.send_packed_command(payload)
                replies = [await self._read() for _ in range(count)]
        except BaseException as exc:
            await self.close(nowait=True)
            if isinstance(exc, Exception):
                self._link.lost_contact()
                raise self._link.meaning(exc, timeout) from self._link.cause(exc)
            raise
        self.used_at = asyncio.get_running_loop().time()
        self._link.heard(self.used_at - began - wait)
        if self._link.generation != self.generation:
            await self.close(nowait=True)
        return replies

    async def receive(self) -> Reply:
        """The next message of a subscription, however long it takes."""
        try:
            return await self._connection.read_response()
        except BaseException as exc:
            await self.close(nowait=True)
            if isinstance(exc, Exception):
                raise self._link.meaning(exc, 0.0) from self._link.cause(exc)
            raise

    async def close(self, nowait: bool = False) -> None:
        # what is wrong with a connection that is being given up is of no interest
        with suppress(OSError, redis_errors.RedisError):
            await self._connection.disconnect(nowait=nowait)

    async def _read(self) -> Reply:
        try:
            return await self._connection.read_response()
        except redis_errors.ResponseError as exc:
            if isinstance(exc, redis_errors.NoScriptError):
                return exc
            error = self._link.meaning(exc, 0.0)
            error.__cause__ = self._link.cause(exc)
            if _DEMOTED.search(str(exc)):
                self._link.demoted()
            if isinstance(error, Unavailable) and not isinstance(error, OutOfMemory):
                self._link.lost_contact()  # it is there, and yet nobody could renew a lease
            return error


Request = tuple[Word, bytes]
"""A key that says which node of a cluster it is for, and a packed command."""


class Link(ABC):
    """Connections to the servers of one place, made as they are needed. An instance belongs to one event loop.

    ``is_spread``: what is kept there lies on several servers, and cannot be changed in one step.
    """

    is_spread: ClassVar[bool] = False

    def __init__(self, access: Access) -> None:
        self.access = access
        self.facts: ServerFacts | None = None
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, and not opened again."""
        return self._is_closed

    @property
    def address(self) -> str:
        """Where it is, for people."""
        return str(self.access.place)

    @abstractmethod
    async def open(self) -> ServerFacts:
        """Reach the place and see what it is. Raises ``Refused`` for one that will not do."""

    @abstractmethod
    async def close(self) -> None:
        """Close what is idle; what is in use closes when it comes back."""

    @abstractmethod
    async def look(self) -> ServerFacts:
        """What the place says of itself, now."""

    @abstractmethod
    async def identity(self, part: str) -> Hashable:
        """Equal for what can be changed in one atomic step. ``part`` is what the caller keeps there."""

    @abstractmethod
    async def channel(self, key: Word) -> Channel:
        """A connection of one's own to where a key is, for commands that block or subscribe. Whoever asked for it
        closes it."""

    @abstractmethod
    def contact(self, key: Word) -> float:
        """For how long (seconds) the server of a key has been heard without a break."""

    @abstractmethod
    def incarnation(self, key: Word) -> Hashable:
        """Which life of which server had a key when that was last used: another one may have lost the last writes."""

    @abstractmethod
    def parts(self, keys: Sequence[Word]) -> Sequence[Sequence[int]]:
        """Positions of keys, those together that one command can use together."""

    @abstractmethod
    async def homes(self, keys: Sequence[Word]) -> Sequence[tuple[RedisLink, Sequence[int]]]:
        """Which servers have the keys, and positions of those that each one has."""

    @abstractmethod
    async def _exchange(self, requests: Sequence[Request], *, to_last: bool) -> list[Reply]:
        """Send requests and read their replies; a request's error stands in its place. ``to_last``: as many replicas
        must have what they changed as the access asks for, or ``Unavailable`` is raised."""

    async def call(self, *words: Word) -> Reply:
        """One command, whose second word is a key."""
        (reply,) = await self.pipeline([words])
        if isinstance(reply, AsyncQueueError):
            raise reply
        return reply

    async def pipeline(self, commands: Sequence[tuple[Word, ...]]) -> list[Reply]:
        """Several commands, whose second words are keys, in one round trip; a command's error stands in its place, as
        one of ours."""
        if not commands:
            return []
        replies = await self._exchange([(words[1], packed(words)) for words in commands], to_last=False)
        return [_with_keys(reply, words[1:2]) for reply, words in zip(replies, commands, strict=True)]

    async def run(self, script: Script, keys: Sequence[Word], args: Iterable[Word], *, to_last: bool = False) -> Reply:
        """One script. ``to_last``: as many replicas must have what it changed as the access asks for."""
        (reply,) = await self.run_each([(script, keys, args)], to_last=to_last)
        if isinstance(reply, AsyncQueueError):
            raise reply
        return reply

    async def run_each(
        self, calls: Sequence[tuple[Script, Sequence[Word], Iterable[Word]]], *, to_last: bool = False
    ) -> list[Reply]:
        """Several scripts, one round trip; a script's error stands in its place, as one of ours."""
        if not calls:
            return []
        flagged = self._knows_flags
        tails = [(len(keys), *keys, *args) for _, keys, args in calls]
        requests: list[Request] = [
            (keys[0] if keys else "", packed(("EVALSHA", script.flagged_sha if flagged else script.sha, *tail)))
            for (script, keys, _), tail in zip(calls, tails, strict=True)
        ]
        replies = await self._exchange(requests, to_last=to_last)
        for index, reply in enumerate(replies):
            if isinstance(reply, redis_errors.NoScriptError):
                again = (requests[index][0], packed(("EVAL", self.text_of(calls[index][0]), *tails[index])))
                (replies[index],) = await self._exchange([again], to_last=to_last)
        return [_with_keys(reply, keys) for reply, (_, keys, _) in zip(replies, calls, strict=True)]

    def text_of(self, script: Script) -> str:
        """The text of a script, as this place wants it."""
        return script.flagged_text if self._knows_flags else script.text

    @property
    def _knows_flags(self) -> bool:
        return self.facts is not None and self.facts.version >= (7, 0)


def _with_keys(reply: Reply, keys: Sequence[Word]) -> Reply:
    """A reply; if it is that some key is not ours to use, with the names of those that were to be."""
    if reply.__class__ is not Refused or "of the keys" not in str(reply):
        return reply
    names = (key.decode(errors="replace") if isinstance(key, bytes) else str(key) for key in keys)
    error = Refused(f"{reply} (of {', '.join(names)})")
    error.__cause__ = reply.__cause__
    return error


class RedisLink(Link):
    """Connections to one server, at most ``max_connections`` in use at a time. A reply that took longer than ``slow``
    seconds breaks the contact."""

    def __init__(self, access: Access, *, max_connections: int = MAX_CONNECTIONS, slow: float = float("inf")) -> None:
        super().__init__(access)
        self.generation = 0
        self._slow = slow
        self._slots = asyncio.Semaphore(max_connections)
        self._idle: list[Channel] = []
        self._at: RedisAddress | None = None
        self._run_id = b""
        self._was_let_in = False
        self._contact_since: float | None = None

    async def open(self) -> ServerFacts:
        self._is_closed = False
        if self.facts is None:
            facts = await self.look()
            if unfit := self._unfit(facts):
                await self.close()
                raise Refused(f"Redis at {self._where} {unfit}")
            self.facts = facts
            if isinstance(self.access.place, Alone):
                # a server that has been up for long had every chance to hear from its workers
                self._contact_since = asyncio.get_running_loop().time() - facts.uptime
        return self.facts

    async def close(self) -> None:
        self._is_closed = True
        self.facts = None
        while self._idle:
            await self._idle.pop().close()

    async def look(self) -> ServerFacts:
        replies = await self.pipeline([("INFO", "server"), ("INFO", "memory")])
        raise_first(replies)
        info = dict(line.split(":", 1) for line in b"".join(replies).decode().splitlines() if ":" in line)
        major, minor, *_ = info["redis_version"].split(".")
        return ServerFacts(
            version=(int(major), int(minor)),
            run_id=info["run_id"],
            mode=info.get("redis_mode", ""),
            uptime=float(info["uptime_in_seconds"]),
            eviction_policy=info.get("maxmemory_policy", ""),
            clock_at=int(info["server_time_usec"]) / 1_000_000 if "server_time_usec" in info else None,
        )

    async def identity(self, part: str) -> Hashable:
        return ("redis", (await self.look()).run_id, self.access.place.like.db)

    async def channel(self, key: Word = "") -> Channel:
        channel: Channel | None = None
        generation = self.generation
        try:
            async with asyncio.timeout(self.access.connect_timeout):
                self._at = address = await self._locate()
                connection = self._connection(address)
                channel = Channel(self, connection, address, generation)
                await connection.connect()
                await self._greet(channel)
                self._was_let_in = True
        except BaseException as exc:
            if channel is not None:
                await channel.close(nowait=True)
            if isinstance(exc, Exception):
                self.lost_contact()
                raise self.meaning(exc, self.access.connect_timeout) from self.cause(exc)
            raise
        channel.used_at = asyncio.get_running_loop().time()
        return channel

    def contact(self, key: Word = "") -> float:
        now = asyncio.get_running_loop().time()
        return 0.0 if self._contact_since is None else now - self._contact_since

    def incarnation(self, key: Word = "") -> Hashable:
        return self._run_id

    def parts(self, keys: Sequence[Word]) -> Sequence[Sequence[int]]:
        return (range(len(keys)),) if keys else ()

    async def homes(self, keys: Sequence[Word]) -> Sequence[tuple[RedisLink, Sequence[int]]]:
        return ((self, range(len(keys))),)

    async def _exchange(self, requests: Sequence[Request], *, to_last: bool) -> list[Reply]:
        return await self.exchange([command for _, command in requests], to_last=to_last)

    async def exchange(self, requests: Sequence[bytes], *, to_last: bool) -> list[Reply]:
        """Send packed commands and read their replies."""
        if self._is_closed:
            raise Unavailable(f"the connection to Redis at {self._where} is closed")
        replicas = self.access.replicas if to_last else 0
        if replicas:
            patience = self.access.reply_timeout / 2
            requests = [*requests, packed(("WAIT", replicas, round(patience * 1000)))]
        payload = requests[0] if len(requests) == 1 else b"".join(requests)
        async with self._slots:
            channel = await self._borrow()
            replies = await channel.exchange(payload, len(requests))
            await self._return(channel)
        if replicas:
            have = replies.pop()
            if isinstance(have, AsyncQueueError):
                raise have
            if have < replicas:
                raise Unavailable(
                    f"{have} of {replicas} replicas of Redis at {self._where} took it within {patience:g} s"
                )
        return replies

    def heard(self, took: float) -> None:
        """The server answered, after ``took`` seconds. One that was away for long was away for all its workers."""
        if self._contact_since is None or took > self._slow:
            self._contact_since = asyncio.get_running_loop().time()

    def lost_contact(self) -> None:
        """The server did not answer, or could not serve. Its other connections are suspect too."""
        self._contact_since = None
        for channel in self._idle:
            channel.used_at = float("-inf")

    def demoted(self) -> None:
        """The server is no master any more: it would answer, but connections to it are of no use."""
        self.generation += 1

    def meaning(self, exc: Exception, timeout: float) -> AsyncQueueError:
        """What an exception of the client library or the system means to us."""
        if isinstance(exc, AsyncQueueError):
            return exc
        text = self._scrubbed(str(exc))
        where = f"Redis at {self._where}"
        match exc:
            case TimeoutError() | redis_errors.TimeoutError():
                return Unavailable(f"{where} did not answer within {timeout:g} s")
            case redis_errors.AuthenticationError() | redis_errors.AuthorizationError():
                # a password that was good once may be about to be changed on both sides
                return (Unavailable if self._was_let_in else Refused)(f"{where} does not let us in: {text}")
            case redis_errors.OutOfMemoryError():
                return OutOfMemory(f"{where} is full: {text}")
            case redis_errors.ConnectionError() | OSError():
                if "CERTIFICATE_VERIFY_FAILED" in text:
                    return Refused(f"{where}: its certificate is not to be trusted: {text}")
                if "CERTIFICATE_REQUIRED" in text:
                    return Refused(f"{where} demands a certificate of ours: {NAME_A_CERTIFICATE}")
                hint = ""
                if self.access.place.like.tls is not None and not self._was_let_in and _CUT_OFF.search(text):
                    hint = f"; perhaps it demands a certificate of ours: {NAME_A_CERTIFICATE}"
                return Unavailable(f"{where} cannot be reached: {text}{hint}")
            case redis_errors.AskError():
                host = exc.host or (self._at or self.access.place.like).host
                is_once = not isinstance(exc, redis_errors.MovedError)
                return Elsewhere(where, exc.slot_id, host, exc.port, is_once=is_once)
            case redis_errors.ResponseError() if WRONG_KEY in text:
                key = text.partition(f"{WRONG_KEY} ")[2]
                return Refused(f"{where}: the key {key!r} holds something of another type")
            case redis_errors.ResponseError() if isinstance(exc, _TRANSIENT_CLASSES) or _TRANSIENT.search(text):
                if re.search(r"\bOOM\b", text):
                    return OutOfMemory(f"{where} is full: {text}")
                return Unavailable(f"{where} cannot serve now: {text}")
            case redis_errors.ResponseError() if re.search(r"\b(NOAUTH|WRONGPASS)\b", text):
                return (Unavailable if self._was_let_in else Refused)(f"{where} does not let us in: {text}")
            case _:
                return Refused(f"{where} refused: {text}")

    def cause(self, exc: BaseException) -> BaseException | None:
        """``exc``, if it may be shown: some servers repeat a command that they do not know, password and all."""
        return exc if self._scrubbed(str(exc)) == str(exc) else None

    # what a way to a server says about itself

    async def _locate(self) -> RedisAddress:
        """Which server to connect to now."""
        return self.access.place.like

    async def _greet(self, channel: Channel) -> None:
        """What is said on a new connection before it is used."""
        info = await channel.call("INFO", "server")
        found = re.search(rb"^run_id:(\w+)", info, re.MULTILINE)
        if found is not None and found[1] != self._run_id:
            if self._run_id:  # another server has its place: no two connections of ours go to different ones
                self.generation += 1
                channel.generation = self.generation
            self._run_id = found[1]

    def _unfit(self, facts: ServerFacts) -> str:
        """Why this server will not do, if so."""
        if facts.version < OLDEST:
            shown, oldest = ".".join(map(str, facts.version)), ".".join(map(str, OLDEST))
            return f"is version {shown}; {oldest} or newer is needed"
        match facts.mode:
            case "cluster":
                return f"is a node of a cluster; {NAME_A_CLUSTER}"
            case "sentinel":
                return f"is a sentinel; {NAME_A_MASTER}"
            case _:
                return ""

    @property
    def _where(self) -> str:
        return str(self._at or self.access.place)

    async def _borrow(self) -> Channel:
        now = asyncio.get_running_loop().time()
        while self._idle:
            channel = self._idle.pop()
            if channel.is_stale:
                await channel.close(nowait=True)
                self.lost_contact()
                continue
            if now - channel.used_at <= IDLE:
                return channel
            try:
                await channel.call("PING")
            except Unavailable:
                continue  # the exchange has closed it, and taken note; try the next, or a new one
            return channel
        return await self.channel()

    async def _return(self, channel: Channel) -> None:
        if self._is_closed:
            await channel.close()
        elif channel.is_open:
            self._idle.append(channel)

    def _scrubbed(self, text: str) -> str:
        like = self.access.place.like
        for secret in (like.password, like.username):
            if secret and len(secret) > 2 and secret != "default":
                text = text.replace(secret, "***")
        return text

    def _connection(self, address: RedisAddress) -> Any:
        options: dict[str, Any] = {
            "db": address.db,
            "username": address.username,
            "password": address.password,
            "client_name": self.access.client_name or None,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),  # a lost reply is ours to judge: a blind second RPUSH is a second task
            "socket_timeout": None,  # one timeout spans the whole exchange
            "socket_connect_timeout": self.access.connect_timeout,
        }
        if address.path:
            return UnixDomainSocketConnection(path=address.path, **options)
        place: dict[str, Any] = {"host": address.host, "port": address.port, "socket_keepalive": True}
        if address.tls is None:
            return Connection(**place, **options)
        connection = SSLConnection(**place, **options)
        connection.ssl_context.context = address.tls
        return connection
