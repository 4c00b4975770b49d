"""Groups whose members lie in other slots of a cluster than they do: no script can look at a group and a member.

A group's own entry and its companions lie in one slot, so that counting, claiming and appending are one step each. The
states of members are looked at in between, which is safe because an end is recorded before it is counted.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TypeAlias

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.connections.redis import (
    Link,
    Reply,
    Script,
    Word,
    expiry,
    kept_from,
    raise_first,
    read_scripts,
    tombstone,
)
from asyncqueue.connections.sending import portions
from asyncqueue.errors import Unavailable

MUTEX = "TriggerChordMutex"
"""Whoever has this key may trigger groups: Go's workers all take it."""

MUTEX_TTL = 8_000
"""How long (ms) it is taken for, by Go's workers too."""

AT_ONCE = 1_000
"""The most entries that one round trip concerns."""

_SCRIPTS = read_scripts("connections/redis_states.lua", "connections/redis_groups.lua", "connections/redis_spread.lua")
_Call: TypeAlias = tuple[Script, Sequence[Word], Iterable[Word]]
_FIRST_DRAW = 2
_STATE = re.compile(rb'"State":"(\w*)"')  # the first one: a result may be an object with a key of that name
_BEGINNING = 4_095


class SpreadGroups:
    """What a backend does with groups on a cluster. ``claim`` is its script that claims one."""

    def __init__(self, link: Link, claim: Script) -> None:
        self._link = link
        self._claim = claim

    async def finish(self, members: Sequence[Member]) -> Sequence[Progress]:
        """``Backend.finish_members``. Members of one group that are counted together are told the same."""
        ended: dict[str, list[str]] = {}
        for member in members:
            ended.setdefault(member.group_id, []).append(member.task_id)
        found: dict[str, Progress] = {}
        draw = _FIRST_DRAW
        while ended:
            waiting: dict[str, Sequence[bytes]] = {}
            calls: list[_Call] = [(_SCRIPTS["count"], (group,), (draw, *some)) for group, some in ended.items()]
            for group, (word, *drawn) in zip(ended, await self._run_each(calls), strict=True):
                found[group] = Progress(word.decode())
                if found[group] is Progress.WAITING:
                    waiting[group] = drawn[0]
            # where all that were drawn have ended, nobody may be left
            final = await self._ended([task for drawn in waiting.values() for task in drawn])
            ended = {
                group: [task.decode() for task in drawn] for group, drawn in waiting.items() if final.issuperset(drawn)
            }
            draw = min(2 * draw, AT_ONCE)
        return [found[member.group_id] for member in members]

    async def add(self, group_id: str, task_ids: Sequence[str]) -> bool:
        """``Backend.add_members``."""
        witness: Word = ""
        draw = _FIRST_DRAW
        while True:
            args = (draw, witness, *task_ids)
            word, *drawn = await self._link.run(_SCRIPTS["append"], (group_id,), args, to_last=True)
            if word != b"look":
                return bool(word == b"added")
            final = await self._ended(drawn[0])
            witness = next((task for task in drawn[0] if task not in final), "")
            if not witness:
                await self._link.run(_SCRIPTS["count"], (group_id,), (draw, *drawn[0]))
                draw = min(2 * draw, AT_ONCE)

    async def claim(self, group_id: str, owner: str, ttl: float, keep: float) -> GroupClaim:
        """``Backend.claim_group``."""
        args = (*expiry(keep), owner, round(ttl * 1000), tombstone(group_id))
        claim = await self._claimed(group_id, args, "none")
        if claim is not GroupClaim.BUSY:
            return claim
        name = f"aq:{group_id}:"
        token = f"{name}{secrets.token_hex(8)}".encode()
        holder = await self._link.run(_SCRIPTS["lock"], (MUTEX,), (token, MUTEX_TTL))
        if holder != token:
            # one of ours that is about to claim this group holds its own message until what follows is sent
            return GroupClaim.TAKEN if holder.startswith(name.encode()) else GroupClaim.BUSY
        try:
            return await self._claimed(group_id, args, "mine")
        finally:
            # its time ends
            with suppress(Unavailable):
                await self._link.run(_SCRIPTS["unlock"], (MUTEX,), (token,))

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None, keep: float) -> None:
        """``Backend.touch``."""
        args = (*expiry(keep), kept_from(not_before))
        some = [family for family in families if family]
        gains = await self._run_each([(_SCRIPTS["gains"], (family[0],), args) for family in some])
        todo = dict.fromkeys(each for family, gain in zip(some, gains, strict=True) if gain for each in family)
        known, members = set(todo), set[str]()
        while todo:
            inner: list[str] = []
            for word, ids in await self._run_each([(_SCRIPTS["prolong"], (each,), args) for each in todo]):
                (members.update if word == b"members" else inner.extend)(each.decode() for each in ids)
            todo = dict.fromkeys(each for each in inner if each not in known)
            known.update(todo)
        await self._run_each([(_SCRIPTS["prolong"], (each,), args) for each in members - known])

    async def _claimed(self, group_id: str, args: Iterable[Word], mutex: str) -> GroupClaim:
        reply = await self._link.run(self._claim, (group_id,), (*args, mutex), to_last=True)
        return GroupClaim(reply.decode())

    async def _ended(self, tasks: Sequence[bytes]) -> set[bytes]:
        """Those of these tasks that have a final state."""
        final = set()
        for some in portions(tasks, AT_ONCE):
            replies = await self._link.pipeline([("GETRANGE", task, 0, _BEGINNING) for task in some])
            for task, json in zip(some, replies, strict=True):
                if isinstance(json, Unavailable):
                    raise json
                if isinstance(json, bytes) and (state := _STATE.search(json)) and state[1] in (b"SUCCESS", b"FAILURE"):
                    final.add(task)
        return final

    async def _run_each(self, calls: Sequence[_Call]) -> list[Reply]:
        replies: list[Reply] = []
        for some in portions(calls, AT_ONCE):
            replies += await self._link.run_each(some, to_last=True)
        raise_first(replies)
        return replies
