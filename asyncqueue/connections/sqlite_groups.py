"""Groups in a SQLite file: who their members are, which of them have not ended, and who sends what follows.

``sqlite_2_groups.sql`` explains the columns. A group that has expired counts as none, also before it is swept away.
Moments are unix seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic_core import from_json

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.connections.keeping import kept_until
from asyncqueue.connections.sqlite import Connection, as_table, insert
from asyncqueue.connections.sqlite_entries import sweep_behind
from asyncqueue.connections.sqlite_states import FINAL
from asyncqueue.state import GroupMeta
from asyncqueue.wire import decode_group, encode_group

Found = tuple[str, int, str, bytes]

_HAS_ENDED = f"""EXISTS (
    SELECT 1 FROM task_state
    WHERE task_state.task_uuid = group_member.task_uuid AND state IN ({FINAL}) AND task_state.expires_at > :now
)"""

_PRESENT = """
    SELECT json_group_array(group_uuid) FROM task_group
    WHERE group_uuid IN (SELECT value FROM json_each(?)) AND expires_at > ?
"""
_DROP_EXPIRED = "DELETE FROM task_group WHERE group_uuid IN (SELECT value FROM json_each(?)) AND expires_at <= ?"
_LAST = "SELECT coalesce(max(id), 0) FROM task_group"
_OPEN = "INSERT INTO task_group (id, group_uuid, is_triggered, expires_at, document) VALUES {}"
_ADD_MEMBERS = """
    INSERT INTO group_member (group_id, task_uuid)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?) ORDER BY key
"""
_GET = """
    SELECT group_uuid, is_triggered, (
        SELECT json_group_array(task_uuid) FROM (
            SELECT task_uuid FROM group_member WHERE group_id = task_group.id ORDER BY id
        )
    ), document
    FROM task_group WHERE group_uuid IN (SELECT value FROM json_each(?)) AND expires_at > ?
"""
_UNFINISHED = f"""
    SELECT json_group_array(member.key) FROM json_each(:members) AS member
    CROSS JOIN task_group ON group_uuid = json_extract(member.value, '$[0]')
    CROSS JOIN group_member
        ON group_id = task_group.id AND group_member.task_uuid = json_extract(member.value, '$[1]')
    WHERE task_group.expires_at > :now AND is_unfinished AND NOT {_HAS_ENDED}
"""
_COUNT = """
    UPDATE group_member SET is_unfinished = 0 WHERE id IN (
        SELECT group_member.id FROM json_each(?) AS member
        CROSS JOIN task_group ON group_uuid = json_extract(member.value, '$[0]')
        CROSS JOIN group_member ON group_id = task_group.id AND task_uuid = json_extract(member.value, '$[1]')
        WHERE is_unfinished
    )
"""
# Of each group, the first member that is not known to have ended, and the first that really has not.
_PROBE = f"""
    SELECT json_group_array(json_array(
        task_group.id, group_uuid, is_triggered, is_triggered AND owner IS NULL,
        (SELECT min(id) FROM group_member WHERE group_id = task_group.id AND is_unfinished),
        (
            SELECT id FROM group_member WHERE group_id = task_group.id AND is_unfinished AND NOT {_HAS_ENDED}
            ORDER BY id LIMIT 1
        )
    )) FROM task_group WHERE group_uuid IN (SELECT value FROM json_each(:group_ids)) AND expires_at > :now
"""
_PASS = f"""
    UPDATE group_member SET is_unfinished = 0 WHERE id IN (
        SELECT group_member.id FROM json_each(?) AS probed CROSS JOIN group_member
            ON group_id = json_extract(probed.value, '$[0]')
            AND group_member.id < coalesce(json_extract(probed.value, '$[1]'), {2**63 - 1})
        WHERE is_unfinished
    )
"""
_NOT_MEMBERS = """
    SELECT json_group_array(value) FROM json_each(?) AS added
    WHERE NOT EXISTS (SELECT 1 FROM group_member WHERE group_id = ? AND task_uuid = added.value)
"""
_SENT = """
    SELECT json_group_array(group_uuid) FROM task_group
    WHERE group_uuid IN (SELECT value FROM json_each(?)) AND expires_at > ? AND is_triggered AND owner IS NULL
"""
_END = """
    UPDATE task_group SET is_triggered = 1, owner = NULL, claimed_until = NULL, expires_at = max(expires_at, ?)
    WHERE group_uuid IN (SELECT value FROM json_each(?))
"""
_LOOK = "SELECT is_triggered, owner, claimed_until FROM task_group WHERE group_uuid = ?"
_CLAIM = """
    UPDATE task_group SET is_triggered = 1, owner = ?, claimed_until = ?, expires_at = max(expires_at, ?)
    WHERE group_uuid = ?
"""


@dataclass(frozen=True, slots=True)
class Opening:
    """A group as ``open_groups`` takes it."""

    group_id: str
    task_ids: Sequence[str]
    is_triggered: bool
    document: bytes
    not_before: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a group stands: ``waits`` while a member has not ended, ``is_sent`` where what follows is on its way or is
    never to be."""

    number: int
    is_triggered: bool
    is_sent: bool
    waits: bool


class Tally:
    """How each group stands while members are counted and groups end one after the other, in a transaction that
    changes them all at once.

    ``standings`` is how they stand when all members are counted and no group has ended, and ``unfinished`` who of the
    members had not ended before.
    """

    def __init__(self, standings: Mapping[str, Standing], unfinished: Iterable[Member]) -> None:
        self._standings = standings
        self._uncounted: defaultdict[str, set[str]] = defaultdict(set)
        self._sent = {group_id for group_id, standing in standings.items() if standing.is_sent}
        for member in unfinished:
            self._uncounted[member.group_id].add(member.task_id)

    def finish(self, member: Member) -> Progress:
        """The next member is counted."""
        uncounted = self._uncounted[member.group_id]
        uncounted.discard(member.task_id)
        if member.group_id in self._sent:
            return Progress.TRIGGERED
        if (standing := self._standings.get(member.group_id)) is None:
            return Progress.LOST
        return Progress.WAITING if uncounted or standing.waits else Progress.COMPLETE

    def end(self, group_id: str) -> None:
        """What follows the group is sent now."""
        self._sent.add(group_id)


def to_openings(groups: Iterable[GroupMeta]) -> list[Opening]:
    """Groups as ``open_groups`` takes them. Raises ``ArgumentError`` for a UUID that JSON cannot say."""
    return [
        Opening(
            group.group_uuid,
            tuple(dict.fromkeys(group.task_uuids or ())),
            group.chord_triggered,
            encode_group(group.model_copy(update={"task_uuids": None if group.task_uuids is None else ()})),
            group.not_before,
        )
        for group in groups
    ]


def open_groups(connection: Connection, openings: Sequence[Opening], keep: float, now: float) -> None:
    """Write those that are not there."""
    if not openings:
        return
    wanted = {opening.group_id: opening for opening in reversed(openings)}  # of two, the first one counts
    (present,) = connection.execute(_PRESENT, (as_table(wanted), now)).fetchone()
    there = set(from_json(present))
    new = [opening for opening in wanted.values() if opening.group_id not in there]
    if not new:
        return
    connection.execute(_DROP_EXPIRED, (as_table(opening.group_id for opening in new), now))
    (last,) = connection.execute(_LAST).fetchone()
    rows = [
        (number, one.group_id, int(one.is_triggered), kept_until(keep, now, one.not_before), one.document)
        for number, one in enumerate(new, last + 1)
    ]
    insert(connection, _OPEN, rows)
    members = ((number, task_id) for number, one in enumerate(new, last + 1) for task_id in one.task_ids)
    connection.execute(_ADD_MEMBERS, (as_table(members),))
    sweep_behind(connection, "task_group", len(new), now)


def get(connection: Connection, group_ids: str, now: float) -> list[Found]:
    """What is there of these (see ``as_table``), in any order; ``group_of`` reads it."""
    return connection.execute(_GET, (group_ids, now)).fetchall()


def group_of(found: Found) -> GroupMeta:
    """The group that was found, as it is now."""
    _, is_triggered, members, document = found
    group = decode_group(document)
    task_ids = tuple(from_json(members)) or group.task_uuids
    return group.model_copy(update={"task_uuids": task_ids, "chord_triggered": bool(is_triggered)})


def unfinished(connection: Connection, members: Sequence[Member], now: float) -> list[Member]:
    """Those that are not known to have ended, whether they were counted or not."""
    if not members:
        return []
    (places,) = connection.execute(_UNFINISHED, {"now": now, "members": _pairs(members)}).fetchone()
    return [members[place] for place in from_json(places)]


def count(connection: Connection, members: Sequence[Member], now: float) -> dict[str, Standing]:
    """These have ended; how their groups stand then."""
    if not members:
        return {}
    connection.execute(_COUNT, (_pairs(members),))
    return standings(connection, (member.group_id for member in members), now)


def standings(connection: Connection, group_ids: Iterable[str], now: float) -> dict[str, Standing]:
    """How these stand, those that are there.

    Who is found to have ended on the way is never looked at again, so that this costs the same for groups of any size.
    """
    (probed,) = connection.execute(_PROBE, {"now": now, "group_ids": as_table(dict.fromkeys(group_ids))}).fetchone()
    found = from_json(probed)
    passed = [(number, waited_for) for number, *_, first, waited_for in found if first != waited_for]
    if passed:
        connection.execute(_PASS, (as_table(passed),))
    return {
        group_id: Standing(number, bool(is_triggered), bool(is_sent), waited_for is not None)
        for number, group_id, is_triggered, is_sent, _, waited_for in found
    }


def finish(connection: Connection, members: Sequence[Member], now: float) -> list[Progress]:
    """Count members; how the group of each stands then, in the order asked."""
    waiting = unfinished(connection, members, now)
    tally = Tally(count(connection, members, now), waiting)
    return [tally.finish(member) for member in members]


def add(connection: Connection, group_id: str, task_ids: Sequence[str], now: float) -> bool:
    """Append members; False where the group is over, or there is none."""
    standing = standings(connection, (group_id,), now).get(group_id)
    if standing is None or standing.is_triggered or not standing.waits:
        return False
    wanted = as_table(dict.fromkeys(task_ids))
    (added,) = connection.execute(_NOT_MEMBERS, (wanted, standing.number)).fetchone()
    connection.execute(_ADD_MEMBERS, (as_table((standing.number, task_id) for task_id in from_json(added)),))
    return True


def sent(connection: Connection, group_ids: Iterable[str], now: float) -> list[str]:
    """Those of them that are over, with what follows on its way."""
    asked = as_table(group_ids)
    if asked == "[]":
        return []
    (found,) = connection.execute(_SENT, (asked, now)).fetchone()
    return list(from_json(found))


def end(connection: Connection, group_ids: Sequence[str], keep: float, now: float) -> None:
    """Trigger these, with what follows on its way. Those that are not there are made, without members."""
    if group_ids:
        _make(connection, group_ids, keep, now)
        connection.execute(_END, (now + keep, as_table(group_ids)))


def claim(connection: Connection, group_id: str, owner: str, ttl: float, keep: float, now: float) -> GroupClaim:
    """Take what follows it for ``ttl`` seconds. A group that is not there is made, without members."""
    _make(connection, [group_id], keep, now)
    is_triggered, claimed_by, claimed_until = connection.execute(_LOOK, (group_id,)).fetchone()
    if is_triggered and claimed_by is None:
        return GroupClaim.SENT
    if claimed_by not in (None, owner) and claimed_until > now:
        return GroupClaim.TAKEN
    connection.execute(_CLAIM, (owner, now + ttl, now + keep, group_id))
    return GroupClaim.MINE


def _make(connection: Connection, group_ids: Iterable[str], keep: float, now: float) -> None:
    empty = to_openings(GroupMeta(group_uuid=group_id, task_uuids=()) for group_id in group_ids)
    open_groups(connection, empty, keep, now)


def _pairs(members: Iterable[Member]) -> str:
    return as_table((member.group_id, member.task_id) for member in members)
