"""Plans as items of DynamoDB, in the table of groups: one that is too big for an item lies in parts."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence

from asyncqueue.connections.dynamodb import Dynamo, Table
from asyncqueue.connections.dynamodb_items import (
    EXPIRY,
    MAX_ITEM,
    ROOM,
    Item,
    Value,
    expires_at,
    is_live,
    number,
    number_in,
    text,
    text_in,
)
from asyncqueue.connections.sending import all_of
from asyncqueue.signature import Plan
from asyncqueue.wire import decode_plan, encode_plan, ids_of_plan

MAX_PART = MAX_ITEM - 2 * ROOM
"""The most bytes of a plan that lie in one item."""


class Plans:
    """The plans of workflows."""

    def __init__(self, dynamo: Dynamo, table: Table) -> None:
        self._dynamo = dynamo
        self._table = table

    async def put(self, plans: Sequence[Plan], keep: float, now: float) -> None:
        """Write whatever was there."""
        parts: list[Item] = []
        heads: list[Item] = []
        for plan in plans:
            head, others = _items_of(plan, expires_at(keep, now, plan.not_before))
            heads.append(head)
            parts += others
        await self._dynamo.write(self._table, parts)  # first: whoever finds a head finds its parts
        await self._dynamo.write(self._table, heads)

    async def get(self, plan_ids: Iterable[str], now: float) -> dict[str, Plan]:
        """Plans by their ids, where there are any."""
        found = await self._dynamo.read(self._table, plan_ids)
        data = await self._data_of({key: item for key, item in found.items() if is_live(item, now)})
        return {plan_id: decode_plan(plan_id, each) for plan_id, each in data.items()}

    async def ids(self, heads: Mapping[str, Item]) -> set[str]:
        """UUIDs of all that is in these plans."""
        return {each for data in (await self._data_of(heads)).values() for each in ids_of_plan(data)}

    async def prolong(self, heads: Iterable[Item], until: int) -> None:
        """Keep the parts of these plans until then."""
        keys = [key for head in heads for key in _part_keys(head)]
        await all_of(self._dynamo.prolong(self._table, key, until) for key in keys)

    async def _data_of(self, heads: Mapping[str, Item]) -> dict[str, bytes]:
        """The bytes of the plans among items of the table, with their parts."""
        parts = await self._dynamo.read(self._table, (key for head in heads.values() for key in _part_keys(head)))
        found: dict[str, bytes] = {}
        for plan_id, head in heads.items():
            pieces = [head] if "AqPlan" in head else [parts[key] for key in _part_keys(head) if key in parts]
            if pieces and len(pieces) == (number_in(head, "AqParts") or 1):
                found[plan_id] = b"".join(piece["AqPlan"]["B"] for piece in pieces)
        return found


def _items_of(plan: Plan, expires: int) -> tuple[Item, list[Item]]:
    """The item of a plan, and those of its parts."""
    data = encode_plan(plan)
    head: dict[str, Value] = {"GroupUUID": text(plan.plan_id), EXPIRY: number(expires)}
    if len(data) <= MAX_PART:
        return {**head, "AqPlan": {"B": data}}, []
    pieces = [data[start : start + MAX_PART] for start in range(0, len(data), MAX_PART)]
    # parts of an older plan of that name are other items: who is reading them finds them
    head |= {"AqParts": number(len(pieces)), "AqSeries": text(secrets.token_hex(4))}
    parts: list[Item] = [
        {"GroupUUID": text(key), EXPIRY: number(expires), "AqPlan": {"B": piece}}
        for key, piece in zip(_part_keys(head), pieces, strict=True)
    ]
    return head, parts


def _part_keys(head: Item) -> list[str]:
    prefix = f"{text_in(head, 'GroupUUID')}:aq:{text_in(head, 'AqSeries')}"
    return [f"{prefix}:{index}" for index in range(int(number_in(head, "AqParts")))]
