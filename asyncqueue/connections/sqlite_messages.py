"""Messages in a SQLite file: which is shown next, and whose it is. ``sqlite_1_tasks.sql`` explains the columns.

A showing is over when its message was given back or its lease ended and somebody fetched from the queue after that.
Until then it is its taker's: a worker that was suspended past its lease, and whom nobody missed, goes on where it was.
Moments are unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from secrets import randbits
from typing import Any

from pydantic_core import from_json

from asyncqueue.brokers.base import Dead, Delivery, Message, QueueDepth
from asyncqueue.connections.sqlite import Connection, TooBig, as_table, insert

DUE_AT_ONCE = 1000
"""The most messages that one fetch makes ready because their time has come."""

# What came back has rank -256 or below; what was never shown has minus its priority.
_FRONT = """
    SELECT min(coalesce(min(first), 0), -255) FROM (
        SELECT (SELECT min(rank) FROM message WHERE queue = value AND until IS NULL) AS first FROM json_each(?)
    )
"""
_REMEMBER = """
    INSERT INTO publication (minute, token, mark)
    SELECT :minute, value, :mark FROM json_each(:tokens)
    WHERE NOT EXISTS (SELECT 1 FROM publication WHERE minute = :minute - 1 AND token = value)
    ON CONFLICT DO NOTHING
"""
_MARKED = """
    SELECT json_group_array(token) FROM publication
    WHERE minute = ? AND token IN (SELECT value FROM json_each(?)) AND mark = ?
"""
_FORGET = """
    DELETE FROM publication
    WHERE minute = (SELECT min(minute) FROM publication WHERE minute < :before) AND token IN (
        SELECT token FROM publication
        WHERE minute = (SELECT min(minute) FROM publication WHERE minute < :before) LIMIT :most
    )
"""
_LAST = "SELECT coalesce(max(id), 0) FROM message"
_ADD = "INSERT INTO message (id, queue, task_uuid, priority, rank, until) VALUES {}"
_ADD_BODY = "INSERT INTO body (id, bytes) VALUES {}"
_MAKE_READY = """
    UPDATE message SET
        until = NULL, fence = NULL, attempt = attempt + (fence IS NOT NULL),
        rank = CASE WHEN fence IS NULL THEN rank ELSE (
            SELECT min(coalesce(min(rank), 0), -255) - 1 FROM message WHERE queue = :queue AND until IS NULL
        ) END
    WHERE id IN (SELECT id FROM message WHERE queue = :queue AND until <= :now ORDER BY until LIMIT :most)
"""
# One row whatever the number of messages: who they are, and all their bytes end to end. Row by row, a busy event loop
# could keep this thread waiting for Python's global lock before each of them.
_SHOW = """
    SELECT json_group_array(json_array(id, attempt, length(bytes))), CAST(group_concat(bytes, '') AS BLOB)
    FROM (
        SELECT message.id, attempt, bytes FROM message CROSS JOIN body ON body.id = message.id
        WHERE queue = ? AND until IS NULL ORDER BY rank, message.id LIMIT ?
    )
"""
_HOLD = "UPDATE message SET until = ?, fence = ? WHERE id IN (SELECT json_extract(value, '$[0]') FROM json_each(?))"
_READY_AT = """
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM message WHERE queue = :queue AND until IS NULL) THEN 0
        ELSE (SELECT min(until) FROM message WHERE queue = :queue AND until IS NOT NULL)
    END
"""
_HELD = """
    SELECT json_group_array(receipt.key) FROM json_each(?) AS receipt
    CROSS JOIN message ON message.id = json_extract(receipt.value, '$[0]')
        AND message.fence = json_extract(receipt.value, '$[1]')
"""
_EXTEND = "UPDATE message SET until = ? WHERE id IN (SELECT value FROM json_each(?))"
_REMOVE = "DELETE FROM message WHERE id IN (SELECT value FROM json_each(?))"
_REMOVE_BODY = "DELETE FROM body WHERE id IN (SELECT value FROM json_each(?))"
_TO_FRONT = """
    UPDATE message SET until = NULL, fence = NULL, rank = ? + place.key
    FROM json_each(?) AS place WHERE message.id = place.value
"""
_DELAY = """
    UPDATE message SET until = ?, fence = NULL, rank = -priority WHERE id IN (SELECT value FROM json_each(?))
"""
_BURY = """
    INSERT INTO dead (queue, task_uuid, priority, attempt, reason, error, buried_at, bytes)
    SELECT queue, task_uuid, priority, attempt, ?, ?, ?, bytes
    FROM json_each(?) AS place CROSS JOIN message ON message.id = place.value CROSS JOIN body ON body.id = place.value
    ORDER BY place.key
"""

_QUEUES = "SELECT queue FROM message UNION SELECT queue FROM dead ORDER BY queue"
_DEPTH = """
    SELECT
        (SELECT count(*) FROM message WHERE queue = :queue AND until IS NULL)
            + (SELECT count(*) FROM message WHERE queue = :queue AND until <= :now),
        (SELECT count(*) FROM message WHERE queue = :queue AND until > :now AND fence IS NOT NULL),
        (SELECT count(*) FROM message WHERE queue = :queue AND until > :now AND fence IS NULL),
        (SELECT count(*) FROM dead WHERE queue = :queue)
"""
_PEEK = """
    SELECT bytes FROM (
        SELECT 1 AS is_fresh, rank, id FROM message WHERE queue = :queue AND until IS NULL
        UNION ALL
        SELECT fence IS NULL, rank, id FROM message WHERE queue = :queue AND until <= :now
        ORDER BY is_fresh, rank, id LIMIT :limit OFFSET :offset
    ) AS ready JOIN body USING (id) ORDER BY is_fresh, rank, id
"""
_DELAYED = """
    SELECT until, bytes FROM message JOIN body USING (id) WHERE until > ? AND fence IS NULL
    ORDER BY until, id LIMIT ? OFFSET ?
"""
_READY = """
    SELECT json_group_array(id) FROM (
        SELECT id FROM message WHERE queue = :queue AND until IS NULL
        UNION ALL
        SELECT id FROM message WHERE queue = :queue AND until <= :now
    )
"""
_DEAD = """
    SELECT id, queue, bytes, reason, error, attempt, buried_at FROM dead WHERE queue = ? ORDER BY id LIMIT ? OFFSET ?
"""
_EXHUME = """
    SELECT bytes, queue, task_uuid, priority
    FROM json_each(:wanted) AS wanted CROSS JOIN dead ON dead.id = wanted.value AND dead.queue = :queue
    ORDER BY wanted.key
"""
_DROP = "DELETE FROM dead WHERE queue = ? AND id IN (SELECT value FROM json_each(?))"


def unknown(connection: Connection, messages: Sequence[Message], now: float) -> list[Message]:
    """Those that were not published a short while ago, by their tokens. From now on they count as published."""
    tokens = {message.token: message for message in messages if message.token}
    if not tokens:
        return list(messages)
    minute, mark, table = int(now // 60), randbits(31), as_table(sorted(tokens))
    added = connection.execute(_REMEMBER, {"minute": minute, "mark": mark, "tokens": table}).rowcount
    # As with expired states: who adds some drops twice as many, and nobody has to come for it.
    connection.execute(_FORGET, {"before": minute - 1, "most": 2 * len(tokens)})
    if added < len(tokens):
        (marked,) = connection.execute(_MARKED, (minute, table, mark)).fetchone()
        new = set(from_json(marked))
        tokens = {token: message for token, message in tokens.items() if token in new}
    return [message for message in messages if not message.token or tokens.get(message.token) is message]


def add(connection: Connection, messages: Sequence[Message], now: float) -> None:
    """Append these, or put them among the delayed."""
    if not messages:
        return
    (last,) = connection.execute(_LAST).fetchone()
    rows = [
        (
            place,
            message.queue,
            message.id,
            message.priority,
            -message.priority,
            message.not_before if message.not_before is not None and message.not_before > now else None,
        )
        for place, message in enumerate(messages, last + 1)
    ]
    insert(connection, _ADD, rows)
    insert(connection, _ADD_BODY, [(place, message.body) for place, message in enumerate(messages, last + 1)])


def take(connection: Connection, queue: str, limit: int, now: float, lease: float) -> list[Delivery]:
    """Show up to ``limit`` messages: first those whose lease ended, then those given back, then by priority and age."""
    connection.execute(_MAKE_READY, {"queue": queue, "now": now, "most": max(limit, DUE_AT_ONCE)})
    facts, joined = _show(connection, queue, limit)
    if facts == "[]":
        return []
    # Fresh for every fetch, so that no two showings of a message have the same one.
    fence = randbits(63)
    connection.execute(_HOLD, (now + lease, fence, facts))
    deliveries, start = [], 0
    for place, attempt, length in from_json(facts):
        deliveries.append(Delivery(joined[start : start + length], queue, (place, fence), attempt))
        start += length
    return deliveries


def ready_at(connection: Connection, queue: str) -> float | None:
    """When the next message can be taken: 0 for now, None for never."""
    (moment,) = connection.execute(_READY_AT, {"queue": queue}).fetchone()
    return None if moment is None else float(moment)


def held(connection: Connection, deliveries: Iterable[Delivery]) -> list[Delivery]:
    """Those whose showing is not over, each once. The functions below take only such."""
    asked = list({delivery.receipt: delivery for delivery in deliveries}.values())
    (places,) = connection.execute(_HELD, (as_table(delivery.receipt for delivery in asked),)).fetchone()
    return [asked[place] for place in from_json(places)]


def extend(connection: Connection, deliveries: Sequence[Delivery], until: float) -> None:
    """Let their leases end then."""
    connection.execute(_EXTEND, (until, _ids(deliveries)))


def remove(connection: Connection, deliveries: Sequence[Delivery]) -> None:
    """They are done."""
    _remove(connection, _ids(deliveries))


def give_back(connection: Connection, deliveries: Sequence[Delivery]) -> None:
    """Show them next, in this order."""
    (front,) = connection.execute(_FRONT, (as_table({delivery.queue for delivery in deliveries}),)).fetchone()
    connection.execute(_TO_FRONT, (front - len(deliveries), _ids(deliveries)))


def delay(connection: Connection, deliveries: Sequence[Delivery], until: float) -> None:
    """Show them again, not before then."""
    connection.execute(_DELAY, (until, _ids(deliveries)))


def bury(connection: Connection, deliveries: Sequence[Delivery], reason: str, error: str, now: float) -> None:
    """Move them to the dead letter."""
    ids = _ids(deliveries)
    connection.execute(_BURY, (_sayable(reason), _sayable(error), now, ids))
    _remove(connection, ids)


def queues(connection: Connection) -> list[str]:
    """Queues that have anything in them or in their dead letter, sorted."""
    return [queue for (queue,) in connection.execute(_QUEUES)]


def depth(connection: Connection, queue: str, now: float) -> QueueDepth:
    """How much is in a queue; what is due, or was held until its lease ended, is ready."""
    ready, held, delayed, dead = connection.execute(_DEPTH, {"queue": queue, "now": now}).fetchone()
    return QueueDepth(queue, ready=ready, held=held, delayed=delayed, dead=dead)


def peek(connection: Connection, queue: str, limit: int, offset: int, now: float) -> list[bytes]:
    """Bodies of ready messages, next first."""
    asked = {"queue": queue, "now": now, "limit": limit, "offset": offset}
    return [body for (body,) in connection.execute(_PEEK, asked)]


def delayed(connection: Connection, limit: int, offset: int, now: float) -> list[tuple[float, bytes]]:
    """Due time and body of what is not due, of all queues, soonest first."""
    return connection.execute(_DELAYED, (now, limit, offset)).fetchall()


def purge(connection: Connection, queue: str, now: float) -> int:
    """Drop what is ready; returns how many."""
    (ids,) = connection.execute(_READY, {"queue": queue, "now": now}).fetchone()
    return _remove(connection, ids)


def dead(connection: Connection, queue: str, limit: int, offset: int) -> list[Dead]:
    """Entries of a dead letter, oldest first."""
    return [Dead(str(number), *facts) for number, *facts in connection.execute(_DEAD, (queue, limit, offset))]


def requeue(connection: Connection, queue: str, ids: Iterable[str], now: float) -> int:
    """Dead entries back to the end of their queue, in this order; returns how many."""
    wanted = _numbers(ids)
    messages = [
        Message(body, queue, task_uuid, priority=priority)
        for body, queue, task_uuid, priority in connection.execute(_EXHUME, {"queue": queue, "wanted": wanted})
    ]
    add(connection, messages, now)
    connection.execute(_DROP, (queue, wanted))
    return len(messages)


def drop(connection: Connection, queue: str, ids: Iterable[str]) -> int:
    """Dead entries away for good; returns how many."""
    return connection.execute(_DROP, (queue, _numbers(ids))).rowcount


def _show(connection: Connection, queue: str, limit: int) -> tuple[str, bytes]:
    try:
        facts, joined = connection.execute(_SHOW, (queue, limit)).fetchone()
    except TooBig:
        if limit == 1:
            raise
        return _show(connection, queue, limit // 2)
    return facts, joined or b""  # nothing at all is null


def _ids(deliveries: Iterable[Delivery]) -> str:
    receipts: Iterable[Any] = (delivery.receipt for delivery in deliveries)
    return as_table(place for place, _ in receipts)


def _remove(connection: Connection, ids: str) -> int:
    connection.execute(_REMOVE_BODY, (ids,))
    return connection.execute(_REMOVE, (ids,)).rowcount


def _numbers(ids: Iterable[str]) -> str:
    """Ids of dead entries as the numbers they are; what is no number names no entry."""
    return as_table(dict.fromkeys(int(one) for one in ids if one.isascii() and one.isdigit()))


def _sayable(text: str) -> str:
    """The text with a mark in place of what UTF-8 cannot say: burying must not fail for its reason."""
    return text.encode(errors="replace").decode()
