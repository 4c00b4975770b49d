"""Requests to DynamoDB: items of tables, one by one under a condition, or many together.

An expression names attributes as ``#Name`` and values as ``:name``: many a name of ours is a word that DynamoDB keeps
for itself. Every read is consistent.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from copy import copy
from dataclasses import dataclass
from typing import Any

from asyncqueue.connections.aws import CONNECT_TIMEOUT, REPLY_TIMEOUT, AwsLink, Reply, parse_url
from asyncqueue.connections.dynamodb_items import EXPIRY, Item, Value, size_of
from asyncqueue.connections.refusals import Missing, SaidNo
from asyncqueue.connections.sending import all_of, portions
from asyncqueue.errors import EntryTooLarge, Unavailable

READ_AT_ONCE = 100
"""The most items of one read."""

WRITTEN_AT_ONCE = 25
"""The most items of one write."""

MOST_WRITTEN = 600_000
"""The most bytes of items in one write, where there are several: DynamoDB takes more, but what is bigger keeps the loop
busy for long."""

REQUESTS_AT_ONCE = 32
"""The most requests that are under way at once."""

TRIES = 50
"""How often a change is tried anew because another came in between, which then was done: a bound for a bug."""

_NAMES = re.compile(r"#(\w+)")
_CONDITION_FAILED = "ConditionalCheckFailedException"
_CANCELLED = "TransactionCanceledException"
_CONTENDED = ("ConditionalCheckFailed", "TransactionConflict")
_THROTTLED = ("ProvisionedThroughputExceeded", "ThrottlingError")
_INVALID = "ValidationException"


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its name, and the attribute that is its key, which is text."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one item: what becomes of it, under which condition, with which values."""

    table: Table
    key: str
    update: str
    condition: str
    values: Mapping[str, Value]

    def parameters(self) -> dict[str, Any]:
        """What a request says of it."""
        said: dict[str, Any] = {
            "TableName": self.table.name,
            "Key": {self.table.key: {"S": self.key}},
            "UpdateExpression": self.update,
            "ConditionExpression": self.condition,
            "ExpressionAttributeNames": _names_in(self.update, self.condition),
        }
        return said | ({"ExpressionAttributeValues": self.values} if self.values else {})


class Dynamo:
    """Requests to one DynamoDB. ``client`` is an ``aiobotocore`` client that the caller made, and will close.

    Every verb raises ``Unavailable`` when the service did not answer or is asked too much, and ``Refused`` when it said
    no.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        client: Any = None,
    ) -> None:
        self._link = AwsLink(
            "dynamodb",
            parse_url(url, has_account=False),
            connect_timeout=connect_timeout,
            reply_timeout=reply_timeout,
            client=client,
        )
        self._slots = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._is_closed = False

    @property
    def address(self) -> str:
        """Host and port."""
        return str(self._link.address)

    @property
    def place(self) -> tuple[str, str | None, str | None]:
        """What tells it from others: where it is, the region, and whose tables we see there."""
        return self._link.address.endpoint, self._link.address.region, self._link.address.access_key

    def twin(self) -> Dynamo:
        """Another one, to the same place."""
        twin = copy(self)
        twin._link = self._link.twin()
        twin._slots = asyncio.Semaphore(REQUESTS_AT_ONCE)
        twin._is_closed = False
        return twin

    async def open(self, tables: Iterable[Table]) -> None:
        """Reach it, and see that these tables are there."""
        self._is_closed = False
        async with AsyncExitStack() as on_error:
            on_error.push_async_callback(self._link.close)
            await all_of(self.look(table, "aq") for table in tables)
            on_error.pop_all()

    async def close(self) -> None:
        """Let go of the connections; what is under way ends with ``Unavailable``."""
        self._is_closed = True
        await self._link.close()

    async def call(self, operation: str, table: Table, **parameters: Any) -> Reply:
        """One request that is about a table."""
        try:
            async with self._slots:
                if self._is_closed:  # the link would connect anew, and nobody would close that
                    raise Unavailable(f"DynamoDB at {self.address} was closed")
                reply = await self._link.call(operation, **parameters)
        except Missing as exc:
            region = self._link.address.region or "of the environment"
            text = f"there is no table {table.name!r} at {self.address}, region {region}: `asyncqueue migrate` makes it"
            raise Missing(text, exc.code) from exc
        except SaidNo as exc:
            if exc.code == _INVALID and "size" in str(exc) and "exceeded" in str(exc):
                raise EntryTooLarge(f"table {table.name!r}: {exc}") from exc
            raise SaidNo(f"table {table.name!r}: {exc}", exc.code) from exc
        self._require_own(operation, reply)
        return reply

    # one item

    async def look(self, table: Table, key: str) -> Item | None:
        """An item, expired or not; None where there is none."""
        reply = await self.call(
            "get_item", table, TableName=table.name, Key={table.key: {"S": key}}, ConsistentRead=True
        )
        found: Item | None = reply.get("Item")
        return found

    async def put(self, table: Table, item: Item, condition: str, values: Mapping[str, Value]) -> bool:
        """Write an item in place of what is there, under a condition on that; whether it held."""
        said: dict[str, Any] = {"ExpressionAttributeValues": values} if values else {}
        try:
            await self.call(
                "put_item",
                table,
                TableName=table.name,
                Item=item,
                ConditionExpression=condition,
                ExpressionAttributeNames=_names_in(condition),
                **said,
            )
        except SaidNo as exc:
            return _held(exc, _CONDITION_FAILED)
        return True

    async def update(self, change: Change) -> Item | None:
        """Change an item; it as it is then, or None where the condition did not hold."""
        try:
            reply = await self.call("update_item", change.table, **change.parameters(), ReturnValues="ALL_NEW")
        except SaidNo as exc:
            _held(exc, _CONDITION_FAILED)
            return None
        found: Item = reply["Attributes"]
        return found

    async def alter(self, change: Change) -> bool:
        """Change an item; whether the condition held."""
        try:
            await self.call("update_item", change.table, **change.parameters())
        except SaidNo as exc:
            return _held(exc, _CONDITION_FAILED)
        return True

    async def prolong(self, table: Table, key: str, until: int) -> None:
        """Keep an item at least until then, if it is there and expires at all."""
        values: dict[str, Value] = {":zero": {"N": "0"}, ":until": {"N": str(until)}}
        condition = f"#{EXPIRY} > :zero AND #{EXPIRY} < :until"
        await self.alter(Change(table, key, f"SET #{EXPIRY} = :until", condition, values))

    async def alter_all(self, *changes: Change) -> bool:
        """Make all of these changes, or none; whether all conditions held, and nobody was changing these items."""
        items = [{"Update": change.parameters()} for change in changes]
        try:
            await self.call("transact_write_items", changes[0].table, TransactItems=items)
        except SaidNo as exc:
            if exc.code == _CANCELLED and any(reason in str(exc) for reason in _THROTTLED):
                raise Unavailable(str(exc)) from exc
            if not any(reason in str(exc) for reason in _CONTENDED):
                raise
            return _held(exc, _CANCELLED)
        return True

    async def delete(self, table: Table, key: str, condition: str, values: Mapping[str, Value]) -> bool:
        """Drop an item under a condition; whether it held."""
        try:
            await self.call(
                "delete_item",
                table,
                TableName=table.name,
                Key={table.key: {"S": key}},
                ConditionExpression=condition,
                ExpressionAttributeNames=_names_in(condition),
                ExpressionAttributeValues=values,
            )
        except SaidNo as exc:
            return _held(exc, _CONDITION_FAILED)
        return True

    # many items

    async def read(self, table: Table, keys: Iterable[str], *attributes: str) -> dict[str, Item]:
        """Those items that are there, expired or not, by their keys; only these attributes of them, where any are
        named, and the key."""
        parts = list(portions(list(dict.fromkeys(keys)), READ_AT_ONCE))
        found: dict[str, Item] = {}
        for items in await all_of(self._read(table, part, attributes) for part in parts):
            found.update(items)
        return found

    async def write(self, table: Table, items: Iterable[Item]) -> None:
        """Write items in place of whatever is there; of those with one key, the last."""
        last = {item[table.key]["S"]: item for item in items}
        parts = _parts_by_size(list(last.values()))
        await all_of(self._write(table, [{"PutRequest": {"Item": item}} for item in part]) for part in parts)

    async def drop(self, table: Table, keys: Iterable[str]) -> None:
        """Delete items, and be content where there are none."""
        requests = [{"DeleteRequest": {"Key": {table.key: {"S": key}}}} for key in dict.fromkeys(keys)]
        await all_of(self._write(table, part) for part in portions(requests, WRITTEN_AT_ONCE))

    async def _read(self, table: Table, keys: Sequence[str], attributes: Sequence[str]) -> dict[str, Item]:
        how: dict[str, Any] = {"ConsistentRead": True}
        if attributes:
            how["ProjectionExpression"] = ", ".join(f"#{name}" for name in (table.key, *attributes))
            how["ExpressionAttributeNames"] = _names_in(how["ProjectionExpression"])
        found: dict[str, Item] = {}
        left: Sequence[Any] = [{table.key: {"S": key}} for key in keys]
        while left:
            asked = {table.name: {**how, "Keys": left}}
            reply = await self.call("batch_get_item", table, RequestItems=asked)
            found.update((item[table.key]["S"], item) for item in reply.get("Responses", {}).get(table.name, ()))
            unprocessed = reply.get("UnprocessedKeys", {}).get(table.name, {}).get("Keys", ())
            left = self._fewer(unprocessed, left, table)
        return found

    async def _write(self, table: Table, requests: Sequence[Any]) -> None:
        left = requests
        while left:
            reply = await self.call("batch_write_item", table, RequestItems={table.name: left})
            left = self._fewer(reply.get("UnprocessedItems", {}).get(table.name, ()), left, table)

    def _require_own(self, operation: str, reply: Reply) -> None:
        """Raise ``Unavailable`` for the answer of a web server, or of a proxy: 200, and no word of an item, is what
        DynamoDB, too, says of one that was written, and of one that is not there."""
        kind = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("content-type", "")
        if "json" not in kind:
            raise Unavailable(f"{self.address}: the answer to {operation} is none of DynamoDB: its type is {kind!r}")

    def _fewer(self, unprocessed: Sequence[Any], asked: Sequence[Any], table: Table) -> Sequence[Any]:
        """What is to be asked for again: as long as some of it is done each time."""
        if unprocessed and len(unprocessed) >= len(asked):
            raise Unavailable(f"{self.address}: table {table.name!r} is asked too much: nothing of a batch was done")
        return unprocessed


def change(
    table: Table,
    key: str,
    *,
    sets: Mapping[str, Value] | None = None,
    removes: Iterable[str] = (),
    condition: str,
    values: Mapping[str, Value],
) -> Change:
    """A change that sets attributes, and removes others."""
    update, new = _assignments(sets or {}, tuple(removes))
    return Change(table, key, update, condition, {**values, **new})


def as_seen(item: Item | None, *names: str) -> tuple[str, dict[str, Value]]:
    """The condition that these attributes are still as they were seen, and its values."""
    seen = item or {}
    said = [f"#{name} = :seen_{name}" if name in seen else f"attribute_not_exists(#{name})" for name in names]
    return " AND ".join(said), {f":seen_{name}": seen[name] for name in names if name in seen}


def is_free(table: Table, now: float) -> tuple[str, dict[str, Value]]:
    """The condition that there is no item, or one that has expired, and its values."""
    values: dict[str, Value] = {":zero": {"N": "0"}, ":now": {"N": str(int(now))}}
    return f"attribute_not_exists(#{table.key}) OR (#{EXPIRY} > :zero AND #{EXPIRY} <= :now)", values


def too_many_tries(what: str) -> Unavailable:
    """The error for what others have changed each time it was about to be."""
    return Unavailable(f"{what}: others have changed it {TRIES} times while it was about to be")


def _assignments(sets: Mapping[str, Value], removes: Sequence[str]) -> tuple[str, dict[str, Value]]:
    parts = []
    if sets:
        parts.append(f"SET {', '.join(f'#{name} = :new_{name}' for name in sets)}")
    if removes:
        parts.append(f"REMOVE {', '.join(f'#{name}' for name in removes)}")
    return " ".join(parts), {f":new_{name}": value for name, value in sets.items()}


def _names_in(*expressions: str) -> dict[str, str]:
    return {f"#{name}": name for expression in expressions for name in _NAMES.findall(expression)}


def _held(error: SaidNo, expected: str) -> bool:
    """False: the condition did not hold. Any other error is raised."""
    if error.code != expected:
        raise error
    return False


def _parts_by_size(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    part: list[Item] = []
    size = 0
    for item in items:
        more = size_of(item)
        if part and (len(part) == WRITTEN_AT_ONCE or size + more > MOST_WRITTEN):
            yield part
            part, size = [], 0
        part.append(item)
        size += more
    if part:
        yield part
