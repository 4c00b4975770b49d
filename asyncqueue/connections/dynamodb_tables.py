"""The tables of DynamoDB that are needed: which are missing, and making them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from asyncqueue.connections.dynamodb import Dynamo, Table
from asyncqueue.connections.dynamodb_items import EXPIRY
from asyncqueue.connections.refusals import Missing, SaidNo
from asyncqueue.connections.sending import all_of
from asyncqueue.errors import Refused, Unavailable

MADE_WITHIN = 180.0
"""How long (seconds) a new table may take until it can be used."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_BEING_MADE = "ResourceInUseException"


class OnTables:
    """A backend or lock in tables of DynamoDB: ``Migrating``, which waits until they can be used, and somewhere."""

    def __init__(self, url: str, *tables: Table, connect_timeout: float, reply_timeout: float, client: Any) -> None:
        self._dynamo = Dynamo(url, connect_timeout=connect_timeout, reply_timeout=reply_timeout, client=client)
        self._tables = tables

    @property
    def address(self) -> str:
        return self._dynamo.address

    async def missing(self) -> Sequence[str]:
        return await self._lacking(make=False)

    async def migrate(self) -> Sequence[str]:
        return await self._lacking(make=True)

    async def _lacking(self, *, make: bool) -> Sequence[str]:
        link = self._dynamo.twin()  # which need not be open, and is not closed under anybody's hands
        try:
            found = await all_of(_of(link, table, make=make) for table in self._tables)
        finally:
            await link.close()
        return [line for line in found if line]


async def _of(dynamo: Dynamo, table: Table, *, make: bool) -> str:
    """What a table lacks, or empty."""
    if not await _is_there(dynamo, table):
        if make:
            await _create(dynamo, table)
            await _expire(dynamo, table)
        return f"table {table.name}, key {table.key}, whose items expire by their {EXPIRY}"
    if not await _expires(dynamo, table):
        if make:
            await _until_active(dynamo, table)
            await _expire(dynamo, table)
        return f"expiry of the items of table {table.name} by their {EXPIRY}"
    return ""


async def _is_there(dynamo: Dynamo, table: Table) -> bool:
    """Raises ``Refused`` where there is another table of that name."""
    try:
        reply = await dynamo.call("describe_table", table, TableName=table.name)
    except Missing:
        return False
    types = {each["AttributeName"]: each["AttributeType"] for each in reply["Table"]["AttributeDefinitions"]}
    key = [(each["AttributeName"], types.get(each["AttributeName"])) for each in reply["Table"]["KeySchema"]]
    if key != [(table.key, "S")]:
        shown = ", ".join(f"{name} ({kind})" for name, kind in key)
        raise Refused(f"{dynamo.address}: table {table.name!r} has the key {shown}; expected {table.key} (S)")
    return True


async def _expires(dynamo: Dynamo, table: Table) -> bool:
    """Raises ``Refused`` where its items expire by another attribute."""
    try:
        reply = await dynamo.call("describe_time_to_live", table, TableName=table.name)
    except Missing:  # it is still being made
        return False
    said = reply.get("TimeToLiveDescription", {})
    if said.get("TimeToLiveStatus") not in ("ENABLED", "ENABLING"):
        return False
    if said.get("AttributeName") != EXPIRY:
        raise Refused(
            f"{dynamo.address}: the items of table {table.name!r} expire by their {said.get('AttributeName')};"
            f" expected {EXPIRY}"
        )
    return True


async def _create(dynamo: Dynamo, table: Table) -> None:
    try:
        await dynamo.call(
            "create_table",
            table,
            TableName=table.name,
            KeySchema=[{"AttributeName": table.key, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": table.key, "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
    except SaidNo as exc:
        if exc.code != _BEING_MADE:  # somebody else makes it
            raise
    await _until_active(dynamo, table)


async def _until_active(dynamo: Dynamo, table: Table) -> None:
    pause = _FIRST_PAUSE
    try:
        async with asyncio.timeout(MADE_WITHIN):
            while await _status(dynamo, table) not in ("ACTIVE", "UPDATING"):
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
    except TimeoutError:
        raise Unavailable(
            f"{dynamo.address}: table {table.name!r} could not be used {MADE_WITHIN:g} s after it was made"
        ) from None


async def _status(dynamo: Dynamo, table: Table) -> str:
    try:
        reply = await dynamo.call("describe_table", table, TableName=table.name)
    except Missing:  # a table that has just been made is not shown everywhere at once
        return ""
    return str(reply["Table"]["TableStatus"])


async def _expire(dynamo: Dynamo, table: Table) -> None:
    try:
        await dynamo.call(
            "update_time_to_live",
            table,
            TableName=table.name,
            TimeToLiveSpecification={"Enabled": True, "AttributeName": EXPIRY},
        )
    except SaidNo:
        if not await _expires(dynamo, table):  # else somebody else was faster
            raise
