"""How to reach a service of AWS: URL, region, credentials, clients, and what its errors mean.

The one place that connects. Nothing here retries: who calls knows whether that is safe.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aiobotocore.client import AioBaseClient
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import exceptions as aws_errors
from botocore.loaders import Loader, create_loader
from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url

from asyncqueue.connections.refusals import Missing, SaidNo
from asyncqueue.errors import AsyncQueueError, ConfigError, Refused, Unavailable
from asyncqueue.redact import redact_url

CONNECT_TIMEOUT = 5.0
"""How long (seconds) connecting may take."""

REPLY_TIMEOUT = 5.0
"""How long (seconds) a reply may take, connecting included, beyond what a call is told to wait."""

MAX_CONNECTIONS = 100
"""The most connections of a link; each call that waits for messages takes one for as long as it waits."""

Reply = Mapping[str, Any]
"""What the service answers, as its library reads it."""


# ---------------------------------------------------------------------------------------------------- where


@dataclass(frozen=True, slots=True)
class AwsAddress:
    """Where a service is, and who we are there.

    ``endpoint`` is ``scheme://host[:port]``, ``path`` what follows it, if anything does. Without ``region`` or
    ``access_key`` the library looks for them where all programs on AWS do: environment, profile, role of the machine.
    """

    endpoint: str
    path: str
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.endpoint.partition('://')[2]}/{self.path}".rstrip("/")


_REGION = re.compile(
    r"(?:[\w-]+\.)*(?:sqs|dynamodb)(?:-fips)?\.(?P<region>[a-z0-9-]+)\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)"
)
_FORM = "https://[key:secret@]{}, or another endpoint with ?region=<region>"
_SQS, _DYNAMODB = "sqs.<region>.amazonaws.com/<account>", "dynamodb.<region>.amazonaws.com"


def parse_url(url: str, *, has_account: bool = True) -> AwsAddress:
    """The address in a URL such as ``https://sqs.eu-west-1.amazonaws.com/123456789012``.

    Its host names the region, or ``?region=`` does. A login is an access key and its secret, percent-encoded.
    ``has_account``: the account is its path; else it has none, as in ``https://dynamodb.eu-west-1.amazonaws.com``.
    Raises ``ConfigError``, which never shows the secret.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is no http:// or https:// URL")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        path = parts.path.strip("/")
        if has_account and not path:
            raise ValueError("the account is missing")
        if path and not has_account:
            raise ValueError("nothing follows the host")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        endpoint = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
        if not (is_valid_endpoint_url(endpoint) or is_valid_ipv6_endpoint_url(endpoint)):
            raise ValueError(f"{parts.hostname!r} is no name of a host")
        named = _REGION.fullmatch(parts.hostname)
        region = options.pop("region", "") or (named["region"] if named else None)
        if options:
            raise ValueError(f"unknown option {min(options)!r}")
        if (parts.username is None) != (parts.password is None):
            raise ValueError("a login is a key and its secret")
        return AwsAddress(
            endpoint=endpoint,
            path=path,
            region=region,
            access_key=None if parts.username is None else unquote(parts.username),
            secret_key=None if parts.password is None else unquote(parts.password),
        )
    except ValueError as exc:
        form = _FORM.format(_SQS if has_account else _DYNAMODB)
        raise ConfigError(f"{redact_url(url)!r}: {exc}; expected {form}") from None


# ---------------------------------------------------------------------------------------------------- calls


@dataclass(slots=True)
class _Given:
    """A client that somebody else made, and the loop that it belongs to: that of its first use."""

    client: Any
    loop: asyncio.AbstractEventLoop | None = None


class AwsLink:
    """Calls of one service, in one event loop.

    ``client`` is one that the caller made, and will close; calls from other loops are then made in its own.
    """

    def __init__(
        self,
        service: str,
        address: AwsAddress,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        client: Any = None,
    ) -> None:
        if client is not None:
            _require_client(service, client)
        self.address = address
        self._service = service
        self._connect_timeout = connect_timeout
        self._reply_timeout = reply_timeout
        self._given = None if client is None else _Given(client)
        self._own: Any = None
        self._closing = AsyncExitStack()
        self._making = asyncio.Lock()

    def twin(self) -> AwsLink:
        """Another link to the same place, for another loop."""
        twin = AwsLink(
            self._service,
            self.address,
            connect_timeout=self._connect_timeout,
            reply_timeout=self._reply_timeout,
        )
        twin._given = self._given
        return twin

    async def close(self) -> None:
        """Let go of the connections; a later call makes new ones."""
        async with self._making:
            self._own = None
            await self._closing.aclose()

    async def call(self, operation: str, *, wait: float = 0.0, **parameters: Any) -> Reply:
        """One request, whose reply may take ``wait`` seconds longer than usual.

        Raises ``Unavailable`` (no answer, or throttled), ``Missing``, ``Refused`` and ``ConfigError``.
        """
        given = self._given
        if given is None:
            return await self._request(operation, wait, parameters)
        here = asyncio.get_running_loop()
        given.loop = given.loop or here
        if given.loop is here:
            return await self._request(operation, wait, parameters)
        request = self._request(operation, wait, parameters)
        return await asyncio.wrap_future(self._handed_over(request, given.loop))

    def _handed_over(self, request: Coroutine[Any, Any, Reply], loop: asyncio.AbstractEventLoop) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(request, loop)
        except RuntimeError as exc:
            request.close()
            raise Unavailable(f"{self.address}: the event loop of its client is closed") from exc

    async def _request(self, operation: str, wait: float, parameters: Mapping[str, Any]) -> Reply:
        try:
            async with asyncio.timeout(self._reply_timeout + wait):
                client = self._own or await self._client()
                reply: Reply = await getattr(client, operation)(**parameters)
                return reply
        except TimeoutError as exc:
            raise Unavailable(f"{self.address}: no answer to {operation} within {self._reply_timeout:g} s") from exc
        except aws_errors.ClientError as exc:
            raise self._said_no(operation, exc) from exc
        except aws_errors.BotoCoreError as exc:
            raise self._got_no_answer(operation, exc) from exc

    async def _client(self) -> Any:
        if self._given is not None:
            return self._given.client
        async with self._making:
            if self._own is None:
                config = AioConfig(
                    connect_timeout=self._connect_timeout,
                    read_timeout=60,  # beyond all waits; each call has its own timeout
                    max_pool_connections=MAX_CONNECTIONS,
                    retries={"total_max_attempts": 1},
                    tcp_keepalive=True,
                    parameter_validation=False,
                    user_agent="asyncqueue",  # put together anew for each request, the usual one costs a tenth of it
                    warm_up_loader_caches=True,  # in a thread: reading the service's description takes its time
                )
                session = AioSession()
                session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
                making = session.create_client(
                    self._service,
                    region_name=self.address.region,
                    endpoint_url=self.address.endpoint,
                    aws_access_key_id=self.address.access_key,
                    aws_secret_access_key=self.address.secret_key,
                    config=config,
                )
                self._own = await self._closing.enter_async_context(making)
            return self._own

    def _said_no(self, operation: str, error: aws_errors.ClientError) -> AsyncQueueError:
        said = error.response.get("Error", {})
        code = re.split(r"[.#]", str(said.get("Code", "")))[-1]  # some services put a name space before it
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        text = f"{self.address}: {operation}: {code}: {said.get('Message', '')}"
        if code in _MISSING:
            return Missing(text, code)
        if is_passing(code) or status >= 500 or status == 429:
            return Unavailable(text)
        if code in _STRANGERS:
            text += " (the access key, its secret or its session token is wrong or has expired)"
        return SaidNo(text, code)

    def _got_no_answer(self, operation: str, error: Exception) -> AsyncQueueError:
        text = f"{self.address}: {operation}: {redact_url(str(error))}"
        match error:
            case aws_errors.NoRegionError():
                return ConfigError(f"{self.address}: the region is not known: say ?region=… or set AWS_DEFAULT_REGION")
            case aws_errors.NoCredentialsError() | aws_errors.PartialCredentialsError():
                return Refused(f"{text}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role")
            case aws_errors.HTTPClientError(kwargs={"error": AttributeError()}) if self._given is not None:
                return Refused(f"{self.address}: {operation}: the client that was given is closed")
            case aws_errors.SSLError() | aws_errors.SSOError() | aws_errors.TokenRetrievalError():
                return Refused(text)
            case aws_errors.ConnectionError() | aws_errors.HTTPClientError() | aws_errors.CredentialRetrievalError():
                return Unavailable(text)
            case aws_errors.ChecksumError():  # an answer that was damaged on its way
                return Unavailable(text)
            case _:
                return ConfigError(text)


def is_passing(code: str) -> bool:
    """Whether the service says by this word that trying again may help."""
    return code in _AWAY


def _require_client(service: str, client: Any) -> None:
    """Raise ``ConfigError`` for what is no open client of the service."""
    expected = f"the client that `async with session.create_client({service!r}) as client` of aiobotocore gives"
    if not isinstance(client, AioBaseClient):
        raise ConfigError(f"client: a {type(client).__module__}.{type(client).__name__}; expected {expected}")
    if (named := client.meta.service_model.service_name) != service:
        raise ConfigError(f"client: one of {named}; expected {expected}")


@lru_cache(8)
def _loader(search_path: str | None) -> Loader:
    """What reads the descriptions of services: tens of milliseconds of work for each client, where they share none."""
    return create_loader(search_path)


_MISSING = frozenset({"QueueDoesNotExist", "NonExistentQueue", "ResourceNotFoundException"})
_AWAY = frozenset(
    {
        "InternalError",
        "InternalFailure",
        "InternalServerError",
        "KmsThrottled",
        "LimitExceededException",
        "OverLimit",
        "ProvisionedThroughputExceededException",
        "QueueDeletedRecently",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)
_STRANGERS = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
