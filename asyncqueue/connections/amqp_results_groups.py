"""Groups on RabbitMQ: a record of our own for each, and beside it the queue from which Go's workers count.

Go's workers know of no record. They put a member's final state into the queue of the group, and whoever finds as many
messages there as the group has members takes them all and sends what follows. So we put ours there as well, and leave
it to them where they have begun to take. Whether a group is complete for us the record says, and the members' states.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TypeVar

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.connections.amqp_results import GROUP, KIND, STATE, Entry, Locked, Post, Record, ResultQueues
from asyncqueue.connections.amqp_results_group import GroupRecord
from asyncqueue.connections.amqp_results_log import BEGUN, Known, Letter, fold
from asyncqueue.connections.keeping import LEAST_GAIN
from asyncqueue.connections.sending import all_of
from asyncqueue.errors import BadMessage
from asyncqueue.state import GroupMeta, TaskState
from asyncqueue.wire import decode_state, encode_state

T = TypeVar("T")

_FIRST_DRAW, _LARGEST_DRAW = 2, 1_000
_REMEMBERED, _LARGEST_REMEMBERED = 1_000, 10_000


class ResultGroups:
    """What a backend does with groups. ``read`` reads states, ``checked`` raises for a body that is too big; ``now`` is
    the clock's, in unix seconds; ``go_groups`` as for the backend. ``keep`` is seconds everywhere."""

    def __init__(
        self,
        queues: ResultQueues,
        read: Callable[[Sequence[str]], Awaitable[Mapping[str, Known | None]]],
        checked: Callable[[bytes, str], bytes],
        now: Callable[[], float],
        go_groups: bool,
    ) -> None:
        self._queues = queues
        self._read = read
        self._checked = checked
        self._now = now
        self._go_groups = go_groups
        self._ends: OrderedDict[str, bytes] = OrderedDict()  # final states of late, which are told a moment after

    def recorded(self, states: Iterable[TaskState]) -> None:
        """These states were recorded: who is a member is likely to be finished next."""
        for state in states:
            if state.is_completed and len(body := encode_state(state)) <= _LARGEST_REMEMBERED:
                self._ends[state.task_uuid] = body
        while len(self._ends) > _REMEMBERED:
            self._ends.popitem(last=False)

    def forget(self, task_ids: Iterable[str]) -> None:
        """These were dropped."""
        for task_id in task_ids:
            self._ends.pop(task_id, None)

    async def open(self, groups: Sequence[tuple[GroupMeta, float]]) -> None:
        """``Backend.open_groups``; each is kept until a moment (unix seconds)."""
        opened: dict[str, GroupRecord] = {}
        for group, until in groups:
            opened.setdefault(group.group_uuid, GroupRecord(group, until=until))
        records = {name: self._record(name, group) for name, group in opened.items()}

        async def write_new(locked: Locked, names: Sequence[str]) -> Mapping[str, None]:
            there = await locked.read(names)
            await locked.write([records[name] for name in names if there[name].record is None])
            return {}

        await self._queues.each(records, write_new)

    async def get(self, group_ids: Sequence[str]) -> Mapping[str, GroupRecord | None]:
        """The groups of these names."""

        async def read(locked: Locked, names: Sequence[str]) -> Mapping[str, GroupRecord | None]:
            return {name: group_in(entry) for name, entry in (await locked.read(names)).items()}

        return await self._queues.each(group_ids, read)

    async def finish(self, members: Sequence[Member], keep: float) -> Sequence[Progress]:
        """``Backend.finish_members``. Members of one group that are counted together are told the same."""
        ended: dict[str, list[str]] = {}
        sizes: dict[str, int] = {}
        for member in members:
            ended.setdefault(member.group_id, []).append(member.task_id)
            sizes[member.group_id] = member.size if self._go_groups else 0
        found: dict[str, _Count] = {}
        draw = _FIRST_DRAW
        counts = await self._count(ended, draw, sizes)
        told_until = await self._tell({name: count.untold for name, count in counts.items()}, keep)
        while counts:
            found.update(counts)
            # where all that were drawn have ended, nobody may be left
            drawn = {name: count.drawn for name, count in counts.items() if count.drawn}
            final = await self._ended([task_id for some in drawn.values() for task_id in some])
            draw = min(2 * draw, _LARGEST_DRAW)
            counts = await self._count({name: some for name, some in drawn.items() if final.issuperset(some)}, draw)

        counts = {
            name: replace(count, told_until=max(count.told_until, told_until.get(name, 0.0)))
            for name, count in found.items()
        }
        stands = await all_of(self._seen_with_others(name, count, keep) for name, count in counts.items())
        progress = dict(zip(counts, stands, strict=True))
        return [progress[member.group_id] for member in members]

    async def add(self, group_id: str, task_ids: Sequence[str]) -> bool:
        """``Backend.add_members``."""
        draw, witness = _FIRST_DRAW, ""
        while True:
            added = await self._update(group_id, partial(_with_members, task_ids=task_ids, witness=witness))
            if added is not None:
                return added
            drawn = (await self._count({group_id: ()}, draw))[group_id].drawn
            final = await self._ended(drawn)
            witness = next((task_id for task_id in drawn if task_id not in final), "")
            await self._count({group_id: list(final)}, draw)
            draw = min(2 * draw, _LARGEST_DRAW)

    async def claim(self, group_id: str, owner: str, ttl: float, keep: float) -> GroupClaim:
        """``Backend.claim_group``."""

        def claim(group: GroupRecord | None) -> tuple[GroupClaim, GroupRecord]:
            return self._present_or_made(group, group_id, keep).claim(owner, ttl, self._now())

        claimed = await self._update(group_id, claim)
        if claimed is GroupClaim.MINE:
            await self._queues.declare(triggered(group_id), max(keep, ttl))
        return claimed

    async def end(self, group_id: str, keep: float) -> None:
        """``Backend.mark_group_sent``."""
        await self._update(group_id, lambda group: (None, self._present_or_made(group, group_id, keep).end()))
        await self._queues.declare(triggered(group_id), keep)

    def _present_or_made(self, group: GroupRecord | None, group_id: str, keep: float) -> GroupRecord:
        """The group, which is about to be written."""
        until = self._now() + keep
        if group is None:
            return GroupRecord(GroupMeta(group_uuid=group_id, task_uuids=()), until=until)
        return replace(group, until=max(group.until, until))

    async def _update(self, group_id: str, change: Callable[[GroupRecord | None], tuple[T, GroupRecord | None]]) -> T:
        """Change a group, and return what the change returned beside it."""

        async def update(locked: Locked, names: Sequence[str]) -> Mapping[str, T]:
            entry = (await locked.read(names))[group_id]
            old = group_in(entry)
            answer, new = change(old)
            if new is not None and new != old:
                await locked.write([self._record(group_id, new, entry.old)])
            return {group_id: answer}

        return (await self._queues.each([group_id], update))[group_id]

    async def _count(
        self, ended: Mapping[str, Sequence[str]], draw: int, sizes: Mapping[str, int] | None = None
    ) -> Mapping[str, _Count]:
        """Count these members of these groups, and draw some that were not counted.

        With ``sizes`` (0: not known) it is their workers' word, and Go's workers have to be told. Who was counted
        before may have been told, or its worker may have died before it did: the queue of the group knows.
        """

        async def count(locked: Locked, names: Sequence[str]) -> Mapping[str, _Count]:
            entries = await locked.read(names)
            counts, records = {}, []
            for name in names:
                old = group_in(entries[name])
                count, new = _counted(old, ended[name], draw)
                again = [one for one in ended[name] if old is not None and old.has_counted(one)]
                if count.progress is Progress.LOST and sizes and sizes[name]:
                    count, again = _Count(Progress.WAITING, told_until=inf, size=sizes[name]), list(ended[name])
                if sizes and again and count.progress is not Progress.TRIGGERED:
                    told = {state.task_uuid for state in _states(await _read_count(locked, name))}
                    count = replace(count, untold=[*count.untold, *(one for one in again if one not in told)])
                if new is not None and new != old:
                    records.append(self._record(name, new, entries[name].old))
                counts[name] = count
            await locked.write(records)
            return counts

        return await self._queues.each(ended, count)

    async def _ended(self, task_ids: Sequence[str]) -> set[str]:
        """Those of these tasks that have a final state."""
        found = await self._read(task_ids) if task_ids else {}
        return {name for name, known in found.items() if _is_final(known)}

    async def _tell(self, ended: Mapping[str, Sequence[str]], keep: float) -> Mapping[str, float]:
        """Put the final states of these members into the queues of their groups; until when (unix seconds) these stand
        then.

        Each once: with one too many, a group would seem complete before it is. What nobody has recorded cannot be told.
        """
        members = {task_id for some in ended.values() for task_id in some}
        bodies = {task_id: self._ends[task_id] for task_id in members if task_id in self._ends}
        if members - bodies.keys():
            found = await self._read(list(members - bodies.keys()))
            bodies |= {name: encode_state(known.state) for name, known in found.items() if known and _is_final(known)}
        posts = [
            Post(name, bodies[one]) for name, some in ended.items() for one in dict.fromkeys(some) if one in bodies
        ]
        if not posts:
            return {}
        shorter = await self._queues.append(posts, keep)
        until = {post.name: self._now() + min(keep, shorter.get(post.name, keep)) for post in posts}

        async def tell(locked: Locked, names: Sequence[str]) -> Mapping[str, None]:
            records = []
            for name, entry in (await locked.read(names)).items():
                group = group_in(entry)
                if group is not None and until[name] - group.told_until > LEAST_GAIN * keep:
                    records.append(self._record(name, group.tell(until[name]), entry.old))
            await locked.write(records)
            return {}

        await self._queues.each(until, tell)
        return until

    async def _seen_with_others(self, group_id: str, count: _Count, keep: float) -> Progress:
        """How the group stands after a look at the queue from which Go's workers count.

        Where all have ended, that queue is not looked at. A worker of Go's may be taking what is in it; but if it dies
        meanwhile, finds less than it had counted, or a failure, it takes all and sends nothing. Better that what
        follows is sent twice, with one UUID, than never.
        """
        if count.progress is Progress.WAITING and count.told_until > self._now():
            return await self._counted_by_others(group_id, count.size, keep)
        return count.progress

    async def _counted_by_others(self, group_id: str, size: int, keep: float) -> Progress:
        """How the group stands by what is in the queue of its count: members' own logs may have been emptied by Go's
        readers, and of a group that Go's clients have sent there is nothing else.

        While we read, others count too few. So who has read looks once more whether anything came meanwhile.
        """
        while (queue := await self._queues.inspect(group_id)) is not None and queue[0] >= size:
            log, group = await self._count_from_queue(group_id, size, keep)
            if group is not None and group.is_complete:
                await self._preserve(log, self._now() + keep)
                return Progress.COMPLETE
            if queue[0] <= len(log):
                break
        return Progress.WAITING

    async def _count_from_queue(
        self, group_id: str, size: int, keep: float
    ) -> tuple[Sequence[Letter], GroupRecord | None]:
        """Count whose ends are in the queue of a group; a group that Go's clients have sent gets its entry when they
        are enough, with the members in the order of their ends, as Go has them."""

        async def count(
            locked: Locked, names: Sequence[str]
        ) -> Mapping[str, tuple[Sequence[Letter], GroupRecord | None]]:
            entry = (await locked.read(names))[group_id]
            log, old = await _read_count(locked, group_id), group_in(entry)
            ended = tuple(dict.fromkeys(state.task_uuid for state in _states(log) if state.is_completed))
            new = old
            if old is None and len(ended) >= size:
                now = self._now()
                meta = GroupMeta(group_uuid=group_id, task_uuids=ended)
                new = GroupRecord(meta, until=now + keep, told_until=now + keep * (1 - LEAST_GAIN))
            new = new and new.count(ended)
            if new is not None and new != old:
                await locked.write([self._record(group_id, new, entry.old)])
            return {group_id: (log, new)}

        return (await self._queues.each([group_id], count))[group_id]

    async def _preserve(self, log: Sequence[Letter], until: float) -> None:
        """Write the final states in the queue of a group as records of their own, which Go's readers cannot take before
        what follows is made of them."""
        bodies = {state.task_uuid: encode_state(state) for state in _states(log) if state.is_completed}

        async def write(locked: Locked, names: Sequence[str]) -> Mapping[str, None]:
            entries = await locked.read(names, logs=True)
            records = []
            for name, entry in entries.items():
                known = fold(name, entry.record, entry.log)
                if known is None or not known.state.is_completed:
                    known = Known(decode_state(bodies[name]), until, known.begun if known else "")
                headers = {KIND: STATE, BEGUN: known.begun}
                records.append(Record(name, encode_state(known.state), headers, max(until, known.until), entry.old))
            await locked.write(records)
            return {}

        await self._queues.each(bodies, write)

    def _record(self, name: str, group: GroupRecord, old: Sequence[int] = ()) -> Record:
        body = self._checked(group.body, f"group {name}")
        return Record(name, body, {**group.headers, KIND: GROUP}, group.until, old)


def triggered(group_id: str) -> str:
    """The queue that tells Go's workers, by being there, that what follows a group is sent."""
    return f"{group_id}_chord_triggered"


def group_in(entry: Entry) -> GroupRecord | None:
    """The group in an entry, if that is one."""
    return GroupRecord.read(entry.record) if entry.record and entry.record.headers.get(KIND) == GROUP else None


@dataclass(frozen=True, slots=True)
class _Count:
    """How a group of so many members stands: some that were not counted, those whose end Go's workers have not heard
    of, and until when (unix seconds) the queue stands from which they count."""

    progress: Progress
    drawn: Sequence[str] = ()
    untold: Sequence[str] = ()
    told_until: float = 0.0
    size: int = 0


def _counted(group: GroupRecord | None, ended: Sequence[str], draw: int) -> tuple[_Count, GroupRecord | None]:
    if group is None:
        return _Count(Progress.LOST), None
    new = group.count(ended)
    if new.is_sent:
        return _Count(Progress.TRIGGERED), new
    untold = [task_id for task_id in ended if new.has_counted(task_id) and not group.has_counted(task_id)]
    progress = Progress.COMPLETE if new.is_complete else Progress.WAITING
    return _Count(progress, new.draw(draw), untold, new.told_until, len(new.members)), new


def _with_members(
    group: GroupRecord | None, *, task_ids: Sequence[str], witness: str
) -> tuple[bool | None, GroupRecord | None]:
    """Whether these were added, and the group after it; None: first it has to be known of a ``witness``, a member that
    was not counted, that it has not ended."""
    if group is None or group.meta.chord_triggered or group.is_complete:
        return False, None
    if not witness or group.has_counted(witness):
        return None, None
    return True, group.add(task_ids)


async def _read_count(locked: Locked, group_id: str) -> Sequence[Letter]:
    """What is in the queue of a group, each end once. Others are dropped: with one too many, Go's workers, who look for
    the very number of members, would never find the group complete."""
    ended: set[str] = set()
    log: list[Letter] = []
    copies: list[Letter] = []
    for letter in await locked.read_count(group_id):
        names = {state.task_uuid for state in _states([letter])}
        (copies if names & ended else log).append(letter)
        ended |= names
    await locked.shorten(copies)
    return log


def _states(log: Iterable[Letter]) -> list[TaskState]:
    states = []
    for letter in log:
        with suppress(BadMessage):  # of nobody, then
            states.append(decode_state(letter.body))
    return states


def _is_final(known: Known | None) -> bool:
    return known is not None and known.state.is_completed
