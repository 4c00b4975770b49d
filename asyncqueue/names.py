"""Which names may be used for tasks, task UUIDs and queues.

UUIDs, queues and our own companion keys share one keyspace on some stores, so a UUID or a queue must not look like
one of the keys that Machinery or this package keeps there. Each function returns what is wrong, or None.
"""

from __future__ import annotations

import re

from asyncqueue.errors import shown

MAX_LENGTH = 200

BUILT_IN_PREFIX = "aq."
"""How the names of built-in tasks begin."""

_KEY = re.compile(r"[A-Za-z0-9_.:{}/-]{1,200}", re.ASCII)
_RESERVED = frozenset({"delayed_tasks", "TriggerChordMutex"})
_RESERVED_START = "machinery_lock_"
_RESERVED_PART = ":aq:"


def valid_key(text: str) -> bool:
    """Whether ``text`` has the form of a UUID or a queue: 1 to 200 characters of ``A-Z a-z 0-9 _ . : { } / -``."""
    return _KEY.fullmatch(text) is not None


def valid_name(text: str) -> bool:
    """Whether ``text`` has the form of a task name: 1 to 200 printable characters."""
    return 0 < len(text) <= MAX_LENGTH and text.isprintable()


def reserved(key: str) -> bool:
    """Whether stores keep something of their own under ``key``."""
    return key in _RESERVED or key.startswith(_RESERVED_START) or _RESERVED_PART in key


def task_id_problem(uuid: str) -> str | None:
    """What is wrong with ``uuid`` as the UUID of a task, or None."""
    return _key_problem("task UUID", uuid)


def group_id_problem(uuid: str) -> str | None:
    """What is wrong with ``uuid`` as the UUID of a group, or None."""
    return _key_problem("group UUID", uuid)


def queue_problem(queue: object) -> str | None:
    """What is wrong with ``queue`` as the name of a queue, or None."""
    return _key_problem("queue", queue) if isinstance(queue, str) else f"queue {shown(queue)}: expected text"


def task_name_problem(name: str) -> str | None:
    """What is wrong with ``name`` as the name of a task, or None."""
    if valid_name(name):
        return None
    return f"task name {_shown(name)}: expected 1 to {MAX_LENGTH} printable characters"


def own_task_name_problem(name: object) -> str | None:
    """What is wrong with ``name`` as the name of a task of an application, or None."""
    if not isinstance(name, str):
        return f"task name {shown(name)}: expected text"
    if name.startswith(BUILT_IN_PREFIX):
        return (
            f"task name {_shown(name)} is reserved: names that begin with {BUILT_IN_PREFIX!r} are those of built-in "
            "tasks, which every worker runs itself; expected another name"
        )
    return task_name_problem(name)


def _key_problem(kind: str, key: str) -> str | None:
    if not valid_key(key):
        return f"{kind} {_shown(key)}: expected 1 to {MAX_LENGTH} characters of A-Z a-z 0-9 _ . : {{ }} / -"
    if reserved(key):
        return f"{kind} {_shown(key)} is reserved: stores keep something of their own under that name"
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:64] + "…")
