"""One look at a group that may have ended where no worker of ours saw it."""

from __future__ import annotations

from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.engine.outcome import Retry
from asyncqueue.engine.watching import looked_after
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.workflow import WATCH


async def test_a_member_that_go_runs_anew_has_not_failed() -> None:
    backend = MemoryBackend(MemoryStore())
    await backend.open()
    await backend.begin([TaskState(task_uuid="callback"), TaskState(task_uuid="task_m", state=State.STARTED)])
    await backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=("task_m",))])
    await backend.mark_group_sent("group_a")
    watch = Signature(
        uuid="watch",
        name=WATCH,
        args=(Arg(type="string", value="group_a"),),
        headers={"aq-seen": "1"},
        chord_callback=Signature(uuid="callback", name="collect"),
    )
    _, outcome = await looked_after(watch, backend)
    assert isinstance(outcome, Retry)
    await backend.close()
