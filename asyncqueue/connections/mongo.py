"""How to reach a MongoDB: URL, database, client, calls, and what its errors mean.

The one place that connects, and the one that knows in what PyMongo's asyncio client and Motor's differ. Nothing here
repeats a call; the library repeats one whose connection broke, once, where the server can tell the copies apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from inspect import isawaitable
from typing import Any
from urllib.parse import parse_qsl

import pymongo
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from dns.exception import DNSException
from dns.resolver import NXDOMAIN, NoAnswer
from pymongo import AsyncMongoClient, ReadPreference, ReturnDocument, WriteConcern
from pymongo import errors as mongo_errors
from pymongo.uri_parser import parse_uri as parse_mongo_uri

from asyncqueue.connections.sending import portions
from asyncqueue.errors import AsyncQueueError, ConfigError, EntryTooLarge, Refused, Unavailable
from asyncqueue.redact import redact_url, without_credentials

Document = Mapping[str, Any]
"""What is stored, as the library reads it; moments are milliseconds."""

Filter = Mapping[str, Any]
Stages = Sequence[Mapping[str, Any]]

SELECTION_TIMEOUT = 5.0
"""How long (seconds) a server that can be written to is looked for, where the URL does not say it."""

REPLY_TIMEOUT = 10.0
"""How long (seconds) a call may take, finding the server included."""

FAREWELL = 0.5
"""How long (seconds) a server is waited for to say goodbye to it: what it is not told of, it forgets by itself."""

MANY = 5_000
"""How many documents are changed in one call, where there may be very many: each call has its own time to take."""

DEFAULT_DATABASE = "machinery"
"""The database where a URL names none; the only one that Machinery knows."""

MAX_DOCUMENT = 16 * 1024 * 1024
"""The most bytes of one document; the service's own limit."""

NO_CHANGE_STREAMS = frozenset(
    {
        13,  # Unauthorized
        59,  # CommandNotFound
        115,  # CommandNotSupported
        238,  # NotImplemented
        40324,  # a stage of that name is not known
        40573,  # no replica set
    }
)
"""What a server answers that tells nobody of changes, or not us: a lone one, a look-alike, one that forbids it."""


# ---------------------------------------------------------------------------------------------------- where


@dataclass(frozen=True, slots=True)
class MongoAddress:
    """Where a database is. ``url`` is for the library, with the login in it; ``hosts`` are for people."""

    url: str = field(repr=False)
    hosts: str
    database: str
    options: frozenset[str]

    def __str__(self) -> str:
        return f"{self.hosts}/{self.database}"


_SCHEMES = ("mongodb://", "mongodb+srv://")
_FORM = "mongodb://[user:password@]host[:port][,host[:port]…][/database][?options] or mongodb+srv://…, percent-encoded"


def parse_url(url: str, database: str = "") -> MongoAddress:
    """The address in a URL. ``database`` wins over the one in its path, ``machinery`` is where neither says one.

    Raises ``ConfigError``, which never shows the password. No name is resolved.
    """
    scheme = next((each for each in _SCHEMES if url.lower().startswith(each)), None)
    if scheme is None:
        raise ConfigError(f"{redact_url(url)!r} is no URL of MongoDB; expected {_FORM}")
    place, _, query = url[len(scheme) :].partition("?")
    options = frozenset(name.lower() for name, _ in parse_qsl(query, keep_blank_values=True))
    try:
        # the names behind an srv URL are resolved when it is connected to, which is not now
        found = parse_mongo_uri(url if scheme == _SCHEMES[0] else f"{_SCHEMES[0]}{place}", warn=False)
    except (mongo_errors.PyMongoError, ValueError, OSError) as exc:  # a file that it names is looked for at once
        raise ConfigError(f"{redact_url(url)!r}: {_harmless(str(exc), place)}; expected {_FORM}") from None
    hosts = without_credentials(url).partition("://")[2].partition("?")[0].partition("/")[0]
    return MongoAddress(
        url=url,
        hosts=hosts,
        database=database or found["database"] or DEFAULT_DATABASE,
        options=options,
    )


def _harmless(text: str, place: str) -> str:
    """What the library says of a URL, unless it repeats a part of the login."""
    login, at, _ = place.rpartition("@")
    secret = login.partition(":")[2]
    return "it cannot be read" if at and secret and any(part and part in text for part in secret.split("/")) else text


# ---------------------------------------------------------------------------------------------------- calls


class MongoLink:
    """Calls of one database, in one event loop.

    ``client`` is one that the caller made and will close: an ``AsyncMongoClient`` of PyMongo, or a Motor client.
    """

    def __init__(self, address: MongoAddress, *, client: Any = None, reply_timeout: float = REPLY_TIMEOUT) -> None:
        if client is not None:
            _require_client(client)
        self.address = address
        self._given = client
        self._reply_timeout = reply_timeout
        self._client: Any = None
        self._database: Any = None

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self._database is not None

    def twin(self) -> MongoLink:
        """Another link to the same place."""
        return MongoLink(self.address, client=self._given, reply_timeout=self._reply_timeout)

    async def open(self) -> None:
        """Reach the server. Twice is no harm."""
        if self._database is not None:
            return
        self._client = self._given if self._given is not None else self._made()
        try:
            self._database = self._client.get_database(
                self.address.database,
                # others may have written moments that Python's calendar has not
                codec_options=CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS),
                read_preference=ReadPreference.PRIMARY,
                write_concern=WriteConcern("majority"),
            )
            await self._call(lambda database: database.command("ping"))
        except mongo_errors.InvalidName as exc:
            await self.close()
            raise self.meaning(exc) from exc
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go of the connections. Twice is no harm."""
        client, self._client = self._client, None
        self._database = None
        if client is not None and self._given is None:
            with pymongo.timeout(FAREWELL):
                await client.close()

    async def hello(self) -> Document:
        """What the server says of itself."""
        found: Document = await self._call(lambda database: database.command("hello"))
        return found

    async def run(self, collection: str, work: Callable[[Any], Any]) -> Any:
        """One call of the collection, which ``work`` is given.

        Raises ``Unavailable`` (no answer, or a passing trouble), ``EntryTooLarge``, ``Refused`` and ``ConfigError``;
        of several writes, the first error tells which.
        """
        return await self._call(lambda database: work(database[collection]))

    async def write(self, collection: str, writes: Sequence[Any], *, ordered: bool = True) -> None:
        """Writes in one call, in their order where it matters."""
        if writes:
            await self.run(collection, lambda these: these.bulk_write(writes, ordered=ordered))

    async def change(self, collection: str, name: str, stages: Stages, fields: Sequence[str] = ()) -> Document:
        """Change one document, which is made where it is missing, in one step; what it is then, or these fields of it.

        Of two who make it at once, the later one changes what the other has made, for which it has to ask again.
        """
        projection = dict.fromkeys(fields, 1) or None

        async def attempt(these: Any) -> Document | None:
            with suppress(mongo_errors.DuplicateKeyError):
                found: Document | None = await these.find_one_and_update(
                    {"_id": name}, stages, projection, upsert=True, return_document=ReturnDocument.AFTER
                )
                return found
            return None

        for _ in range(_MAKERS):
            found: Document | None = await self.run(collection, attempt)
            if found is not None:
                return found
        raise Unavailable(f"MongoDB at {self.address}: {name} in {collection} is made and deleted again and again")

    async def update(self, collection: str, ids: Sequence[str], filter: Filter, update: Mapping[str, Any]) -> None:
        """Update those of these documents, which may be very many, that the filter finds."""
        for some in portions(ids, MANY):
            found = {"_id": {"$in": some}, **filter}
            await self.run(collection, partial(_update_many, filter=found, update=update))

    async def delete(self, collection: str, filter: Filter) -> None:
        """Delete all that are found."""
        await self.run(collection, lambda these: these.delete_many(filter))

    async def find(self, collection: str, filter: Filter, fields: Sequence[str] = ()) -> list[Document]:
        """Documents, in no order; with these fields only where some are named."""
        projection = dict.fromkeys(fields, 1) or None
        return await self._listed(collection, lambda these: these.find(filter, projection))

    async def aggregate(self, collection: str, stages: Stages) -> list[Document]:
        """What comes out of a pipeline."""
        return await self._listed(collection, lambda these: these.aggregate(list(stages)))

    async def index(self, collection: str, models: Sequence[Any]) -> None:
        """Make indexes that are not there."""
        await self.run(collection, lambda these: these.create_indexes(models))

    async def indexes(self, collection: str) -> list[Document]:
        """The indexes of a collection; none where there is no such collection."""
        return await self._listed(collection, lambda these: these.list_indexes())

    async def changes(self, collection: str, stages: Stages, patience: float) -> AsyncGenerator[Document | None, None]:
        """Changes of a collection, from now on; None first, as soon as none is missed any more, and whenever there was
        none for ``patience`` seconds.

        Raises as ``run`` does; ``NotTold`` where the server tells of no changes.
        """
        if self._database is None:
            raise Unavailable(f"MongoDB at {self.address} is not open")
        stream: Any = None
        try:
            stream = self._database[collection].watch(list(stages), max_await_time_ms=round(patience * 1000))
            if isawaitable(stream):
                stream = await stream
                yield None
            while True:  # Motor asks the server only now
                yield await stream.try_next()
                if not stream.alive:
                    raise Unavailable(f"MongoDB at {self.address} tells of no more changes of {collection}")
        except _TROUBLES as exc:
            if isinstance(exc, mongo_errors.OperationFailure) and exc.code in NO_CHANGE_STREAMS:
                raise NotTold(str(self.meaning(exc))) from exc
            raise self.meaning(exc) from exc
        finally:
            if stream is not None and not isawaitable(stream):
                with suppress(*_TROUBLES), pymongo.timeout(FAREWELL):  # the server forgets it by itself
                    await stream.close()

    def meaning(self, error: Exception) -> AsyncQueueError:
        """What an error of the library is to us. No text has a password in it: the library knows none in its own."""
        text = f"MongoDB at {self.address}: {redact_url(_short(error))}"
        match error:
            case mongo_errors.BulkWriteError():
                return self._meaning_of_many(error)
            case mongo_errors.DocumentTooLarge():
                return EntryTooLarge(f"{text}; the limit is {MAX_DOCUMENT} bytes")
            case mongo_errors.OperationFailure():
                return self._meaning_of_code(error.code or 0, _labels(error), text)
            case mongo_errors.ServerSelectionTimeoutError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
                return Refused(text)
            case mongo_errors.ConnectionFailure() | OSError():
                return Unavailable(text)
            case mongo_errors.InvalidOperation():
                return Unavailable(f"{text} (is the client closed?)")
            case mongo_errors.ConfigurationError() if _is_passing(error):
                return Unavailable(text)
            case mongo_errors.ConfigurationError() | mongo_errors.InvalidName():
                return ConfigError(text)
            case RuntimeError():  # of asyncio, and of the clients, when they meet another loop than their own
                return ConfigError(f"{text} (a client belongs to the event loop that it was first used in)")
            case _:
                return Refused(text)

    def _meaning_of_many(self, error: mongo_errors.BulkWriteError) -> AsyncQueueError:
        details: Mapping[str, Any] = error.details
        troubles = [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ())]
        if not troubles:
            return Unavailable(f"MongoDB at {self.address}: {_short(error)}")
        first = troubles[0]
        text = f"MongoDB at {self.address}: {str(first.get('errmsg', ''))[:_LONGEST]}"
        if not details.get("writeErrors"):
            return Unavailable(text)  # written, and not yet by as many as must have it
        return self._meaning_of_code(first.get("code", 0), (), text)

    def _meaning_of_code(self, code: int, labels: Sequence[str], text: str) -> AsyncQueueError:
        if code in _TOO_LARGE:
            return EntryTooLarge(f"{text}; the limit is {MAX_DOCUMENT} bytes")
        if code in _PASSING or "RetryableWriteError" in labels:
            return Unavailable(text)
        if code in _STRANGERS:
            text += " (user, password or authSource is wrong)"
        return Refused(text)

    async def _call(self, work: Callable[[Any], Any]) -> Any:
        database = self._database
        if database is None:
            raise Unavailable(f"MongoDB at {self.address} is not open")
        try:
            async with asyncio.timeout(self._reply_timeout):
                return await _awaited(work(database))
        except TimeoutError as exc:
            raise Unavailable(f"MongoDB at {self.address}: no answer within {self._reply_timeout:g} s") from exc
        except _TROUBLES as exc:
            raise self.meaning(exc) from exc

    async def _listed(self, collection: str, work: Callable[[Any], Any]) -> list[Document]:
        async def all_of(these: Any) -> list[Document]:
            cursor = await _awaited(work(these))
            found: list[Document] = await cursor.to_list(None)
            return found

        found: list[Document] = await self.run(collection, all_of)
        return found

    def _made(self) -> Any:
        options: dict[str, Any] = {
            "serverselectiontimeoutms": round(SELECTION_TIMEOUT * 1000),
            "connecttimeoutms": round(SELECTION_TIMEOUT * 1000),
            "appname": "asyncqueue",
        }
        mine = {name: value for name, value in options.items() if name not in self.address.options}
        try:
            client: AsyncMongoClient[Any] = AsyncMongoClient(self.address.url, **mine)
        except (mongo_errors.PyMongoError, ValueError, OSError) as exc:  # a file that it names, too
            raise ConfigError(f"MongoDB at {self.address}: {exc}") from exc
        return client


class NotTold(Refused):
    """This server tells of no changes, or not to this user."""


async def _update_many(these: Any, filter: Filter, update: Mapping[str, Any]) -> None:
    await these.update_many(filter, update)


async def _awaited(thing: Any) -> Any:
    """What PyMongo's client returns where Motor's returns it without a wait."""
    return await thing if isawaitable(thing) else thing


def _require_client(client: Any) -> None:
    if isinstance(client, AsyncMongoClient) or type(client).__module__.startswith("motor."):
        return
    kind = f"{type(client).__module__}.{type(client).__name__}"
    raise ConfigError(f"client: a {kind}; expected pymongo.AsyncMongoClient or motor.motor_asyncio.AsyncIOMotorClient")


def _is_passing(error: Exception) -> bool:
    """Whether no name server answered for the name of a ``mongodb+srv://`` URL; one that says no is another matter."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DNSException):
        cause = cause.__cause__
    return cause is not None and not isinstance(cause, NXDOMAIN | NoAnswer)


def _short(error: Exception) -> str:
    """What an error says, without the topology and the reply that the library adds."""
    text = str(error)
    for addition in (", full error:", " (configured timeouts:", ", Timeout: "):
        text = text.partition(addition)[0]
    return text[:_LONGEST]


def _labels(error: mongo_errors.OperationFailure) -> Sequence[str]:
    labels: Sequence[str] = (error.details or {}).get("errorLabels", ())
    return labels


_TROUBLES = (mongo_errors.PyMongoError, BSONError, OSError, RuntimeError)
_LONGEST = 500
_MAKERS = 5
_TOO_LARGE = frozenset({10334, 17419, 17420, 17260, 17261, 17262})
_STRANGERS = frozenset({11, 18, 8000})
_PASSING = frozenset(
    {
        6,  # HostUnreachable
        7,  # HostNotFound
        24,  # LockTimeout
        43,  # CursorNotFound: what is read in several parts meets another server
        50,  # MaxTimeMSExpired
        63,  # StaleShardVersion
        64,  # WriteConcernFailed
        89,  # NetworkTimeout
        91,  # ShutdownInProgress
        94,  # NotYetInitialized
        100,  # UnsatisfiableWriteConcern
        112,  # WriteConflict
        117,  # ConflictingOperationInProgress
        133,  # FailedToSatisfyReadPreference
        134,  # ReadConcernMajorityNotAvailableYet
        150,  # StaleEpoch
        175,  # QueryPlanKilled
        189,  # PrimarySteppedDown
        234,  # RetryChangeStream
        237,  # CursorKilled
        262,  # ExceededTimeLimit
        286,  # ChangeStreamHistoryLost
        280,  # ChangeStreamFatalError
        365,  # TemporarilyUnavailable
        391,  # ReauthenticationRequired
        462,  # IngressRequestRateLimitExceeded
        9001,  # SocketException
        10058,
        10107,  # NotWritablePrimary
        11000,  # DuplicateKey: two made one entry at once, which the server mostly settles by itself
        11600,  # InterruptedAtShutdown
        11601,  # Interrupted
        11602,  # InterruptedDueToReplStateChange
        13388,  # StaleConfig
        13435,  # NotPrimaryNoSecondaryOk
        13436,  # NotPrimaryOrSecondary
        14031,  # OutOfDiskSpace
        16500,  # TooManyRequests, of Cosmos DB
    }
)
