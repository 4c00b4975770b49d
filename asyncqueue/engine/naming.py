"""Whether the names in a signature may become keys of the stores: asked when it is sent and when it arrives."""

from __future__ import annotations

from collections.abc import Iterator

from asyncqueue import names
from asyncqueue.signature import Signature, nested


def name_problem(signature: Signature, queue: str = "") -> str | None:
    """What is wrong with the names in a signature, or in one inside it; None where all is well. ``queue`` is where it
    came from, if it did.

    UUIDs and queues become keys of the stores as they are: one that is somebody else's key would destroy it, and a
    callback with the UUID of a task above it would pass for that task, which has ended.
    """
    problem = (
        _uuid_problem(signature.uuid, (queue, signature.routing_key))
        or names.task_name_problem(signature.name)
        or (_routing_problem(signature) if signature.routing_key != queue else None)
        or (names.group_id_problem(signature.group_uuid) if signature.group_uuid else None)
    )
    if problem or not (signature.on_success or signature.on_error or signature.chord_callback is not None):
        return problem
    return next(_problems_inside(signature, (queue, signature.routing_key, signature.uuid)), None)


def usable_task_id(uuid: str, queue: str) -> bool:
    """Whether a state may be kept under ``uuid``, for a message of ``queue``."""
    return _uuid_problem(uuid, (queue,)) is None


def _problems_inside(signature: Signature, above: tuple[str, ...]) -> Iterator[str]:
    for each in nested(signature):
        problem = (
            (_uuid_problem(each.uuid, (*above, each.routing_key)) if each.uuid else None)
            or names.task_name_problem(each.name)
            or _routing_problem(each)
            or (names.group_id_problem(each.group_uuid) if each.group_uuid else None)
        )
        if problem:
            yield f"callback {each.name[:64]!r}: {problem}"
        yield from _problems_inside(each, (*above, each.uuid))


def _uuid_problem(uuid: str, taken: tuple[str, ...]) -> str | None:
    problem = names.task_id_problem(uuid)
    if problem is None and uuid in taken:
        return f"task UUID {uuid[:64]!r} is the name of its queue or the UUID of a task above it"
    return problem


def _routing_problem(signature: Signature) -> str | None:
    return names.queue_problem(signature.routing_key) if signature.routing_key else None
