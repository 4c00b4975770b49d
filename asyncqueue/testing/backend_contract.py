"""What is true of every backend: the sentences of ``asyncqueue.backends.base``, as tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from asyncqueue import rfc3339
from asyncqueue.backends.base import Backend
from asyncqueue.errors import EntryTooLarge, Unavailable
from asyncqueue.state import State, TaskResult, TaskState
from asyncqueue.testing.suite import BackendSuite, state, state_of

SENT_AT = 1_735_787_045_123_456_789
BATCH = 500
MANY = 1000
RESULTS = (
    TaskResult(type="int64", value=2**53 + 1),
    TaskResult(type="string", value='"☃" \U0001f600 \u2028 <&>'),
    TaskResult(type="[]string", value=["a", ""]),
    TaskResult(type="json", value={"nested": [None, 1.5, {"x": True}]}),
)
FINAL = (State.SUCCESS, State.FAILURE)


class BackendContract(BackendSuite):
    """Subclass it, and say how to make the backend."""

    password: str | None = None
    """The password that the backends are made with, where there is one."""

    # the instance

    async def test_it_says_how_long_entries_are_kept(self) -> None:
        assert (await self.make_backend(self.expiry)).results_expire_in == self.expiry

    async def test_the_address_says_where_it_is_and_never_a_password(self) -> None:
        assert self.backend.address
        if self.password is not None:
            assert self.password not in self.backend.address

    async def test_opening_and_closing_twice_is_no_harm(self) -> None:
        await self.backend.open()
        assert list(await self.backend.get(["task_a"])) == [None]
        await self.backend.close()
        await self.backend.close()

    async def test_closing_what_was_never_opened_is_no_harm(self) -> None:
        await (await self.make_backend()).close()

    async def test_a_closed_backend_can_be_opened_again(self) -> None:
        await self.backend.put([state("task_a", State.SUCCESS)])
        await self.backend.close()
        await self.backend.open()
        assert await self._ends("task_a") == {"task_a": State.SUCCESS}

    async def test_two_instances_on_one_store_have_one_identity(self) -> None:
        assert await self.backend.identity() == await (await self.another_backend()).identity()

    async def test_verbs_raise_unavailable_when_the_service_does_not_answer(self) -> None:
        backend = await self.make_unreachable()

        async def watch() -> None:
            async for _ in backend.watch(["task_a"]):
                pass

        await self.raises_unavailable(
            [
                backend.open,
                lambda: backend.begin([state("task_a")]),
                lambda: backend.put([state("task_a", State.STARTED)]),
                lambda: backend.get(["task_a"]),
                lambda: backend.forget(["task_a"]),
                watch,
            ]
        )
        await backend.close()

    # what is kept

    async def test_a_state_comes_back_whole(self) -> None:
        success = TaskState(
            task_uuid="task_a",
            task_name='add "☃"',
            state=State.SUCCESS,
            results=RESULTS,
            created_at=SENT_AT,
            attempt=3,
        )
        failure = TaskState(task_uuid="task_b", state=State.FAILURE, error='line one\n"two" \\ ☃', created_at=SENT_AT)
        await self.backend.put([success, failure])
        assert list(await self.backend.get(["task_a", "task_b"])) == [success, failure]

    async def test_results_tell_none_from_empty(self) -> None:
        await self.backend.put([state("task_a", State.SUCCESS, results=()), state("task_b", State.SUCCESS)])
        found = await self.backend.get(["task_a", "task_b"])
        assert [one.results for one in found if one] == [(), None]

    async def test_what_one_instance_wrote_another_reads(self) -> None:
        await self.backend.begin([state("task_a")])
        other = await self.another_backend()
        assert await self.states("task_a", backend=other) == [State.PENDING]

    async def test_get_answers_in_the_order_asked_with_none_where_there_is_no_entry(self) -> None:
        await self.backend.put([state("task_a", State.STARTED), state("task_b", State.SUCCESS)])
        assert await self.states("task_b", "task_x", "task_a", "task_b", "task_y") == [
            State.SUCCESS,
            None,
            State.STARTED,
            State.SUCCESS,
            None,
        ]

    async def test_every_verb_takes_an_empty_batch(self) -> None:
        await self.backend.begin([])
        await self.backend.put([])
        assert list(await self.backend.get([])) == []
        await self.backend.forget([])
        assert [ending async for ending in self.backend.watch([])] == []

    async def test_every_verb_takes_a_batch_of_500(self) -> None:
        ids = [f"task_{number}" for number in range(BATCH)]
        await self.backend.begin([state(task_id) for task_id in ids])
        await self.backend.put([state(task_id, State.SUCCESS) for task_id in ids])
        assert await self.states(*ids) == [State.SUCCESS] * BATCH
        assert await self._ends(*ids) == dict.fromkeys(ids, State.SUCCESS)
        await self.backend.forget(ids)
        assert await self.states(*ids) == [None] * BATCH

    # begin

    async def test_begin_replaces_whatever_was_there(self) -> None:
        for old in State:
            await self.backend.put([state("task_a", old, error="old", results=RESULTS, created_at=SENT_AT, name="old")])
            anew = TaskState(task_uuid="task_a", task_name="new", state=State.PENDING, created_at=SENT_AT + 1)
            await self.backend.begin([anew])
            assert list(await self.backend.get(["task_a"])) == [anew]
            await self.backend.forget(["task_a"])

    async def test_begin_keeps_nothing_of_the_entry_that_was_there(self) -> None:
        await self.backend.put([state("task_a", State.FAILURE, error="old", created_at=SENT_AT, name="old")])
        await self.backend.begin([state("task_a")])
        (found,) = await self.backend.get(["task_a"])
        assert found
        assert (found.task_name, found.created_at, found.error) == ("", rfc3339.ZERO, "")

    # put

    async def test_the_last_write_wins(self) -> None:
        for new in (State.RECEIVED, State.STARTED, State.RETRY, State.RECEIVED, State.STARTED, State.SUCCESS):
            await self.backend.put([state("task_a", new)])
            assert await self.states("task_a") == [new]

    async def test_a_final_state_never_goes_back(self) -> None:
        for final in FINAL:
            kept = state(f"task_{final}", final, error="kept", results=RESULTS, name="kept", created_at=SENT_AT)
            await self.backend.put([kept])
            for new in State:
                await self.backend.put([state(kept.task_uuid, new, error="late", name="late", created_at=SENT_AT + 1)])
                assert list(await self.backend.get([kept.task_uuid])) == [kept]

    async def test_pending_is_put_only_where_no_entry_is(self) -> None:
        await self.backend.put([state("task_new", State.PENDING)])
        assert await self.states("task_new") == [State.PENDING]
        for old in State:
            kept = state(f"task_{old}", old, error="kept")
            await self.backend.put([kept])
            await self.backend.put([state(kept.task_uuid, State.PENDING, error="late")])
            assert list(await self.backend.get([kept.task_uuid])) == [kept]

    async def test_states_of_one_task_in_one_batch_follow_each_other(self) -> None:
        await self.backend.put([state("task_a", State.STARTED), state("task_a", State.SUCCESS)])
        await self.backend.put([state("task_b", State.SUCCESS), state("task_b", State.STARTED)])
        await self.backend.put([state("task_c", State.STARTED), state("task_c", State.PENDING)])
        assert await self.states("task_a", "task_b", "task_c") == [State.SUCCESS, State.SUCCESS, State.STARTED]

    async def test_the_time_and_name_of_the_send_are_kept_where_a_state_does_not_say_them(self) -> None:
        await self.backend.begin([state("task_a", name="add", created_at=SENT_AT)])
        for new in (State.RECEIVED, State.STARTED, State.SUCCESS):
            await self.backend.put([state("task_a", new)])
            (found,) = await self.backend.get(["task_a"])
            assert found
            assert (found.state, found.task_name, found.created_at) == (new, "add", SENT_AT)

    async def test_the_time_and_name_of_the_send_are_those_that_a_state_says(self) -> None:
        await self.backend.begin([state("task_a", name="add", created_at=SENT_AT)])
        await self.backend.put([state("task_a", State.STARTED, name="sum")])
        await self.backend.put([state("task_a", State.SUCCESS, created_at=SENT_AT + 1)])
        (found,) = await self.backend.get(["task_a"])
        assert found
        assert (found.task_name, found.created_at) == ("sum", SENT_AT + 1)

    async def test_nothing_else_of_an_old_state_is_kept(self) -> None:
        await self.backend.put([state("task_a", State.RETRY, error="old", results=RESULTS, name="add", attempt=2)])
        new = state("task_a", State.STARTED, name="add", created_at=SENT_AT)
        await self.backend.put([new])
        assert list(await self.backend.get(["task_a"])) == [new]

    async def test_a_state_over_the_size_limit_is_named_and_nothing_is_written(self) -> None:
        text = TaskResult(type="string", value=self.over_the_limit())
        await self.backend.put([state("task_big", State.STARTED)])
        small, big = state("task_a", State.SUCCESS), state("task_big", State.SUCCESS, results=(text,))
        for write in (self.backend.put, self.backend.begin):
            for batch in ([big], [small, big], [big, small]):
                with pytest.raises(EntryTooLarge) as raised:
                    await write(batch)
                self.assert_names(raised.value, "task_big")
                assert await self.states("task_a", "task_big") == [None, State.STARTED]

    # forget and expiry

    async def test_what_was_forgotten_is_gone(self) -> None:
        await self.backend.put([state("task_a", State.SUCCESS), state("task_b", State.SUCCESS)])
        await self.backend.forget(["task_a", "task_unknown"])
        assert await self.states("task_a", "task_b") == [None, State.SUCCESS]
        await self.backend.put([state("task_a", State.PENDING)])
        assert await self.states("task_a") == [State.PENDING]

    async def test_entries_are_gone_some_time_after_they_were_written(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        await short.begin([state("task_begun")])
        await short.put([state("task_put", State.SUCCESS)])
        await self.backend.put([state("task_kept", State.SUCCESS)])
        found = await self.states("task_begun", "task_put", "task_kept")
        if self.clock.monotonic() - written < self.expiry:
            assert found == [State.PENDING, State.SUCCESS, State.SUCCESS]
        await self.advance(self.expiry)
        await self.until_states(["task_begun", "task_put", "task_kept"], [None, None, State.SUCCESS])

    async def test_every_write_keeps_an_entry_alive(self) -> None:
        short = await self.another_backend(self.expiry)
        await short.begin([state("task_a")])
        await self.advance(self.expiry * 0.7)
        written = self.clock.monotonic()
        await short.put([state("task_a", State.STARTED)])
        await self.advance(self.expiry * 0.7)
        found = await self.states("task_a")
        if self.clock.monotonic() - written < self.expiry:
            assert found == [State.STARTED]
        await self.advance(self.expiry)
        await self.until_states(["task_a"], [None])

    async def test_the_entry_of_a_task_for_later_is_kept_from_the_time_it_is_due(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        due = self.now() + self.expiry
        await short.begin([state("task_begun", not_before=due)])
        await short.put([state("task_put", State.RETRY, not_before=due), state("task_pending", not_before=due)])
        await short.put([state("task_old", State.RETRY, not_before=due - 3 * self.expiry)])
        await self.advance(self.expiry * 1.4)
        found = await self.states("task_begun", "task_put", "task_pending")
        if self.clock.monotonic() - written < 2 * self.expiry:
            assert found == [State.PENDING, State.RETRY, State.PENDING]
        await self.until_states(["task_old"], [None])
        await self.advance(self.expiry * 0.6)
        await self.until_states(["task_begun", "task_put", "task_pending"], [None, None, None])

    async def test_a_put_keeps_an_entry_no_shorter_than_it_was(self) -> None:
        short = await self.another_backend(self.expiry)
        await self.backend.begin([state("task_a"), state("task_b")])
        await short.put(
            [state("task_a", State.STARTED), state("task_b", State.SUCCESS), state("task_c", State.SUCCESS)]
        )
        await self.advance(self.expiry)
        await self.until_states(["task_a", "task_b", "task_c"], [State.STARTED, State.SUCCESS, None])

    async def test_how_long_entries_are_kept_may_be_changed_while_open(self) -> None:
        await self.backend.put([state("task_before", State.STARTED)])
        self.backend.results_expire_in = self.expiry
        assert self.backend.results_expire_in == self.expiry
        await self.backend.put([state("task_after", State.STARTED)])
        await self.advance(self.expiry)
        await self.until_states(["task_before", "task_after"], [State.STARTED, None])

    async def test_an_expired_final_state_is_no_obstacle(self) -> None:
        short = await self.another_backend(self.expiry)
        await short.put([state("task_a", State.SUCCESS, name="old", created_at=SENT_AT)])
        await self.advance(self.expiry)
        await self.until_states(["task_a"], [None])
        new = state("task_a", State.STARTED)
        await self.backend.put([new])
        assert list(await self.backend.get(["task_a"])) == [new]

    # watch

    async def test_watch_gives_what_is_final_already(self) -> None:
        done = state("task_a", State.SUCCESS, results=RESULTS, name="add", created_at=SENT_AT)
        await self.backend.put([done, state("task_b", State.FAILURE)])
        endings = await self._watch(self.backend, ["task_a", "task_b"])
        assert dict(endings)["task_a"] == done
        assert await self._ends("task_a", "task_b") == {"task_a": State.SUCCESS, "task_b": State.FAILURE}

    async def test_watch_gives_none_where_there_is_no_entry(self) -> None:
        await self.backend.put([state("task_a", State.SUCCESS)])
        assert await self._ends("task_x", "task_a") == {"task_x": None, "task_a": State.SUCCESS}

    async def test_watch_gives_each_task_once_and_ends(self) -> None:
        await self.backend.put([state("task_a", State.SUCCESS)])
        endings = await self._watch(self.backend, ["task_a", "task_x", "task_a", "task_x"])
        assert sorted(task_id for task_id, _ in endings) == ["task_a", "task_x"]

    async def test_watch_waits_for_a_final_state(self) -> None:
        await self.backend.begin([state("task_a"), state("task_b")])
        watching = asyncio.create_task(self._watch(self.backend, ["task_a", "task_b"]))
        for new in (State.RECEIVED, State.STARTED, State.RETRY, State.STARTED):
            await self.backend.put([state("task_a", new), state("task_b", new)])
            await asyncio.sleep(0.01)
            assert not watching.done()
        await self.backend.put([state("task_b", State.FAILURE, error="why")])
        await self.backend.put([state("task_a", State.SUCCESS)])
        endings = dict(await watching)
        assert {task_id: state_of(one) for task_id, one in endings.items()} == {
            "task_a": State.SUCCESS,
            "task_b": State.FAILURE,
        }

    async def test_watch_gives_each_ending_as_soon_as_it_is_there(self) -> None:
        ids = ["task_a", "task_b", "task_c"]
        await self.backend.begin([state(task_id) for task_id in ids])
        watch = self.backend.watch(ids)
        for task_id in ("task_b", "task_c", "task_a"):
            await self.backend.put([state(task_id, State.SUCCESS)])
            assert (await self.in_time(anext(watch)))[0] == task_id
        with pytest.raises(StopAsyncIteration):
            await anext(watch)

    async def test_no_wake_up_is_lost_between_looking_and_waiting(self) -> None:
        other = await self.another_backend()
        for number in range(15):
            task_id = f"task_{number}"
            await self.backend.begin([state(task_id)])
            watching = asyncio.create_task(self._watch(self.backend, [task_id]))
            for _ in range(number):  # at another moment of the watch in every round
                await asyncio.sleep(0)
            await asyncio.sleep(number % 4 * 0.002)
            await other.put([state(task_id, State.SUCCESS)])
            assert [state_of(one) for _, one in await watching] == [State.SUCCESS]

    async def test_what_another_process_writes_wakes_too(self) -> None:
        other = await self.make_backend()
        await self.backend.begin([state("task_a")])
        watching = asyncio.create_task(self._watch(self.backend, ["task_a"]))
        await asyncio.sleep(0.02)

        async def write() -> None:
            await other.open()
            await other.put([state("task_a", State.SUCCESS)])
            await other.close()

        await self.in_another_thread(write)
        assert [state_of(one) for _, one in await watching] == [State.SUCCESS]

    async def test_a_watch_ends_when_the_entry_is_forgotten(self) -> None:
        await self.backend.begin([state("task_a")])
        watching = asyncio.create_task(self._watch(self.backend, ["task_a"]))
        await asyncio.sleep(0.02)
        await (await self.another_backend()).forget(["task_a"])
        assert await watching == [("task_a", None)]

    async def test_a_watch_ends_when_the_entry_expires(self) -> None:
        short = await self.another_backend(self.expiry)
        await short.begin([state("task_a")])
        watching = asyncio.create_task(self._watch(self.backend, ["task_a"]))
        await asyncio.sleep(0.02)
        await self.advance(self.expiry)
        assert await watching == [("task_a", None)]

    async def test_after_begin_a_watch_waits_for_the_new_end(self) -> None:
        await self.backend.put([state("task_a", State.FAILURE)])
        await self.backend.begin([state("task_a")])
        watching = asyncio.create_task(self._watch(self.backend, ["task_a"]))
        await asyncio.sleep(0.02)
        assert not watching.done()
        await self.backend.put([state("task_a", State.SUCCESS)])
        assert [state_of(one) for _, one in await watching] == [State.SUCCESS]

    async def test_many_watch_one_task(self) -> None:
        await self.backend.begin([state("task_a")])
        watching = [asyncio.create_task(self._watch(self.backend, ["task_a"])) for _ in range(50)]
        await asyncio.sleep(0.02)
        await (await self.another_backend()).put([state("task_a", State.SUCCESS)])
        for endings in await asyncio.gather(*watching):
            assert [state_of(one) for _, one in endings] == [State.SUCCESS]

    async def test_a_thousand_watchers_are_served_at_once(self) -> None:
        ids = [f"task_{number}" for number in range(MANY)]
        for start in range(0, MANY, BATCH):
            await self.backend.begin([state(task_id) for task_id in ids[start : start + BATCH]])
        watching = [asyncio.create_task(self._watch(self.backend, [task_id])) for task_id in ids]
        everything = asyncio.create_task(self._watch(self.backend, ids))
        await asyncio.sleep(0.02)
        other = await self.another_backend()
        for start in range(0, MANY, BATCH):
            await other.put([state(task_id, State.SUCCESS) for task_id in ids[start : start + BATCH]])
        for task_id, endings in zip(ids, await asyncio.gather(*watching), strict=True):
            assert [(seen, state_of(one)) for seen, one in endings] == [(task_id, State.SUCCESS)]
        assert {task_id for task_id, _ in await everything} == set(ids)

    async def test_a_watcher_that_leaves_takes_nothing_from_others(self) -> None:
        await self.backend.begin([state("task_a"), state("task_b")])
        leaving = asyncio.create_task(self._watch(self.backend, ["task_a", "task_b"]))
        staying = asyncio.create_task(self._watch(self.backend, ["task_a", "task_b"]))
        await asyncio.sleep(0.02)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await self.backend.put([state("task_a", State.SUCCESS), state("task_b", State.SUCCESS)])
        assert len(await staying) == 2

    async def test_close_ends_watches_with_unavailable(self) -> None:
        await self.backend.begin([state("task_a")])
        await self.backend.put([state("task_done", State.SUCCESS)])
        watching = [asyncio.create_task(self._watch(self.backend, ["task_a", "task_done"])) for _ in range(5)]
        await asyncio.sleep(0.02)
        await self.backend.close()
        for watch in watching:
            with pytest.raises(Unavailable):
                await watch

    # helpers

    async def _watch(self, backend: Backend, task_ids: Sequence[str]) -> list[tuple[str, TaskState | None]]:
        async def collect() -> list[tuple[str, TaskState | None]]:
            return [ending async for ending in backend.watch(task_ids)]

        return await self.in_time(collect())

    async def _ends(self, *task_ids: str) -> dict[str, State | None]:
        endings = await self._watch(self.backend, task_ids)
        return {task_id: state_of(one) for task_id, one in endings}
