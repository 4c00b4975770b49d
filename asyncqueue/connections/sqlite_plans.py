"""Plans in a SQLite file. A plan that has expired counts as none. Moments are unix seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from asyncqueue.connections.keeping import kept_until
from asyncqueue.connections.sqlite import Connection, as_table, insert
from asyncqueue.connections.sqlite_entries import sweep_behind
from asyncqueue.signature import Plan
from asyncqueue.wire import encode_plan

Row = tuple[Any, ...]

_PUT = """
    INSERT INTO plan (plan_uuid, ids, expires_at, document) VALUES {}
    ON CONFLICT (plan_uuid) DO UPDATE SET
        ids = excluded.ids, expires_at = excluded.expires_at, document = excluded.document
"""
_GET = """
    SELECT plan_uuid, document FROM plan WHERE plan_uuid IN (SELECT value FROM json_each(?)) AND expires_at > ?
"""


def to_rows(plans: Iterable[Plan], keep: float, now: float) -> list[Row]:
    """Plans as ``put`` takes them, to expire ``keep`` seconds after now or after they are due.

    Raises ``ArgumentError`` for what JSON cannot say.
    """
    return [
        (plan.plan_id, as_table(plan.ids), kept_until(keep, now, plan.not_before), encode_plan(plan)) for plan in plans
    ]


def put(connection: Connection, rows: Sequence[Row], now: float) -> None:
    """Write these, whatever was there."""
    insert(connection, _PUT, rows)
    sweep_behind(connection, "plan", len(rows), now)


def get(connection: Connection, plan_ids: str, now: float) -> dict[str, bytes]:
    """The bytes of those that are there of these (see ``as_table``)."""
    return dict(connection.execute(_GET, (plan_ids, now)).fetchall())
