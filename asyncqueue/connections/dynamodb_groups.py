"""Groups as items of DynamoDB: Machinery's entry, and who has claimed what follows it.

Go's workers read a group, set ``Lock``, then ``ChordTriggered``, then unset ``Lock``, each without a condition. A claim
of ours is one conditional write, which they see as triggered, and which waits while they hold the lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncqueue import rfc3339
from asyncqueue.backends.base import GroupClaim, Progress
from asyncqueue.connections.dynamodb import TRIES, Change, Dynamo, Table, as_seen, change, is_free, too_many_tries
from asyncqueue.connections.dynamodb_items import (
    EXPIRY,
    Item,
    Value,
    expires_at,
    flag,
    flag_in,
    is_live,
    list_in,
    number,
    number_in,
    require_room,
    text,
    text_in,
)
from asyncqueue.connections.dynamodb_tallies import Tallies
from asyncqueue.connections.sending import all_of
from asyncqueue.errors import BadMessage
from asyncqueue.state import GroupMeta

KEY = "GroupUUID"
"""The key of the table, as Machinery has it."""

LOCKED_FOR = 8.0
"""How long (seconds) another program's ``Lock`` is waited for: it holds it for two writes, unless it has died."""

_MEMBERS = "TaskUUIDs"
_DECIDING = (KEY, "ChordTriggered", "Lock", "AqOwner", "AqClaimedUntil", EXPIRY)
"""What a claim depends on."""


class Groups:
    """The entries of groups, and their tallies."""

    def __init__(self, dynamo: Dynamo, table: Table, tallies: Tallies) -> None:
        self._dynamo = dynamo
        self._table = table
        self._tallies = tallies

    async def open(self, groups: Sequence[GroupMeta], keep: float, now: float) -> None:
        """Write those that are not there."""
        items = [item_of(group, expires_at(keep, now, group.not_before)) for group in groups]
        for group, item in zip(groups, items, strict=True):
            require_room(f"group {group.group_uuid} of {len(group.task_uuids or ())} members", item)
        first = {item[KEY]["S"]: item for item in reversed(items)}
        await all_of(self._dynamo.put(self._table, item, *is_free(self._table, now)) for item in first.values())

    async def get(self, group_ids: Iterable[str], now: float) -> dict[str, GroupMeta]:
        """Groups by their UUIDs, where there are any."""
        found = await self._dynamo.read(self._table, group_ids)
        return {key: group_of(item) for key, item in found.items() if is_live(item, now) and is_group(item)}

    async def finish(self, group_id: str, task_ids: Sequence[str], keep: float, now: float) -> Progress:
        """Count members; how the group stands then."""
        tally = await self._tallies.of(group_id, now)
        if tally is None:
            group = await self._present(group_id, now)
            if group is None or is_sent(group):
                return Progress.LOST if group is None else Progress.TRIGGERED
            until = int(number_in(group, EXPIRY)) or expires_at(keep, now)
            tally = await self._tallies.make(group_id, members_of(group), task_ids, until, now)
        if tally.is_sent:
            return Progress.TRIGGERED
        left = await self._tallies.strike(tally, task_ids, now)
        if left is None:
            return Progress.LOST
        if left:
            return Progress.WAITING
        group = await self._present(group_id, now)
        if group is None:
            return Progress.LOST
        return Progress.TRIGGERED if is_sent(group) else Progress.COMPLETE

    async def add(self, group_id: str, task_ids: Sequence[str], keep: float, now: float) -> bool:
        """Append members; False where the group is over, or there is none."""
        for _ in range(TRIES):
            progress = await self.finish(group_id, (), keep, now)
            group = await self._present(group_id, now)
            if progress is not Progress.WAITING or group is None or flag_in(group, "ChordTriggered"):
                return False
            members = _members_of(group) or ()
            new = [task_id for task_id in dict.fromkeys(task_ids) if task_id not in set(members)]
            if not new or await self._append(group, new):
                return True
        raise too_many_tries(f"group {group_id}")

    async def claim(self, group_id: str, owner: str, ttl: float, keep: float, now: float) -> GroupClaim:
        """Take what follows it for ``ttl`` seconds."""
        for _ in range(TRIES):
            seen = await self._dynamo.look(self._table, group_id)
            group = seen if is_live(seen, now) else None
            if group is not None:
                if is_sent(group):
                    return GroupClaim.SENT
                if text_in(group, "AqOwner") not in ("", owner) and number_in(group, "AqClaimedUntil") > now:
                    return GroupClaim.TAKEN
                if flag_in(group, "Lock") and not await self._is_abandoned(group, now):
                    return GroupClaim.BUSY
            claimed = {"ChordTriggered": flag(True), "AqOwner": text(owner), "AqClaimedUntil": number(now + ttl)}
            if await self._write(group_id, seen, claimed, (), keep, now):
                # the claim prolongs the group, and whoever takes it over asks who is left
                await self._tallies.prolong((group_id,), expires_at(keep, now), now)
                return GroupClaim.MINE
        raise too_many_tries(f"group {group_id}")

    async def mark_sent(self, group_id: str, keep: float, now: float) -> None:
        """What follows it is on its way."""
        for _ in range(TRIES):
            seen = await self._dynamo.look(self._table, group_id)
            removed = ("AqOwner", "AqClaimedUntil")
            if await self._write(group_id, seen, {"ChordTriggered": flag(True)}, removed, keep, now):
                await self._tallies.close(group_id)
                return
        raise too_many_tries(f"group {group_id}")

    async def _present(self, group_id: str, now: float) -> Item | None:
        found = await self._dynamo.look(self._table, group_id)
        return found if found is not None and is_live(found, now) and is_group(found) else None

    async def _append(self, group: Item, new: Sequence[str]) -> bool:
        """False: others have changed the group, or its last member has ended."""
        group_id, members = text_in(group, KEY), list_in(group, _MEMBERS) or []
        added: list[Value] = [text(task_id) for task_id in new]
        whole = {**group, _MEMBERS: {"L": [*members, *added]}}
        require_room(f"group {group_id} of {len(members) + len(new)} members", whole)
        condition, values = as_seen(group, *_DECIDING)
        values |= {":added": {"L": added}, ":size": number(len(members))}
        appended = Change(
            self._table,
            group_id,
            f"SET #{_MEMBERS} = list_append(#{_MEMBERS}, :added)",
            f"{condition} AND size(#{_MEMBERS}) = :size",
            values,
        )
        return await self._dynamo.alter_all(appended, self._tallies.adding(group_id, new))

    async def _write(
        self, group_id: str, seen: Item | None, sets: dict[str, Value], removes: Sequence[str], keep: float, now: float
    ) -> bool:
        """Change a group as it was seen, or make one without members; False where it has changed since then."""
        condition, values = as_seen(seen, *_DECIDING)
        until = expires_at(keep, now)
        if seen is None or not is_live(seen, now):
            made = {KEY: text(group_id), _MEMBERS: {"L": []}, EXPIRY: number(until), **sets}
            return await self._dynamo.put(self._table, made, condition, values)
        sets = {**sets, EXPIRY: number(max(until, number_in(seen, EXPIRY)))}
        return await self._dynamo.alter(
            change(self._table, group_id, sets=sets, removes=removes, condition=condition, values=values)
        )

    async def _is_abandoned(self, group: Item, now: float) -> bool:
        """Whether another program's lock has been there for longer than it takes. When we first saw it is noted: it
        does not say since when it is."""
        if locked_at := number_in(group, "AqLockedAt"):
            return locked_at + LOCKED_FOR <= now
        condition, values = as_seen(group, KEY, "Lock", "AqLockedAt")
        noted = {"AqLockedAt": number(now)}
        await self._dynamo.alter(
            change(self._table, text_in(group, KEY), sets=noted, condition=condition, values=values)
        )
        return False


def item_of(group: GroupMeta, expires: int) -> dict[str, Value]:
    """The item of a group."""
    members: Value = {"NULL": True}
    if group.task_uuids is not None:
        members = {"L": [text(task_id) for task_id in dict.fromkeys(group.task_uuids)]}
    return {
        KEY: text(group.group_uuid),
        _MEMBERS: members,
        "ChordTriggered": flag(group.chord_triggered),
        "Lock": flag(group.lock),
        "CreatedAt": text(rfc3339.render(group.created_at)),
        EXPIRY: number(expires),
    }


def group_of(item: Item) -> GroupMeta:
    """The group in an item, whoever wrote it. Raises ``BadMessage``."""
    group_id = text_in(item, KEY)
    try:
        created_at = text_in(item, "CreatedAt")
        return GroupMeta(
            group_uuid=group_id,
            task_uuids=_members_of(item),
            chord_triggered=flag_in(item, "ChordTriggered"),
            lock=flag_in(item, "Lock"),
            created_at=rfc3339.parse(created_at) if created_at else rfc3339.ZERO,
        )
    except (BadMessage, ValueError) as exc:
        raise BadMessage("invalid_group", f"group {group_id}: {exc}") from None


def is_group(item: Item) -> bool:
    """Whether an item is a group: plans lie in the same table."""
    return "AqPlan" not in item and "AqParts" not in item


def is_sent(group: Item) -> bool:
    """Whether what follows is on its way, or is another program's matter."""
    return flag_in(group, "ChordTriggered") and "AqOwner" not in group


def members_of(group: Item) -> tuple[str, ...]:
    """UUIDs of its members, in order."""
    return _members_of(group) or ()


def _members_of(group: Item) -> tuple[str, ...] | None:
    found = list_in(group, _MEMBERS)
    return None if found is None else tuple(text_in({_MEMBERS: each}, _MEMBERS) for each in found)
