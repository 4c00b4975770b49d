"""Groups on Memcached: Machinery's entry under the group's UUID, changed only where nobody else has changed it since.

    <group>             Machinery's GroupMeta, with a note of ours while there is one: that all members have ended, and
                        who has claimed what follows. Go passes it over, and drops it when it triggers the group.
    <group>:aq:<task>   a member that was counted; on the server of the group, for as long as that

There are no sets here. An instance reads a group once, and again when its number says that it was written. It remembers
who was found to have ended, and looks from the last member on until it finds one that has not. That a group is complete
is written into it before anybody is told: from then on nobody can be added.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.clock import NANOSECONDS, Clock
from asyncqueue.connections.keeping import kept_until
from asyncqueue.connections.memcache import (
    FOREVER,
    LONGEST_KEY,
    NOTHING,
    Item,
    Key,
    Link,
    Write,
    ending,
    lasting_within,
    without_errors,
)
from asyncqueue.errors import BadMessage, Refused
from asyncqueue.state import GroupMeta
from asyncqueue.wire import decode_noted_group, decode_state, encode_group

ROOM_FOR_NOTE = 512
"""How much (bytes) a group leaves of its server's size limit when it is made or grows, so that it can be claimed."""

LOCKED_FOR = 8.0
"""How long (seconds) Go's lock on a group is respected while nothing else happens to the group: a worker that holds one
for longer has died. Go's locks on other stores last as long."""

REMEMBERED = 100_000
"""How many members of groups are remembered at most. A group beyond that is read again."""

AT_ONCE = 1_000
"""The most members that are looked at in one go."""

_FIRST_DRAW = 2


@dataclass(frozen=True, slots=True)
class Note:
    """What a group's entry says beside what Machinery does. ``owner`` has claimed what follows it, until ``until``, in
    unix seconds; None where nobody has, or where it was sent."""

    is_complete: bool = False
    owner: str | None = None
    until: float = 0.0

    def __str__(self) -> str:
        if self.owner is None:
            return "complete" if self.is_complete else ""
        return f"{'complete' if self.is_complete else 'open'} {self.until * 1000:.0f} {self.owner}"

    @classmethod
    def parse(cls, text: str) -> Note:
        """What ``str`` made. Raises ``ValueError``."""
        word, *claim = text.split(" ", 2)
        if not claim:
            return cls(word == "complete")
        until, owner = claim
        return cls(word == "complete", owner, int(until) / 1000)


@dataclass(slots=True)
class _Group:
    """A group as it was read: its entry's number, for how long it is there, and who is known to have ended.

    ``unprobed`` are those whose end was not looked for, in order, and some that have ended: nobody else has not.
    """

    number: int
    left: int
    meta: GroupMeta
    note: Note
    members: frozenset[str] = field(init=False)
    unprobed: list[str] = field(init=False)
    ended: set[str] = field(init=False, default_factory=set)
    seen_locked_at: float | None = None

    def __post_init__(self) -> None:
        self.unprobed = list(self.meta.task_uuids or ())
        self.members = frozenset(self.unprobed)

    @property
    def is_sent(self) -> bool:
        """Whether what follows is on its way, or is never to be."""
        return self.meta.chord_triggered and self.note.owner is None

    def last(self, count: int) -> list[str]:
        """Some who are not known to have ended, and nobody where all have."""
        while self.unprobed and self.unprobed[-1] in self.ended:
            self.unprobed.pop()
        return [task for task in self.unprobed[-count:] if task not in self.ended]


class Groups:
    """The groups on a link. ``keep`` says for how long (seconds) an entry is kept after a write."""

    def __init__(self, link: Link, keep: Callable[[], float], clock: Clock) -> None:
        self._link = link
        self._keep = keep
        self._clock = clock
        self._known: dict[str, _Group] = {}  # what was used last comes last
        self._remembered = 0  # members in there

    async def open(self, groups: Sequence[GroupMeta]) -> None:
        """``Backend.open_groups``."""
        now = self._now()
        writes = []
        for group in groups:
            ends = ending(kept_until(self._keep(), now, group.not_before), now)
            write = Write(self._link.key(group.group_uuid), encode_group(group), ends, NOTHING)
            self._link.require_room("group", write, ROOM_FOR_NOTE)
            writes.append(write)
        without_errors(await self._link.write(writes))

    async def get(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        """``Backend.get_groups``."""
        items = without_errors(await self._link.read([self._link.key(group_id) for group_id in group_ids]))
        found = [None if item is None else decode_noted_group(item.data)[0] for item in items]
        return [  # what is at a UUID may also be a task
            group if group is not None and group.group_uuid == group_id else None
            for group_id, group in zip(group_ids, found, strict=True)
        ]

    async def finish(self, members: Sequence[Member]) -> Sequence[Progress]:
        """``Backend.finish_members``. Members of one group that are counted together are told the same."""
        ended: dict[str, list[str]] = {}
        for member in members:
            ended.setdefault(member.group_id, []).append(member.task_id)
        groups = await self._look(ended)
        await self._count(groups, ended)
        progress = await self._progress(groups)
        return [progress[member.group_id] for member in members]

    async def add(self, group_id: str, task_ids: Sequence[str]) -> bool:
        """``Backend.add_members``."""
        while True:
            group = (await self._look([group_id]))[group_id]
            if group is None or group.meta.chord_triggered or self._is_locked(group):
                return False
            if (await self._progress({group_id: group}))[group_id] is not Progress.WAITING:
                return False
            new = [task_id for task_id in dict.fromkeys(task_ids) if task_id not in group.members]
            if not new:
                return True
            meta = group.meta.model_copy(update={"task_uuids": (*(group.meta.task_uuids or ()), *new)})
            if await self._replace_each({group_id: (group, meta, group.note)}, keep=0, spare=ROOM_FOR_NOTE):
                return True

    async def claim(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        """``Backend.claim_group``."""
        while True:
            group = (await self._look([group_id]))[group_id]
            now = self._now()
            if group is None:
                if await self._make(group_id, Note(owner=owner, until=now + ttl)):
                    return GroupClaim.MINE
                continue
            if group.is_sent:
                return GroupClaim.SENT
            if group.note.owner not in (None, owner) and group.note.until > now:
                return GroupClaim.TAKEN
            if not group.meta.chord_triggered and self._is_locked(group):
                return GroupClaim.BUSY
            note = replace(group.note, owner=owner, until=now + ttl)
            if await self._replace(group_id, group, _triggered(group.meta), note):
                return GroupClaim.MINE

    async def mark_sent(self, group_id: str) -> None:
        """``Backend.mark_group_sent``."""
        while True:
            group = (await self._look([group_id]))[group_id]
            if group is None:
                if await self._make(group_id, Note()):
                    return
            elif group.is_sent or await self._replace(group_id, group, _triggered(group.meta), Note()):
                return

    def counts(self, group_id: str, task_ids: Iterable[str]) -> list[Key]:
        """Where it stands that these members of a group were counted."""
        return [self._link.beside(group_id, _count_name(group_id, task_id)) for task_id in task_ids]

    async def _look(self, group_ids: Collection[str]) -> dict[str, _Group | None]:
        """Groups as they are now; only what was written since the last look is read. Raises ``Refused`` where something
        else has the UUID of a group."""
        keys = {group_id: self._link.key(group_id) for group_id in group_ids}
        found: dict[str, _Group | None] = {}
        unknown: list[str] = []
        for group_id, item in zip(keys, without_errors(await self._link.glance(list(keys.values()))), strict=True):
            group = self._known.get(group_id)
            if item is None:
                found[group_id] = None
            elif group is None or group.number != item.number:
                unknown.append(group_id)
            else:
                group.left = item.left
                found[group_id] = group
        items = without_errors(await self._link.read([keys[group_id] for group_id in unknown]))
        for group_id, item in zip(unknown, items, strict=True):
            found[group_id] = None if item is None else _read(group_id, item)
        for group_id, group in found.items():
            self._remember(group_id, group)
        return found

    async def _count(self, groups: Mapping[str, _Group | None], ended: Mapping[str, Sequence[str]]) -> None:
        counted = [
            (group, self.counts(group_id, tasks), tasks)
            for group_id, group in groups.items()
            if group is not None and not group.is_sent
            for tasks in [[task for task in ended[group_id] if task in group.members]]
        ]
        now = self._now()
        writes = [Write(key, b"", lasting_within(group.left, now)) for group, keys, _ in counted for key in keys]
        without_errors(await self._link.write(writes))
        for group, _, tasks in counted:
            group.ended.update(tasks)

    async def _progress(self, groups: Mapping[str, _Group | None]) -> dict[str, Progress]:
        """How groups stand. Of one that nobody is waited for in any more, that is written down."""
        found: dict[str, Progress] = {}
        while groups:
            pending: dict[str, _Group] = {}
            for group_id, group in groups.items():
                if group is None:
                    found[group_id] = Progress.LOST
                elif group.is_sent:
                    found[group_id] = Progress.TRIGGERED
                elif group.note.is_complete:
                    found[group_id] = Progress.COMPLETE
                else:
                    pending[group_id] = group
            waiting = await self._with_unfinished(pending)
            found.update(dict.fromkeys(waiting, Progress.WAITING))
            over = {group_id: group for group_id, group in pending.items() if group_id not in waiting}
            changes = {
                group_id: (group, group.meta, replace(group.note, is_complete=True)) for group_id, group in over.items()
            }
            closed = await self._replace_each(changes, keep=self._keep())
            found.update(dict.fromkeys(closed, Progress.COMPLETE))
            again = over.keys() - closed
            groups = await self._look(again) if again else {}
        return found

    async def _with_unfinished(self, groups: Mapping[str, _Group]) -> set[str]:
        """Those of some groups in which a member has not ended."""
        waiting: set[str] = set()
        draw = _FIRST_DRAW
        while groups:
            drawn = {group_id: tasks for group_id, group in groups.items() if (tasks := group.last(draw))}
            ended = await self._ended([(group_id, task) for group_id, tasks in drawn.items() for task in tasks])
            for group_id, task in ended:
                groups[group_id].ended.add(task)
            still = {group_id for group_id, tasks in drawn.items() if not groups[group_id].ended.issuperset(tasks)}
            waiting |= still
            # where all that were drawn have ended, nobody may be left
            groups = {group_id: groups[group_id] for group_id in drawn if group_id not in still}
            draw = min(2 * draw, AT_ONCE)
        return waiting

    async def _ended(self, members: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those members that were counted, or whose final state is there."""
        keys = [key for group_id, task in members for key in self.counts(group_id, [task])]
        counted = without_errors(await self._link.glance(keys))
        ended = [member for member, item in zip(members, counted, strict=True) if item is not None]
        others = [member for member, item in zip(members, counted, strict=True) if item is None]
        items = without_errors(await self._link.read([self._link.key(task) for _, task in others]))
        return ended + [
            member for member, item in zip(others, items, strict=True) if item is not None and _is_final(item)
        ]

    async def _replace(self, group_id: str, group: _Group, meta: GroupMeta, note: Note) -> bool:
        """Write a group where nobody has written it since; False where somebody has."""
        return bool(await self._replace_each({group_id: (group, meta, note)}, keep=self._keep()))

    async def _replace_each(
        self, changes: Mapping[str, tuple[_Group, GroupMeta, Note]], *, keep: float, spare: int = 0
    ) -> set[str]:
        """Write groups where nobody has written them since; which of them were written. Each is kept for ``keep``
        seconds at least, and leaves ``spare`` bytes of its server's size limit."""
        now = self._now()
        writes = []
        for group_id, (group, meta, note) in changes.items():
            ends = ending(now + keep, now, group.left)
            write = Write(self._link.key(group_id), encode_group(meta, str(note)), ends, group.number)
            self._link.require_room("group", write, spare)
            writes.append(write)
        numbers = without_errors(await self._link.write(writes))
        written: set[str] = set()
        for (group_id, (group, meta, note)), number in zip(changes.items(), numbers, strict=True):
            if number is None:
                continue
            left = FOREVER if group.left == FOREVER else max(group.left, int(keep))
            changed = _Group(number, left, meta, note)
            changed.ended = group.ended
            written.add(group_id)
            self._remember(group_id, changed)
        return written

    async def _make(self, group_id: str, note: Note) -> bool:
        """Write a group that has no members and is triggered; False where one is there by now."""
        meta = GroupMeta(group_uuid=group_id, chord_triggered=True)
        now = self._now()
        write = Write(self._link.key(group_id), encode_group(meta, str(note)), ending(now + self._keep(), now), NOTHING)
        (number,) = without_errors(await self._link.write([write]))
        return number is not None

    def _is_locked(self, group: _Group) -> bool:
        """Whether a Go worker is about to trigger it, as far as can be told."""
        if not group.meta.lock:
            return False
        now = self._clock.monotonic()
        if group.seen_locked_at is None:
            group.seen_locked_at = now
        return now - group.seen_locked_at < LOCKED_FOR

    def _remember(self, group_id: str, group: _Group | None) -> None:
        self._forget(group_id)
        if group is None:
            return
        self._known[group_id] = group
        self._remembered += 1 + len(group.members)
        while self._remembered > REMEMBERED and len(self._known) > 1:
            self._forget(next(iter(self._known)))

    def _forget(self, group_id: str) -> None:
        if (known := self._known.pop(group_id, None)) is not None:
            self._remembered -= 1 + len(known.members)

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS


def _count_name(group_id: str, task_id: str) -> str:
    name = f"{group_id}:aq:{task_id}"
    if len(name.encode()) <= LONGEST_KEY:
        return name
    return f"{group_id}:aq:{blake2b(task_id.encode(), digest_size=16).hexdigest()}"


def _read(group_id: str, item: Item) -> _Group:
    try:
        meta, note = decode_noted_group(item.data)
        group = _Group(item.number, item.left, meta, Note.parse(note))
    except (BadMessage, ValueError) as exc:
        raise Refused(f"{group_id}: what is there is no group: {exc}") from exc
    if meta.group_uuid != group_id:
        raise Refused(f"{group_id}: what is there is no group, or another one")
    return group


def _is_final(item: Item) -> bool:
    try:
        return decode_state(item.data).is_completed
    except BadMessage:
        return False


def _triggered(meta: GroupMeta) -> GroupMeta:
    return meta.model_copy(update={"chord_triggered": True, "lock": False})
