"""How to reach Google Pub/Sub: URL, emulator, credentials, clients, and what its errors mean.

The one place that connects. Nothing here retries: who calls knows whether that is safe.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import google.auth
from google.api_core.exceptions import GoogleAPICallError, from_grpc_error
from google.api_core.gapic_v1.routing_header import to_grpc_metadata
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.pubsub_v1 import types
from google.pubsub_v1.services.publisher.async_client import PublisherAsyncClient
from google.pubsub_v1.services.publisher.transports.grpc_asyncio import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.async_client import SubscriberAsyncClient
from google.pubsub_v1.services.subscriber.transports.grpc_asyncio import SubscriberGrpcAsyncIOTransport
from grpc import RpcError, StatusCode
from grpc.aio import Channel, UsageError, insecure_channel

from asyncqueue.connections.refusals import Missing, SaidNo
from asyncqueue.errors import AsyncQueueError, ConfigError, Refused, Unavailable
from asyncqueue.redact import redact_url

REPLY_TIMEOUT = 5.0
"""How long (seconds) a reply may take, connecting included, beyond what a call is told to wait."""

MAX_ACK_IDS = 1_000
"""The most ack ids in one request."""

MAX_ACK_BYTES = 400_000
"""The most bytes of ack ids in one request: the service takes 524,288 with all that is around them."""

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------- where


@dataclass(frozen=True, slots=True)
class PubSubAddress:
    """A project and the subscription of its default queue; ``emulator`` is ``host:port``, or empty for Google."""

    project: str
    subscription: str
    emulator: str = ""

    def __str__(self) -> str:
        return f"{self.emulator or _HOST}/{self.project}/{self.subscription}"


_HOST = "pubsub.googleapis.com"
_FORM = "gcppubsub://PROJECT/SUBSCRIPTION[?emulator=host:port]"
_PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z0-9][a-z0-9-]*")
_NAME = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}")


def parse_url(url: str, *, emulator: str = "") -> PubSubAddress:
    """The address in a URL such as ``gcppubsub://my-project/my-subscription``; ``emulator`` is the one to use where
    the URL names none. Raises ``ConfigError``."""
    try:
        parts = urlsplit(url)
        if parts.scheme != "gcppubsub":
            raise ValueError("it is no gcppubsub:// URL")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        emulator = options.pop("emulator", "") or emulator
        if options:
            raise ValueError(f"unknown option {min(options)!r}")
        subscription = parts.path.strip("/")
        if not _PROJECT.fullmatch(parts.netloc):
            raise ValueError(f"{redact_url(parts.netloc)!r} is no project id")
        if not _NAME.fullmatch(subscription):
            raise ValueError(f"{subscription!r} is no name of a subscription")
        return PubSubAddress(parts.netloc, subscription, emulator)
    except ValueError as exc:
        raise ConfigError(f"{redact_url(url)!r}: {exc}; expected {_FORM}") from None


def is_name(text: str) -> bool:
    """Whether a topic or subscription may have this name."""
    return _NAME.fullmatch(text) is not None


# ---------------------------------------------------------------------------------------------------- messages


@dataclass(frozen=True, slots=True)
class Post:
    """A message on its way to a topic."""

    body: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    ordering_key: str = ""

    @property
    def size(self) -> int:
        """About how many bytes it takes in a request, rather more than less."""
        named = sum(len(name) + len(text.encode()) + 12 for name, text in self.attributes.items())
        return len(self.body) + named + len(self.ordering_key) + 24


@dataclass(frozen=True, slots=True)
class Received:
    """One showing of a message. ``shown`` is the service's own count of showings, 0 where it keeps none;
    ``published_at`` is unix seconds."""

    ack_id: str
    message_id: str
    body: bytes
    attributes: Mapping[str, str]
    ordering_key: str
    shown: int
    published_at: float


@dataclass(frozen=True, slots=True)
class Subscription:
    """What stands about a subscription; names without project. ``ack_deadline`` is in seconds."""

    name: str
    topic: str
    ack_deadline: int


# ---------------------------------------------------------------------------------------------------- calls


@dataclass(slots=True)
class _Clients:
    """Clients of one event loop: that in which they were made, or first used where somebody else made them."""

    publisher: PublisherAsyncClient
    subscriber: SubscriberAsyncClient
    channel: Channel | None = None
    loop: asyncio.AbstractEventLoop | None = None


class PubSubLink:
    """Calls of Pub/Sub in one project and one event loop, by one channel.

    ``publisher`` and ``subscriber`` are clients that the caller made, both in one event loop, and will close; calls
    from other loops are then made in theirs. Every call raises ``Unavailable`` (no answer, or too much at once),
    ``Missing`` and ``Refused``.
    """

    def __init__(
        self,
        address: PubSubAddress,
        *,
        reply_timeout: float = REPLY_TIMEOUT,
        publisher: PublisherAsyncClient | None = None,
        subscriber: SubscriberAsyncClient | None = None,
    ) -> None:
        if (publisher is None) != (subscriber is None):
            raise ConfigError("of Pub/Sub clients of your own, publisher and subscriber are needed, one as the other")
        self.address = address
        self._reply_timeout = reply_timeout
        self._given = None if publisher is None or subscriber is None else _Clients(publisher, subscriber)
        self._own: _Clients | None = None
        self._making = asyncio.Lock()

    def twin(self) -> PubSubLink:
        """Another link to the same place, for another loop."""
        twin = PubSubLink(self.address, reply_timeout=self._reply_timeout)
        twin._given = self._given
        return twin

    async def close(self) -> None:
        """Let go of the connection; a later call makes a new one."""
        async with self._making:
            own, self._own = self._own, None
            if own is not None and own.channel is not None:
                await own.channel.close()

    async def publish(self, topic: str, posts: Sequence[Post]) -> None:
        """Publish all of these, or none."""
        messages = [
            types.PubsubMessage(data=post.body, attributes=dict(post.attributes), ordering_key=post.ordering_key)
            for post in posts
        ]
        request = types.PublishRequest(topic=self._topic(topic), messages=messages)
        await self._call(f"publish to {topic}", lambda use: use.publisher.publish(request, **self._once()))

    async def pull(self, subscription: str, limit: int, *, wait: float) -> Sequence[Received]:
        """Up to ``limit`` messages, waiting up to ``wait`` seconds for the first, or as long as the service likes to;
        0: what there is at hand."""
        request = types.PullRequest(
            subscription=self._subscription(subscription), max_messages=limit, return_immediately=wait <= 0
        )
        pull = _pull_at_once if wait <= 0 else _pull
        what = f"pull from {subscription}"
        try:
            reply = await self._call(what, lambda use: pull(use, request, self._once(wait if wait > 0 else None)))
        except _Late:
            if wait <= 0:
                raise
            return ()
        return [_received(each) for each in types.PullResponse.pb(reply).received_messages]

    async def acknowledge(self, subscription: str, ack_ids: Sequence[str]) -> set[str]:
        """These are done; returns those of which the service says that they were not ours any more."""
        return await self._of_acks(
            f"acknowledge in {subscription}",
            ack_ids,
            lambda some, use: use.subscriber.acknowledge(
                types.AcknowledgeRequest(subscription=self._subscription(subscription), ack_ids=some), **self._once()
            ),
        )

    async def modify_deadline(self, subscription: str, ack_ids: Sequence[str], seconds: int) -> set[str]:
        """Keep these from others for so long from now on (0 to 600); returns as ``acknowledge`` does."""
        return await self._of_acks(
            f"modify deadlines in {subscription}",
            ack_ids,
            lambda some, use: use.subscriber.modify_ack_deadline(
                types.ModifyAckDeadlineRequest(
                    subscription=self._subscription(subscription), ack_ids=some, ack_deadline_seconds=seconds
                ),
                **self._once(),
            ),
        )

    async def subscription(self, name: str) -> Subscription:
        """What stands about a subscription."""
        request = types.GetSubscriptionRequest(subscription=self._subscription(name))
        return _described(
            await self._call(
                f"look at subscription {name}", lambda use: use.subscriber.get_subscription(request, **self._once())
            )
        )

    async def subscriptions(self) -> Sequence[Subscription]:
        """All subscriptions of the project."""
        request = types.ListSubscriptionsRequest(project=f"projects/{self.address.project}", page_size=1_000)
        found: list[Subscription] = []

        async def listed(use: _Clients) -> None:
            pages = await use.subscriber.list_subscriptions(request, **self._once())
            found.extend([_described(each) async for each in pages])

        await self._call("list subscriptions", listed)
        return found

    async def create_topic(self, name: str) -> None:
        """Make a topic; one that is there already is left as it is."""
        request = types.Topic(name=self._topic(name))
        try:
            await self._call(f"create topic {name}", lambda use: use.publisher.create_topic(request, **self._once()))
        except SaidNo as exc:
            if exc.code != StatusCode.ALREADY_EXISTS.name:
                raise

    async def create_subscription(self, wanted: Subscription, *, dead_letter: str = "") -> None:
        """Make a subscription that keeps order by key, and expires never; one that is there already is left as it is.

        With ``dead_letter``, a topic, the service counts showings, and moves there what it showed a hundred times.
        """
        request = types.Subscription(
            name=self._subscription(wanted.name),
            topic=self._topic(wanted.topic),
            ack_deadline_seconds=wanted.ack_deadline,
            enable_message_ordering=True,
            expiration_policy=types.ExpirationPolicy(),
        )
        if dead_letter:
            request.dead_letter_policy = types.DeadLetterPolicy(
                dead_letter_topic=self._topic(dead_letter), max_delivery_attempts=100
            )
        try:
            await self._call(
                f"create subscription {wanted.name}",
                lambda use: use.subscriber.create_subscription(request, **self._once()),
            )
        except SaidNo as exc:
            if exc.code != StatusCode.ALREADY_EXISTS.name:
                raise

    # one call

    async def _of_acks(
        self, what: str, ack_ids: Sequence[str], call: Callable[[Sequence[str], _Clients], Coroutine[Any, Any, Any]]
    ) -> set[str]:
        lost: set[str] = set()
        for some in _ack_parts(ack_ids):
            try:
                await self._call(what, partial(call, some))
            except _Unconfirmed as exc:
                lost |= exc.lost
        return lost

    def _once(self, wait: float | None = None) -> dict[str, Any]:
        return {"retry": None, "timeout": self._reply_timeout if wait is None else wait}

    async def _call(self, what: str, request: Callable[[_Clients], Coroutine[Any, Any, T]]) -> T:
        given = self._given
        if given is None:
            return await self._request(what, request)
        here = asyncio.get_running_loop()
        given.loop = given.loop or here
        if given.loop is here:
            return await self._request(what, request)
        asked = self._request(what, request)
        try:
            handed_over = asyncio.run_coroutine_threadsafe(asked, given.loop)
        except RuntimeError as exc:
            asked.close()
            raise Unavailable(f"{self.address}: the event loop of its client is closed") from exc
        return await asyncio.wrap_future(handed_over)

    async def _request(self, what: str, request: Callable[[_Clients], Coroutine[Any, Any, T]]) -> T:
        try:
            return await request(self._given or self._own or await self._clients())
        except GoogleAPICallError as exc:
            raise self._said_no(what, exc) from exc
        except UsageError as exc:
            raise self._was_closed(what) from exc
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._was_closed(what) from exc  # that cancels the calls under way, not who made them

    async def _clients(self) -> _Clients:
        async with self._making:
            if self._own is None:
                channel = await self._channel()
                self._own = _Clients(
                    PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel)),
                    SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel)),
                    channel,
                )
            return self._own

    async def _channel(self) -> Channel:
        if self.address.emulator:
            return insecure_channel(self.address.emulator, options=_OPTIONS)
        try:
            # in a thread: it reads files, and may ask the machine it runs on
            credentials, _ = await asyncio.to_thread(google.auth.default, scopes=_SCOPES)
        except DefaultCredentialsError as exc:
            raise Refused(f"{self.address}: there are no credentials: {exc}") from exc
        except TransportError as exc:
            raise Unavailable(f"{self.address}: the credentials could not be had: {exc}") from exc
        except (GoogleAuthError, OSError) as exc:
            raise Refused(f"{self.address}: the credentials cannot be used: {exc}") from exc
        made: Channel = SubscriberGrpcAsyncIOTransport.create_channel(
            f"{_HOST}:443", credentials=credentials, options=_OPTIONS
        )
        return made

    def _was_closed(self, what: str) -> Unavailable:
        return Unavailable(f"{self.address}: {what}: the connection was closed")

    def _said_no(self, what: str, error: GoogleAPICallError) -> AsyncQueueError:
        code = error.grpc_status_code
        name = code.name if isinstance(code, StatusCode) else str(error.code)
        text = f"{self.address}: {what}: {name}: {error.message}"
        unconfirmed = _unconfirmed(error)
        if any(reason.startswith(_NOT_YET) for reason in unconfirmed.values()):
            return Unavailable(text)  # whatever the code: the next time some of these may be confirmed
        if unconfirmed:
            return _Unconfirmed(text, set(unconfirmed))
        match code:
            case StatusCode.NOT_FOUND:
                return Missing(text, name)
            case StatusCode.DEADLINE_EXCEEDED:
                return _Late(f"{self.address}: {what}: no answer within {self._reply_timeout:g} s")
            case StatusCode.UNAVAILABLE if "invalid_grant" in text or "invalid_client" in text:
                return SaidNo(f"{text} (the credentials are wrong, or were revoked)", name)
            case StatusCode.UNAUTHENTICATED:
                return SaidNo(f"{text} (the credentials are wrong, or have expired)", name)
            case StatusCode.PERMISSION_DENIED:
                return SaidNo(
                    f"{text} (the account may not do this, or there is no project {self.address.project!r})", name
                )
            case code if code in _AWAY:
                return Unavailable(text)
            case _:
                return SaidNo(text, name)

    def _topic(self, name: str) -> str:
        return f"projects/{self.address.project}/topics/{name}"

    def _subscription(self, name: str) -> str:
        return f"projects/{self.address.project}/subscriptions/{name}"


_AWAY = frozenset(
    {
        StatusCode.ABORTED,
        StatusCode.CANCELLED,
        StatusCode.INTERNAL,
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.UNAVAILABLE,
        StatusCode.UNKNOWN,
    }
)
_SCOPES = ("https://www.googleapis.com/auth/pubsub",)
_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    # left alone, it would wait two minutes before it tries a service again that was away for some time
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # not a pause, as its name says, but how long connecting may take
    ("grpc.min_reconnect_backoff_ms", int(REPLY_TIMEOUT * 1_000)),
)
_GONE = "PERMANENT_FAILURE"
_NOT_YET = "TRANSIENT_FAILURE"


class _Late(Unavailable):
    """No answer within the time that the call had."""


class _Unconfirmed(Unavailable):
    """An exactly-once subscription did not confirm all: ``lost`` are the ack ids that are not ours any more."""

    def __init__(self, message: str, lost: set[str]) -> None:
        super().__init__(message)
        self.lost = lost


async def _pull(use: _Clients, request: types.PullRequest, once: Mapping[str, Any]) -> types.PullResponse:
    return await use.subscriber.pull(request, **once)


async def _pull_at_once(use: _Clients, request: types.PullRequest, once: Mapping[str, Any]) -> types.PullResponse:
    """Past the client's own method, which warns that this is discouraged: it is, but for a short look."""
    stub: Any = use.subscriber.transport.pull
    route = to_grpc_metadata({"subscription": request.subscription})  # type: ignore[no-untyped-call]  # the library's
    try:
        reply: types.PullResponse = await stub(request, timeout=once["timeout"], metadata=(route,))
    except RpcError as exc:
        raise from_grpc_error(exc) from exc  # type: ignore[no-untyped-call]  # the library's
    return reply


def _unconfirmed(error: GoogleAPICallError) -> Mapping[str, str]:
    """The ack ids that an error is about, each with the reason why it was not confirmed."""
    said: Mapping[str, str] = error.metadata or {}
    return {ack_id: reason for ack_id, reason in said.items() if reason.startswith((_GONE, _NOT_YET))}


def _ack_parts(ack_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Parts that one request can carry."""
    part: list[str] = []
    size = 0
    for ack_id in ack_ids:
        if part and (len(part) == MAX_ACK_IDS or size + len(ack_id) > MAX_ACK_BYTES):
            yield part
            part, size = [], 0
        part.append(ack_id)
        size += len(ack_id) + 4
    if part:
        yield part


def _received(shown: Any) -> Received:
    message = shown.message
    return Received(
        ack_id=shown.ack_id,
        message_id=message.message_id,
        body=message.data,
        attributes=dict(message.attributes),
        ordering_key=message.ordering_key,
        shown=shown.delivery_attempt,
        published_at=message.publish_time.seconds + message.publish_time.nanos / 1e9,
    )


def _described(found: types.Subscription) -> Subscription:
    return Subscription(found.name.rpartition("/")[2], found.topic.rpartition("/")[2], found.ack_deadline_seconds)
