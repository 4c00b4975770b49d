"""What states, groups and plans in a SQLite file have in common: they are kept for a time. Moments are unix seconds."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_core import from_json

from asyncqueue.connections.keeping import LEAST_GAIN, kept_until
from asyncqueue.connections.sqlite import Connection, as_table

_TABLES = (("task_state", "task_uuid"), ("task_group", "group_uuid"), ("plan", "plan_uuid"))

_UNTIL = ", ".join(
    f"coalesce((SELECT expires_at FROM {table} WHERE {uuid} = first.value), 0)" for table, uuid in _TABLES
)
_STALE = f"SELECT json_group_array(first.key) FROM json_each(?) AS first WHERE max({_UNTIL}) <= ?"
_ALL_OF_THEM = """
    WITH named (uuid) AS (
        SELECT value FROM json_each(:uuids)
        UNION
        SELECT part.value FROM json_each(:uuids) AS family CROSS JOIN plan ON plan_uuid = family.value
        CROSS JOIN json_each(plan.ids) AS part
    )
    SELECT json_group_array(uuid) FROM (
        SELECT uuid FROM named
        UNION
        SELECT task_uuid FROM named CROSS JOIN task_group ON group_uuid = named.uuid
        CROSS JOIN group_member ON group_id = task_group.id
    )
"""
_PROLONG = [
    f"""
    UPDATE {table} SET expires_at = :until
    WHERE {uuid} IN (SELECT value FROM json_each(:uuids)) AND expires_at > :now AND expires_at < :until
    """
    for table, uuid in _TABLES
]
_FORGET = [f"DELETE FROM {table} WHERE {uuid} IN (SELECT value FROM json_each(?))" for table, uuid in _TABLES]
_SWEEP = {
    table: f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)"
    for table, _ in _TABLES
}


def touch(
    connection: Connection, families: Sequence[Sequence[str]], keep: float, now: float, not_before: float | None
) -> None:
    """Keep these, and what they stand for, ``keep`` seconds from now or from when they are due; nothing is done for a
    family where that is not worth it for the first of it."""
    # After one of them is touched its first is fresh, so that another one with the same first would not be.
    distinct = list({family[0]: family for family in reversed(families) if family}.values())
    if not distinct:
        return
    until = kept_until(keep, now, not_before)
    firsts = as_table(family[0] for family in distinct)
    (places,) = connection.execute(_STALE, (firsts, until - LEAST_GAIN * keep)).fetchone()
    stale = as_table(dict.fromkeys(uuid for place in from_json(places) for uuid in distinct[place]))
    if stale == "[]":
        return
    (uuids,) = connection.execute(_ALL_OF_THEM, {"uuids": stale}).fetchone()
    for statement in _PROLONG:
        connection.execute(statement, {"until": until, "uuids": uuids, "now": now})


def forget(connection: Connection, uuids: str) -> None:
    """Drop these (see ``as_table``)."""
    for statement in _FORGET:
        connection.execute(statement, (uuids,))


def sweep(connection: Connection, now: float, limit: int) -> None:
    """Drop up to ``limit`` expired entries of each kind."""
    for statement in _SWEEP.values():
        connection.execute(statement, (now, limit))


def sweep_behind(connection: Connection, table: str, written: int, now: float) -> None:
    """Drop expired entries of a table into which some were written. Whoever writes does this for twice as many, so
    nobody has to come for it and no write takes long."""
    if written:
        connection.execute(_SWEEP[table], (now, 2 * written))
