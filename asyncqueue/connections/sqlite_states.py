"""Task states in a SQLite file: what the backend and the joint store both do with them.

An entry that has expired counts as none, also before it is swept away. Moments are unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from asyncqueue import rfc3339
from asyncqueue.connections.keeping import kept_until
from asyncqueue.connections.sqlite import Connection, insert
from asyncqueue.connections.sqlite_entries import sweep_behind
from asyncqueue.state import State, TaskState
from asyncqueue.wire import decode_state, encode_state

Row = tuple[Any, ...]
Found = tuple[str, str, str | None, bytes]

FINAL = ", ".join(f"'{state}'" for state in State if state.is_final)
"""The final states, for ``state IN (…)``."""

_INSERT = """
    INSERT INTO task_state (task_uuid, state, task_name, created_at, expires_at, document) VALUES {}
    ON CONFLICT (task_uuid) DO UPDATE SET
        state = excluded.state, document = excluded.document,
"""
_BEGIN = f"""{_INSERT}
    expires_at = excluded.expires_at, task_name = excluded.task_name, created_at = excluded.created_at
"""
# The rule of state.may_follow; an entry that has expired is none.
_PUT = f"""{_INSERT}
        expires_at = max(excluded.expires_at, task_state.expires_at),
        task_name = CASE
            WHEN excluded.task_name = '' AND task_state.expires_at > ? THEN task_state.task_name
            ELSE excluded.task_name END,
        created_at = CASE
            WHEN excluded.created_at IS NULL AND task_state.expires_at > ? THEN task_state.created_at
            ELSE excluded.created_at END
    WHERE task_state.expires_at <= ?
        OR (task_state.state NOT IN ({FINAL}) AND excluded.state <> '{State.PENDING}')
"""
_GET = """
    SELECT task_uuid, task_name, created_at, document FROM task_state
    WHERE task_uuid IN (SELECT value FROM json_each(?)) AND expires_at > ?
"""


def to_rows(states: Iterable[TaskState], keep: float, now: float) -> list[Row]:
    """States as ``begin`` and ``put`` take them, to expire ``keep`` seconds after now or after they are due.

    Raises ``ArgumentError`` for a result that JSON cannot say.
    """
    return [
        (
            state.task_uuid,
            state.state.value,
            state.task_name,
            None if state.created_at == rfc3339.ZERO else str(state.created_at),
            kept_until(keep, now, state.not_before),
            encode_state(state),
        )
        for state in states
    ]


def begin(connection: Connection, rows: Sequence[Row], now: float) -> None:
    """Write these, whatever was there."""
    insert(connection, _BEGIN, rows)
    sweep_behind(connection, "task_state", len(rows), now)


def put(connection: Connection, rows: Sequence[Row], now: float) -> None:
    """Write these where they may follow what is there; name and time of the send are kept where these do not say
    them."""
    insert(connection, _PUT, rows, now, now, now)
    sweep_behind(connection, "task_state", len(rows), now)


def get(connection: Connection, task_ids: str, now: float) -> list[Found]:
    """What is there of these (see ``as_table``), in any order; ``state_of`` reads it."""
    return connection.execute(_GET, (task_ids, now)).fetchall()


def state_of(found: Found) -> TaskState:
    """The state that was found, with the name and time that were kept. Raises ``BadMessage`` for bytes that are no
    state."""
    _, task_name, created_at, document = found
    state = decode_state(document)
    changes: dict[str, object] = {}
    if task_name and not state.task_name:
        changes["task_name"] = task_name
    if created_at is not None and state.created_at == rfc3339.ZERO:
        changes["created_at"] = int(created_at)
    return state.model_copy(update=changes) if changes else state
