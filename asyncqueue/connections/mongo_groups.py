"""Groups on MongoDB: counted down member by member, at a cost that does not grow with them.

A group is Machinery's document. Beside it, from its first count on, each member has a small document of its own that
says whether it is left: not known to have ended. Who ends a member marks that, then looks at one or two that are left;
those of them that have ended, which others may have recorded, are marked on the way. Nobody is left: the group is
complete, which is written into its document if no member was added meanwhile, so that adding and completing exclude
each other without a transaction.

Fields of ours: ``aq_run`` tells the members of one life of a group from those of another that had the same UUID;
``aq_size`` is how many members it has, ``aq_laid`` how many of them have their document; ``aq_complete``; ``aq_owner``
has claimed what follows it until ``aq_claimed_until``, and a group that is triggered without an owner is over.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bson import Int64
from pymongo import InsertOne, UpdateOne
from pymongo.errors import BulkWriteError

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.clock import NANOSECONDS, Clock
from asyncqueue.connections.keeping import kept_until
from asyncqueue.connections.mongo import MANY, Document, MongoLink
from asyncqueue.connections.mongo_documents import ENTRY_END, FINAL, TASK_END, group_document, is_gone, moment
from asyncqueue.connections.sending import all_of, portions
from asyncqueue.state import GroupMeta

MEMBERS = "aq_members"
"""The collection of members."""

_FIRST_DRAW = 2
_LAST_DRAW = 1_000
_AT_ONCE = 10  # looks into groups under way at once
_DUPLICATE_KEY = 11000
_KNOWN = ("chord_triggered", "aq_owner", "aq_run", "aq_size", "aq_laid", "aq_complete", ENTRY_END)


@dataclass(frozen=True, slots=True)
class _Standing:
    """A group as it was read."""

    group_id: str
    run: str
    size: int | None
    laid: int
    is_triggered: bool
    is_claimed: bool
    is_complete: bool

    @property
    def is_laid(self) -> bool:
        """Whether all members have their documents."""
        return self.size == self.laid


@dataclass(frozen=True, slots=True)
class _Left:
    """Some members of a group that are left: those that have not ended, and those that have."""

    wait: tuple[str, ...]
    ended: tuple[str, ...]


class MongoGroups:
    """What a backend does with groups; ``tasks`` and ``groups`` name its collections."""

    def __init__(self, link: MongoLink, tasks: str, groups: str, clock: Clock) -> None:
        self._link = link
        self._tasks = tasks
        self._groups = groups
        self._clock = clock

    async def open(self, groups: Sequence[GroupMeta], keep: float) -> None:
        """``Backend.open_groups``."""
        now = self._now()
        writes = []
        for group in groups:
            new = group_document(group)
            new |= {
                "aq_run": secrets.token_hex(8),
                "aq_size": Int64(len(new["task_uuids"] or ())),
                "aq_laid": Int64(0),
                ENTRY_END: moment(kept_until(keep, now, group.not_before)),
            }
            stage = {"$replaceWith": {"$cond": [_is_there(now), "$$ROOT", {"$literal": new}]}}
            writes.append(UpdateOne({"_id": group.group_uuid}, [stage], upsert=True))
        await self._link.write(self._groups, writes)

    async def finish(self, members: Sequence[Member], keep: float) -> Sequence[Progress]:
        """``Backend.finish_members``. Members of one group that are counted together are told the same."""
        ended: dict[str, list[str]] = {}
        for member in members:
            ended.setdefault(member.group_id, []).append(member.task_id)
        uncounted = dict(ended)
        found: dict[str, Progress] = {}
        draw = _FIRST_DRAW
        while ended:
            standings = await self._look(ended)
            over = {group_id: _end_of(standings.get(group_id)) for group_id in ended}
            found |= {group_id: progress for group_id, progress in over.items() if progress is not None}
            waiting = [standings[group_id] for group_id, progress in over.items() if progress is None]
            await self._lay_out([each for each in waiting if not each.is_laid], keep)
            await self._mark([(each.run, uncounted.pop(each.group_id, ())) for each in waiting])
            left = await self._left(waiting, draw)
            found |= {each.group_id: Progress.WAITING for each in waiting if left[each.group_id].wait}
            ended = {group_id: some for group_id, some in ended.items() if group_id not in found}
            for each in await self._pass([each for each in waiting if each.group_id in ended], left):
                uncounted[each.group_id] = ended[each.group_id]
            draw = min(2 * draw, _LAST_DRAW)
        return [found[member.group_id] for member in members]

    async def add(self, group_id: str, task_ids: Sequence[str], keep: float) -> bool:
        """``Backend.add_members``."""
        draw = _FIRST_DRAW
        while True:
            standing = (await self._look([group_id])).get(group_id)
            if standing is None or standing.is_claimed or _end_of(standing) is not None:
                return False
            if not standing.is_laid:
                await self._lay_out([standing], keep)
                continue
            left = await self._left([standing], draw)
            if left[group_id].wait:
                if await self._append(standing, list(dict.fromkeys(task_ids))):
                    return True
            elif left[group_id].ended:
                await self._pass([standing], left)
                draw = min(2 * draw, _LAST_DRAW)
            else:
                return False

    async def claim(self, group_id: str, owner: str, ttl: float, keep: float) -> GroupClaim:
        """``Backend.claim_group``."""
        now = self._now()
        is_mine = {
            "$or": [
                {"$ne": ["$chord_triggered", True]},
                {"$eq": ["$aq_owner", {"$literal": owner}]},
                {"$and": [_is_set("aq_owner"), {"$lte": ["$aq_claimed_until", moment(now)]}]},
            ]
        }
        mine = {"chord_triggered": True, "aq_owner": owner, "aq_claimed_until": moment(now + ttl)}
        stages = [
            *_made_where_missing(now, keep),
            {"$replaceWith": {"$mergeObjects": ["$$ROOT", {"$cond": [is_mine, {"$literal": mine}, {}]}]}},
        ]
        found = await self._link.change(self._groups, group_id, stages, ("aq_owner",))
        match found.get("aq_owner"):
            case None:
                return GroupClaim.SENT
            case has_it if has_it == owner:
                return GroupClaim.MINE
            case _:
                return GroupClaim.TAKEN

    async def mark_sent(self, group_id: str, keep: float) -> None:
        """``Backend.mark_group_sent``."""
        stages = [
            *_made_where_missing(self._now(), keep),
            {"$set": {"chord_triggered": True}},
            {"$unset": ["aq_owner", "aq_claimed_until"]},
        ]
        await self._link.change(self._groups, group_id, stages, ("aq_owner",))

    async def prolong_members(self, groups: Sequence[Document], until: float) -> None:
        """Keep what is beside these groups longer than they are kept."""
        ids = [_member_id(_run_of(each), task_id) for each in groups for task_id in each.get("task_uuids") or ()]
        await self._link.update(MEMBERS, ids, {}, {"$max": {ENTRY_END: moment(until)}})

    async def _look(self, group_ids: Iterable[str]) -> dict[str, _Standing]:
        """How groups stand; those without an entry are missing."""
        now = self._now()
        found = await self._link.find(self._groups, {"_id": {"$in": list(group_ids)}}, _KNOWN)
        return {each["_id"]: _standing(each) for each in found if not is_gone(each, ENTRY_END, now)}

    async def _left(self, standings: Sequence[_Standing], draw: int) -> dict[str, _Left]:
        """Some members of each group that are left: as many as are to be drawn, or all."""
        found: list[_Left] = []
        for start in range(0, len(standings), _AT_ONCE):
            some = standings[start : start + _AT_ONCE]
            found += await all_of(self._left_of(each, draw) for each in some)
        return {each.group_id: left for each, left in zip(standings, found, strict=True)}

    async def _left_of(self, standing: _Standing, draw: int) -> _Left:
        now = self._now()
        states = {"from": self._tasks, "localField": "task", "foreignField": "_id", "as": "found"}
        stages: list[dict[str, Any]] = [
            {"$match": {"run": standing.run, "left": True}},
            {"$limit": draw},
            {"$lookup": states},
            {"$project": {"task": 1, "found.state": 1, f"found.{TASK_END}": 1}},
        ]
        wait: list[str] = []
        ended: list[str] = []
        for each in await self._link.aggregate(MEMBERS, stages):
            (ended if _has_ended(each["found"], now) else wait).append(each["task"])
        return _Left(tuple(wait), tuple(ended))

    async def _mark(self, ended: Iterable[tuple[str, Iterable[str]]]) -> None:
        """These members of these runs have ended."""
        ids = [_member_id(run, task_id) for run, task_ids in ended for task_id in task_ids]
        await self._link.update(MEMBERS, ids, {"left": True}, {"$set": {"left": False}})

    async def _pass(self, standings: Sequence[_Standing], left: Mapping[str, _Left]) -> Sequence[_Standing]:
        """Mark those who were found to have ended; where nobody is left, write that down. Returns the groups of which
        it cannot be known, since what was beside them is gone: they are counted anew."""
        await self._mark([(each.run, left[each.group_id].ended) for each in standings])
        empty = [each for each in standings if each.is_laid and not left[each.group_id].ended]
        return await self._complete(empty) if empty else ()

    async def _complete(self, standings: Sequence[_Standing]) -> Sequence[_Standing]:
        stages: list[dict[str, Any]] = [
            {"$match": {"run": {"$in": [each.run for each in standings]}}},
            {"$group": {"_id": "$run", "count": {"$sum": 1}}},
        ]
        counts = {each["_id"]: each["count"] for each in await self._link.aggregate(MEMBERS, stages)}
        lost = [each for each in standings if counts.get(each.run, 0) < each.laid]
        writes = []
        for each in standings:
            change = {"aq_laid": Int64(0)} if each in lost else {"aq_complete": True}
            size = Int64(each.laid)
            # Go's have no run
            unchanged = {"_id": each.group_id, "aq_run": {"$in": [each.run, None]}, "aq_size": size, "aq_laid": size}
            writes.append(UpdateOne(unchanged, {"$set": change}))
        await self._link.write(self._groups, writes, ordered=False)
        return lost

    async def _lay_out(self, standings: Sequence[_Standing], keep: float) -> None:
        """Give the members that have none a document of their own."""
        if not standings:
            return
        laid = {each.group_id: each.laid for each in standings}
        found = await self._link.find(self._groups, {"_id": {"$in": list(laid)}}, ("task_uuids", "aq_run", ENTRY_END))
        inserts, writes = [], []
        for each in found:
            run, task_ids = _run_of(each), list(dict.fromkeys(each.get("task_uuids") or ()))
            # they must not go before the group does, which is kept longer when it is claimed
            end = max(int(each.get(ENTRY_END, 0)) / 1000, self._now() + keep) + keep
            inserts += [
                InsertOne(
                    {"_id": _member_id(run, task_id), "run": run, "task": task_id, "left": True, ENTRY_END: moment(end)}
                )
                for task_id in task_ids[laid[each["_id"]] :]
            ]
            size = Int64(len(task_ids))
            writes.append(UpdateOne({"_id": each["_id"]}, {"$max": {"aq_size": size, "aq_laid": size}}))
        for some in portions(inserts, MANY):
            await self._link.run(MEMBERS, partial(_insert_missing, inserts=some))
        await self._link.write(self._groups, writes, ordered=False)

    async def _append(self, standing: _Standing, task_ids: Sequence[str]) -> bool:
        """Append those that are no members; False where the group is over meanwhile."""
        waiting = {"_id": standing.group_id, "aq_complete": {"$ne": True}, "chord_triggered": {"$ne": True}}
        members = {"$ifNull": ["$task_uuids", []]}
        is_new = {"$not": [{"$in": ["$$each", members]}]}
        new = {"$filter": {"input": {"$literal": list(task_ids)}, "as": "each", "cond": is_new}}
        stages = [
            {"$set": {"task_uuids": {"$concatArrays": [members, new]}}},
            {"$set": {"aq_size": {"$toLong": {"$size": {"$setUnion": ["$task_uuids", []]}}}}},
        ]
        done = await self._link.run(self._groups, lambda groups: groups.update_one(waiting, stages))
        return bool(done.matched_count)

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS


def _end_of(standing: _Standing | None) -> Progress | None:
    """What is told of a group whatever its members do; None where it is up to them."""
    match standing:
        case None:
            return Progress.LOST
        case _Standing(is_triggered=True, is_claimed=False):
            return Progress.TRIGGERED
        case _Standing(is_complete=True):
            return Progress.COMPLETE
    return None


def _standing(document: Document) -> _Standing:
    size = document.get("aq_size")
    return _Standing(
        group_id=document["_id"],
        run=_run_of(document),
        size=None if size is None else int(size),
        laid=int(document.get("aq_laid", 0)),
        is_triggered=document.get("chord_triggered") is True,
        is_claimed=document.get("aq_owner") is not None,
        is_complete=document.get("aq_complete") is True,
    )


def _has_ended(found: Sequence[Document], now: float) -> bool:
    return any(each.get("state") in FINAL and not is_gone(each, TASK_END, now) for each in found)


def _run_of(document: Document) -> str:
    """Whose members are whose; a group that Go has opened has but one life."""
    return str(document.get("aq_run") or document["_id"])


def _member_id(run: str, task_id: str) -> str:
    return f"{run} {task_id}"


async def _insert_missing(members: Any, inserts: Sequence[InsertOne[Any]]) -> None:
    try:
        await members.bulk_write(inserts, ordered=False)
    except BulkWriteError as exc:
        # another process lays out the same members
        troubles = (exc.details or {}).get("writeErrors", ())
        if exc.details.get("writeConcernErrors") or any(each.get("code") != _DUPLICATE_KEY for each in troubles):
            raise


# what stages of an update are made of


def _is_set(name: str) -> dict[str, Any]:
    return {"$ne": [{"$type": f"${name}"}, "missing"]}


def _is_there(now: float) -> dict[str, Any]:
    """Whether the document was there before this update, and its time is not over."""
    has_time = {"$or": [{"$not": [_is_set(ENTRY_END)]}, {"$gt": [f"${ENTRY_END}", moment(now)]}]}
    return {"$and": [_is_set("chord_triggered"), has_time]}


def _kept(until: float) -> dict[str, Any]:
    """An end of its own, no earlier than it was."""
    return {ENTRY_END: {"$max": [f"${ENTRY_END}", moment(until)]}}


def _made_where_missing(now: float, keep: float) -> Sequence[dict[str, Any]]:
    """The group as it is or, where it has no entry, a new one without members; about to be written either way."""
    made = {"task_uuids": [], "chord_triggered": False, "lock": False, "aq_size": Int64(0), "aq_laid": Int64(0)}
    new = {"$mergeObjects": [{"_id": "$_id"}, {"$literal": made | {"aq_run": secrets.token_hex(8)}}]}
    return [{"$replaceWith": {"$cond": [_is_there(now), "$$ROOT", new]}}, {"$set": _kept(now + keep)}]
