"""Who is left of a group: beside its entry lies a tally, from which members are struck off.

A write costs as much as its item is big, and the entry of a group is big. So a tally holds the UUIDs of those that are
not known to have ended, of a small group; of a big one it holds marks of shards, items that hold some of them each. A
member's shard follows from its UUID. A shard's mark is struck off when nobody is left there.

Nobody says so when another program's worker has run a member. So whoever counts looks at some of those that are left,
and strikes off who has ended: each look finds one that has not, and ends, or finds one that nobody looks at again.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

from asyncqueue.connections.dynamodb import TRIES, Change, Dynamo, Table, change, is_free, too_many_tries
from asyncqueue.connections.dynamodb_items import (
    EXPIRY,
    Item,
    Value,
    flag,
    flag_in,
    is_live,
    number,
    number_in,
    text,
    text_in,
    texts,
    texts_in,
)
from asyncqueue.connections.sending import all_of

UNSHARDED = 24
"""The most members of a group that lie in the tally itself."""

IN_A_SHARD = 16
"""About how many members lie in a shard: so many are one unit of writing."""

_FIRST_DRAW, _MOST_DRAWN = 2, 100
_MARK = "#"  # which no UUID of a task begins with
_THERE = "attribute_exists(#GroupUUID)"

Ended = Callable[[Iterable[str], float], Awaitable[frozenset[str]]]
"""Which of some tasks have ended, at that moment."""


@dataclass(frozen=True, slots=True)
class Tally:
    """A tally as it was read. ``left`` are UUIDs, and marks of shards. ``series`` tells its shards from those of
    another tally of that group."""

    group_id: str
    left: frozenset[str]
    shards: int
    series: str
    is_sent: bool

    def key_of(self, mark: str) -> str:
        """The key of a shard."""
        return f"{key_of(self.group_id)}:{self.series}:{mark.removeprefix(_MARK)}"


class Tallies:
    """The tallies of groups, in the table of groups."""

    def __init__(self, dynamo: Dynamo, table: Table, ended: Ended) -> None:
        self._dynamo = dynamo
        self._table = table
        self._ended = ended

    async def of(self, group_id: str, now: float) -> Tally | None:
        """The tally of a group; None where none was made yet."""
        found = await self._dynamo.look(self._table, key_of(group_id))
        return _tally_of(group_id, found) if found is not None and is_live(found, now) else None

    async def strike(self, tally: Tally, task_ids: Sequence[str], now: float) -> bool | None:
        """Strike these off; whether anybody is left that has not ended. None: a part of the tally is gone."""
        try:
            own = {task_id for task_id in task_ids if task_id in tally.left}
            sharded: dict[str, list[str]] = {}
            for task_id in set(task_ids) - own if tally.shards else ():
                sharded.setdefault(_mark_of(task_id, tally.shards), []).append(task_id)
            sharded = {mark: some for mark, some in sharded.items() if mark in tally.left}
            left = await self._struck(key_of(tally.group_id), own) if own else tally.left
            rests = await all_of(self._struck(tally.key_of(mark), some) for mark, some in sharded.items())
            for mark, rest in zip(sharded, rests, strict=True):
                if await self._is_anybody_left(tally, tally.key_of(mark), rest, now):
                    return True
            if sharded:
                left = await self._struck(key_of(tally.group_id), sharded)
            return await self._is_anybody_left(tally, key_of(tally.group_id), left, now)
        except _PartGone:
            return None

    def adding(self, group_id: str, task_ids: Sequence[str]) -> Change:
        """The change that has a tally wait for these too, as long as it waits for anybody."""
        values: dict[str, Value] = {":added": texts(task_ids)}
        condition = f"{_THERE} AND attribute_exists(#AqLeft) AND attribute_not_exists(#AqSent)"
        return Change(self._table, key_of(group_id), "ADD #AqLeft :added", condition, values)

    async def close(self, group_id: str) -> None:
        """What follows the group is sent: nothing need be counted any more."""
        await self._dynamo.alter(
            change(self._table, key_of(group_id), sets={"AqSent": flag(True)}, condition=_THERE, values={})
        )

    async def make(self, group_id: str, members: Sequence[str], ended: Sequence[str], until: int, now: float) -> Tally:
        """The tally of a group, of whose members these have ended; another's where somebody was faster."""
        for _ in range(TRIES):
            shards = 0 if len(members) <= UNSHARDED else -(-len(members) // IN_A_SHARD)
            tally, items = _made(group_id, set(members).difference(ended), shards, until)
            await self._dynamo.write(self._table, items)  # no tally leads to them yet
            made: Item = {
                "GroupUUID": text(key_of(group_id)),
                **_left(tally.left),
                "AqShards": number(shards),
                "AqSeries": text(tally.series),
                EXPIRY: number(until),
            }
            if await self._dynamo.put(self._table, made, *is_free(self._table, now)):
                return tally
            if (faster := await self.of(group_id, now)) is not None:
                return faster
        raise too_many_tries(f"the tally of group {group_id}")

    async def prolong(self, group_ids: Iterable[str], until: int, now: float) -> None:
        """Keep the tallies of these groups until then. A tally is never kept longer than what it leads to."""
        found = await self._dynamo.read(self._table, map(key_of, group_ids))
        tallies = [_tally_of(key.removesuffix(_SUFFIX), item) for key, item in found.items() if is_live(item, now)]
        marks = [(tally, mark) for tally in tallies for mark in tally.left if mark.startswith(_MARK)]
        await all_of(self._dynamo.prolong(self._table, tally.key_of(mark), until) for tally, mark in marks)
        await all_of(self._dynamo.prolong(self._table, key_of(tally.group_id), until) for tally in tallies)

    async def _struck(self, key: str, names: Iterable[str]) -> frozenset[str]:
        """Strike these off; who is left there."""
        struck: dict[str, Value] = {":struck": texts(names)}
        item = await self._dynamo.update(Change(self._table, key, "DELETE #AqLeft :struck", _THERE, struck))
        if item is None:
            raise _PartGone
        return texts_in(item, "AqLeft")

    async def _is_anybody_left(self, tally: Tally, key: str, left: frozenset[str], now: float) -> bool:
        draw = _FIRST_DRAW
        while left:
            drawn = random.sample(tuple(left), min(draw, len(left)))
            over = await self._over(tally, drawn, now)
            if over:
                left = await self._struck(key, over)
            if len(over) < len(drawn):
                return True
            draw = min(2 * draw, _MOST_DRAWN)
        return False

    async def _over(self, tally: Tally, drawn: Sequence[str], now: float) -> list[str]:
        """Those of the tasks that have ended, and of the shards in which nobody is left."""
        marks = [name for name in drawn if name.startswith(_MARK)]
        over = list(await self._ended([name for name in drawn if not name.startswith(_MARK)], now))
        for mark in marks:
            shard = await self._dynamo.look(self._table, tally.key_of(mark))
            if shard is None:
                raise _PartGone
            if not await self._is_anybody_left(tally, tally.key_of(mark), texts_in(shard, "AqLeft"), now):
                over.append(mark)
        return over


class _PartGone(Exception):
    """A shard, or the tally itself, is no longer there."""


_SUFFIX = ":aq"


def key_of(group_id: str) -> str:
    """The key of a group's tally."""
    return f"{group_id}{_SUFFIX}"


def _made(group_id: str, left: Iterable[str], shards: int, until: int) -> tuple[Tally, list[Item]]:
    """A new tally, and the items of its shards."""
    series = secrets.token_hex(4)
    if not shards:
        return Tally(group_id, frozenset(left), 0, series, is_sent=False), []
    names: dict[str, list[str]] = {}
    for task_id in left:
        names.setdefault(_mark_of(task_id, shards), []).append(task_id)
    tally = Tally(group_id, frozenset(names), shards, series, is_sent=False)
    items: list[Item] = [
        {"GroupUUID": text(tally.key_of(mark)), **_left(some), EXPIRY: number(until)} for mark, some in names.items()
    ]
    return tally, items


def _mark_of(task_id: str, shards: int) -> str:
    """The shard that a member lies in."""
    return f"{_MARK}{crc32(task_id.encode()) % shards}"


def _left(names: Iterable[str]) -> Item:
    some = tuple(names)
    return {"AqLeft": texts(some)} if some else {}  # a set is never empty


def _tally_of(group_id: str, item: Item) -> Tally:
    return Tally(
        group_id,
        texts_in(item, "AqLeft"),
        int(number_in(item, "AqShards")),
        text_in(item, "AqSeries"),
        flag_in(item, "AqSent"),
    )
