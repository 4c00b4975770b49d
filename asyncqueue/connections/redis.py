"""How to reach a Redis server: URL, connections, scripts, and what its errors mean.

The one place that connects. Nothing here retries but one thing: a script that the server does not know is sent again
in full, since the server has then done nothing.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, unquote

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from asyncqueue.errors import AsyncQueueError, ConfigError, Refused, Unavailable
from asyncqueue.redact import redact_url
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


# ---------------------------------------------------------------------------------------------------- where


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where one server is, and who we are there. ``path`` is a unix socket, and wins over host and port."""

    host: str = "localhost"
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"


@dataclass(slots=True)
class Access:
    """How connections are made from now on. Links that share one change together, in whatever thread they live.

    ``connect_timeout`` and ``reply_timeout`` are seconds, ``client_name`` is shown in CLIENT LIST.
    """

    address: RedisAddress
    connect_timeout: float
    reply_timeout: float
    client_name: str


_FORMS = {
    "redis": "redis://[[user:]password@]host[:port][/db]",
    "rediss": "rediss://[[user:]password@]host[:port][/db][?ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE]",
    "redis+socket": "redis+socket://[[user:]password@]/path[:/db]",
}
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def parse_url(url: str, tls: ssl.SSLContext | None = None) -> RedisAddress:
    """The address in a URL of one of the forms ``redis://``, ``rediss://`` or ``redis+socket://``.

    Logins are percent-decoded; one without a colon is a password. ``rediss://`` verifies the server's certificate and
    name; ``tls`` is a context to use instead of the one that the URL's options make, and turns TLS on by itself.
    Raises ``ConfigError``, which never shows the password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _FORMS:
        raise ConfigError(f"{redact_url(url)!r} is no URL of a Redis server: expected {' or '.join(_FORMS.values())}")
    try:
        if scheme == "redis+socket":
            return _parse_socket(rest)
        return _parse_tcp(rest, scheme, tls)
    except ValueError as exc:
        raise ConfigError(f"{redact_url(url)!r}: {exc}; expected {_FORMS[scheme]}") from None


def _parse_socket(rest: str) -> RedisAddress:
    rest, _, query = rest.partition("?")
    if query:
        raise ValueError("a unix socket has no options")
    login, slash, path = ("", "/", rest[1:]) if rest.startswith("/") else rest.partition("@/")
    if not slash:
        raise ValueError("the path must begin with a slash")
    path, _, db = path.partition(":/")
    if not path:
        raise ValueError("the path is missing")
    username, password = _login(login)
    return RedisAddress(path=f"/{path}", db=_db(db), username=username, password=password)


def _parse_tcp(rest: str, scheme: str, tls: ssl.SSLContext | None) -> RedisAddress:
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    remainder = rest[len(authority) :]
    if "@" in remainder:
        raise ValueError("a password with / ? # or @ in it must be percent-encoded")
    path, _, query = remainder.partition("?")
    login, _, place = authority.rpartition("@")
    if "," in place:
        raise ValueError("several addresses are not supported")
    username, password = _login(login)
    host, port = _host_and_port(place)
    db = _db(path.removeprefix("/").partition("/")[0])
    options = _options(query, scheme)
    if scheme == "rediss" and tls is None:
        tls = _tls_context(options)
    return RedisAddress(host=host, port=port, db=db, username=username, password=password, tls=tls)


def _login(login: str) -> tuple[str | None, str | None]:
    if not login:
        return None, None
    user, colon, password = login.partition(":")
    if not colon:
        return None, unquote(user)
    return unquote(user) or None, unquote(password) or None


def _host_and_port(place: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]]*))(?::(\d{0,5}))?", place)
    if found is None or not 0 < (port := int(found[3] or 6379)) < 65_536:
        raise ValueError("host or port cannot be read")
    return found[1] or found[2] or "localhost", port


def _db(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError("the db must be a number")
    return int(text or 0)


def _options(query: str, scheme: str) -> Mapping[str, str]:
    known = _TLS_OPTIONS if scheme == "rediss" else ()
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - set(known)):
        raise ValueError(f"unknown option {unknown[0]!r}" + (f" (known: {', '.join(known)})" if known else ""))
    return options


def _tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile"))
    except OSError as exc:  # ssl.SSLError is one
        raise ValueError(f"the certificates cannot be read: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


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


def _packed(words: tuple[Word, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub says a tuple of one
    return packed


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

# what a server says while it cannot serve, and may soon
_TRANSIENT = re.compile(
    r"\b(LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|NOREPLICAS|NOGOODSLAVE|BUSY|MISCONF|OOM|UNBLOCKED)\b"
)
_TRANSIENT_CLASSES = (
    redis_errors.ReadOnlyError,
    redis_errors.ClusterDownError,  # MASTERDOWN too
    redis_errors.TryAgainError,
    redis_errors.AskError,  # MOVED too
    redis_errors.OutOfMemoryError,
)
# our scripts answer this where a key that they must use is of another type
WRONG_KEY = "WRONGKEY"


class OutOfMemory(Unavailable):
    """The server's memory is full (``maxmemory``): it takes nothing that needs more of it."""


# ---------------------------------------------------------------------------------------------------- connections


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself. ``uptime`` in seconds, ``clock_at`` in unix seconds (None: it does not say)."""

    version: tuple[int, int]
    run_id: str
    uptime: float
    eviction_policy: str
    clock_at: float | None


class Channel:
    """One connection. Whoever breaks off an exchange, by error or cancellation, gives up the connection with it: a
    reply that is still on its way must never be taken for the next one's."""

    __slots__ = ("_connection", "_link", "used_at")

    def __init__(self, link: RedisLink, connection: Any) -> None:
        self._link = link
        self._connection = connection  # Any: redis-py's annotations are incomplete
        self.used_at = 0.0

    @property
    def is_open(self) -> bool:
        return bool(self._connection.is_connected)

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, as far as is known without asking."""
        # redis-py's own question for this has another name in each of its versions
        reader = self._connection._reader
        return reader is None or bool(reader.at_eof())

    async def call(self, *words: Word, wait: float = 0.0) -> Reply:
        """One command; ``wait`` is how long (seconds) the command itself may block."""
        (reply,) = await self.exchange(_packed(words), 1, wait)
        if isinstance(reply, AsyncQueueError):
            raise reply
        return reply

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
            if isinstance(error, Unavailable) and not isinstance(error, OutOfMemory):
                self._link.lost_contact()  # it is there, and yet nobody could renew a lease
            return error


class RedisLink:
    """Connections to one server, made as they are needed, at most ``max_connections`` at a time.

    ``on_connect`` is called with each new channel before it is used. An instance belongs to one event loop.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        max_connections: int = MAX_CONNECTIONS,
        client_name: str = "",
        slow: float = float("inf"),
        on_connect: Callable[[Channel], Awaitable[None]] | None = None,
    ) -> None:
        self.access = Access(address, connect_timeout, reply_timeout, client_name)
        self.facts: ServerFacts | None = None
        self._slow = slow
        self._on_connect = on_connect
        self._slots = asyncio.Semaphore(max_connections)
        self._idle: list[Channel] = []
        self._is_closed = False
        self._was_let_in = False
        self._contact_since: float | None = None

    @property
    def address(self) -> RedisAddress:
        return self.access.address

    def connect_with(
        self,
        url: str,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        tls: ssl.SSLContext | None = None,
        client_name: str = "",
    ) -> None:
        """Make the connections from now on so, and those of links that share our access; what is open stays as it is.
        Raises ``ConfigError``."""
        self.access.address = parse_url(url, tls)
        self.access.connect_timeout = connect_timeout
        self.access.reply_timeout = reply_timeout
        self.access.client_name = client_name

    async def open(self) -> ServerFacts:
        """Reach the server and see what it is. Raises ``Refused`` for one that is too old."""
        self._is_closed = False
        if self.facts is None:
            facts = await self.look()
            if facts.version < OLDEST:
                await self.close()
                shown, oldest = ".".join(map(str, facts.version)), ".".join(map(str, OLDEST))
                raise Refused(f"Redis at {self.address} is version {shown}; {oldest} or newer is needed")
            self.facts = facts
            # a server that has been up for long had every chance to hear from its workers
            self._contact_since = asyncio.get_running_loop().time() - facts.uptime
        return self.facts

    async def close(self) -> None:
        """Close what is idle; what is in use closes when it comes back."""
        self._is_closed = True
        self.facts = None
        while self._idle:
            await self._idle.pop().close()

    async def look(self) -> ServerFacts:
        """What the server says of itself, now."""
        server, memory = await self.pipeline([("INFO", "server"), ("INFO", "memory")])
        for reply in (server, memory):
            if isinstance(reply, AsyncQueueError):
                raise reply
        info = dict(line.split(":", 1) for line in (server + memory).decode().splitlines() if ":" in line)
        major, minor, *_ = info["redis_version"].split(".")
        return ServerFacts(
            version=(int(major), int(minor)),
            run_id=info["run_id"],
            uptime=float(info["uptime_in_seconds"]),
            eviction_policy=info.get("maxmemory_policy", ""),
            clock_at=int(info["server_time_usec"]) / 1_000_000 if "server_time_usec" in info else None,
        )

    async def call(self, *words: Word) -> Reply:
        """One command."""
        (reply,) = await self._exchange(_packed(words), 1)
        if isinstance(reply, AsyncQueueError):
            raise reply
        return reply

    async def pipeline(self, commands: Sequence[tuple[Word, ...]]) -> list[Reply]:
        """Several commands, one round trip; a command's error stands in its place, as one of ours."""
        return await self._exchange(b"".join(map(_packed, commands)), len(commands))

    async def run(self, script: Script, keys: Sequence[Word], args: Iterable[Word]) -> Reply:
        """One script."""
        (reply,) = await self.run_each([(script, keys, args)])
        if isinstance(reply, AsyncQueueError):
            raise reply
        return reply

    async def run_each(self, calls: Sequence[tuple[Script, Sequence[Word], Iterable[Word]]]) -> list[Reply]:
        """Several scripts, one round trip; a script's error stands in its place, as one of ours."""
        flagged = self.facts is not None and self.facts.version >= (7, 0)
        tails = [(len(keys), *keys, *args) for _, keys, args in calls]
        packed = [
            _packed(("EVALSHA", script.flagged_sha if flagged else script.sha, *tail))
            for (script, _, _), tail in zip(calls, tails, strict=True)
        ]
        replies = await self._exchange(b"".join(packed), len(calls))
        for index, reply in enumerate(replies):
            if isinstance(reply, redis_errors.NoScriptError):
                script = calls[index][0]
                text = script.flagged_text if flagged else script.text
                (replies[index],) = await self._exchange(_packed(("EVAL", text, *tails[index])), 1)
        return replies

    async def channel(self) -> Channel:
        """A connection of one's own, for commands that block or subscribe. Whoever asked for it closes it."""
        connection = self._connection()
        channel = Channel(self, connection)
        try:
            async with asyncio.timeout(self.access.connect_timeout):
                await connection.connect()
                self._was_let_in = True
                if self._on_connect is not None:
                    await self._on_connect(channel)
        except BaseException as exc:
            await channel.close(nowait=True)
            if isinstance(exc, Exception):
                self.lost_contact()
                raise self.meaning(exc, self.access.connect_timeout) from self.cause(exc)
            raise
        channel.used_at = asyncio.get_running_loop().time()
        return channel

    def contact(self) -> float:
        """For how long (seconds) the server has been heard without a break."""
        now = asyncio.get_running_loop().time()
        return 0.0 if self._contact_since is None else now - self._contact_since

    def heard(self, took: float) -> None:
        """The server answered, after ``took`` seconds. One that was away for long was away for all its workers."""
        if self._contact_since is None or took > self._slow:
            self._contact_since = asyncio.get_running_loop().time()

    def lost_contact(self) -> None:
        """The server did not answer, or could not serve. Its other connections are suspect too."""
        self._contact_since = None
        for channel in self._idle:
            channel.used_at = float("-inf")

    def meaning(self, exc: Exception, timeout: float) -> AsyncQueueError:
        """What an exception of the client library or the system means to us."""
        if isinstance(exc, AsyncQueueError):
            return exc
        text = self._scrubbed(str(exc))
        where = f"Redis at {self.address}"
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
                return Unavailable(f"{where} cannot be reached: {text}")
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

    async def _exchange(self, payload: bytes, count: int) -> list[Reply]:
        if self._is_closed:
            raise Unavailable(f"the connection to Redis at {self.address} is closed")
        async with self._slots:
            channel = await self._borrow()
            replies = await channel.exchange(payload, count)
            await self._return(channel)
            return replies

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
        for secret in (self.address.password, self.address.username):
            if secret and len(secret) > 2 and secret != "default":
                text = text.replace(secret, "***")
        return text

    def _connection(self) -> Any:
        options: dict[str, Any] = {
            "db": self.address.db,
            "username": self.address.username,
            "password": self.address.password,
            "client_name": self.access.client_name or None,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),  # a lost reply is ours to judge: a blind second RPUSH is a second task
            "socket_timeout": None,  # one timeout spans the whole exchange
            "socket_connect_timeout": self.access.connect_timeout,
        }
        if self.address.path:
            return UnixDomainSocketConnection(path=self.address.path, **options)
        place: dict[str, Any] = {"host": self.address.host, "port": self.address.port, "socket_keepalive": True}
        if self.address.tls is None:
            return Connection(**place, **options)
        connection = SSLConnection(**place, **options)
        connection.ssl_context.context = self.address.tls
        return connection
