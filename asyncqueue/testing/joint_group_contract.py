"""What is true of every joint store's groups and plans: those sentences of ``JointStore``, as tests."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.brokers.base import Ack, Bury, Delivery, GroupEnd, Message, Nack, Settled, Unsettled, Verdict
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
from asyncqueue.testing.group_contract import group, plan
from asyncqueue.testing.joint_contract import KEEP, SENT_AT, JointSuite, pending
from asyncqueue.testing.suite import names, state, state_of

LONG = 600.0
RACERS = 20

Taken = tuple[Delivery, str]
"""A delivery that this worker has, and the id of its task."""


class JointGroupContract(JointSuite):
    """Subclass it, and say how to make the broker and the backend of one store."""

    # submit

    async def test_submit_records_groups_and_plans(self) -> None:
        message = self.call("a")
        await self.joint.submit(
            [pending(message)],
            [message],
            KEEP,
            groups=[group("group_a", message.id), group("group_b", "task_x", "task_b")],
            plans=[plan("plan_a"), plan("plan_b")],
        )
        assert list(await self.backend.get_groups(["group_a", "group_b"])) == [
            group("group_a", message.id),
            group("group_b", "task_x", "task_b"),
        ]
        assert list(await self.backend.get_plans(["plan_a", "plan_b"])) == [plan("plan_a"), plan("plan_b")]
        assert names(await self.fetch_until(1)) == ["a"]

    async def test_submit_takes_groups_and_plans_alone(self) -> None:
        await self.joint.submit([], [], KEEP, groups=[group("group_a", "task_a")])
        await self.joint.submit([], [], KEEP, plans=[plan("plan_a")])
        assert await self._group() == group("group_a", "task_a")
        assert list(await self.backend.get_plans(["plan_a"])) == [plan("plan_a")]

    async def test_who_fetches_a_submitted_message_finds_its_group_and_plan(self) -> None:
        messages = [self.call(f"m{number}") for number in range(30)]

        async def send() -> None:
            for message in messages:
                await self.joint.submit(
                    [pending(message)],
                    [message],
                    KEEP,
                    groups=[group(f"group_{message.id}", message.id)],
                    plans=[plan(f"plan_{message.id}")],
                )

        other = await self.another_broker()
        sending = asyncio.create_task(send())
        ids = {message.body: message.id for message in messages}
        for _ in messages:
            task_id = ids[(await self.fetch_one(broker=other)).body]
            assert list(await self.backend.get_groups([f"group_{task_id}"])) == [group(f"group_{task_id}", task_id)]
            assert list(await self.backend.get_plans([f"plan_{task_id}"])) == [plan(f"plan_{task_id}")]
        await sending

    async def test_submit_opens_a_group_only_where_no_entry_is(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        await self.backend.claim_group("group_a", "me", LONG)
        message = self.call("a")
        await self.joint.submit([pending(message)], [message], KEEP, groups=[group("group_a", message.id)])
        found = await self._group()
        assert (found.task_uuids, found.chord_triggered) == (("task_a",), True)

    async def test_a_repeated_submit_takes_back_no_progress(self) -> None:
        first, second = self.call("a"), self.call("b")
        opened = group("group_a", first.id, second.id)

        async def submit() -> None:
            states = [pending(first), pending(second), state("task_callback")]
            await self.joint.submit(states, [first, second], KEEP, groups=[opened], plans=[plan("plan_a")])

        await submit()
        await self._end(first.id)
        assert await self._finish("group_a", first.id) is Progress.WAITING
        assert await self.backend.add_members("group_a", ["task_c"])
        await submit()
        assert (await self._group()).task_uuids == (first.id, second.id, "task_c")
        await self._end(second.id, "task_c")
        await self.backend.begin([pending(first)])  # only the count knows that it has ended
        assert await self._finish("group_a", second.id) is Progress.COMPLETE
        await self.backend.mark_group_sent("group_a")
        await self._end("task_callback")
        await submit()
        assert await self._finish("group_a", second.id) is Progress.TRIGGERED
        assert await self.state("task_callback") is State.SUCCESS
        assert list(await self.backend.get_plans(["plan_a"])) == [plan("plan_a")]
        assert names(await self.fetch_until(2)) == ["a", "b"]
        assert await self.fetch_now() == []

    async def test_submitted_groups_and_plans_are_kept_as_long_as_asked(self) -> None:
        await self.joint.submit([], [], self.expiry, groups=[group("group_short")], plans=[plan("plan_short")])
        await self.joint.submit([], [], KEEP, groups=[group("group_long")], plans=[plan("plan_long")])
        await self.advance(self.expiry)

        async def are_gone() -> bool:
            groups, plans = await self.backend.get_groups(["group_short"]), await self.backend.get_plans(["plan_short"])
            return (list(groups), list(plans)) == ([None], [None])

        await self.until(are_gone)
        assert list(await self.backend.get_groups(["group_long"])) == [group("group_long")]
        assert list(await self.backend.get_plans(["plan_long"])) == [plan("plan_long")]

    async def test_submitted_groups_and_plans_for_later_are_kept_from_the_time_they_are_due(self) -> None:
        written, due = self.clock.monotonic(), self.now() + self.expiry
        groups, plans = [group("group_a", not_before=due)], [plan("plan_a", not_before=due)]
        await self.joint.submit([], [], self.expiry, groups=groups, plans=plans)
        await self.advance(self.expiry * 1.4)
        found = [*await self.backend.get_groups(["group_a"]), *await self.backend.get_plans(["plan_a"])]
        if self.clock.monotonic() - written < 2 * self.expiry:
            assert found == [group("group_a"), plan("plan_a")]
        await self.advance(self.expiry * 0.6)

        async def are_gone() -> bool:
            groups, plans = await self.backend.get_groups(["group_a"]), await self.backend.get_plans(["plan_a"])
            return [*groups, *plans] == [None, None]

        await self.until(are_gone)

    # settle: what an item records

    async def test_settle_records_the_ends_of_tasks_that_will_never_run(self) -> None:
        delivery, task_id = await self.taken()
        failed = state(task_id, State.FAILURE, error="why")
        ended = (
            state("task_b", State.FAILURE, name="b", error="☃ of a failed", created_at=SENT_AT),
            state("task_c", State.SUCCESS, results=(TaskResult(type="int64", value=3),)),
        )
        assert await self._settle(Settled(delivery, Ack(), state=failed, ended=ended)) == []
        assert list(await self.backend.get(["task_b", "task_c"])) == list(ended)
        await self.assert_done(delivery)

    async def test_ends_of_others_follow_the_rules_of_put(self) -> None:
        delivery, _ = await self.taken()
        done = state("task_a", State.SUCCESS, name="a", created_at=SENT_AT)
        await self.backend.put([done, state("task_b", State.PENDING, name="b", created_at=SENT_AT)])
        ended = (state("task_a", State.FAILURE, error="late"), state("task_b", State.FAILURE, error="why"))
        await self._settle(Settled(delivery, Ack(), ended=ended))
        assert list(await self.backend.get(["task_a", "task_b"])) == [
            done,
            state("task_b", State.FAILURE, name="b", error="why", created_at=SENT_AT),
        ]

    async def test_settle_opens_groups_only_where_no_entry_is(self) -> None:
        delivery, _ = await self.taken()
        await self.backend.open_groups([group("group_a", "task_a")])
        opens = (group("group_a", "task_late"), group("group_b", "task_d", "task_c"))
        assert await self._settle(Settled(delivery, Ack(), opens=opens)) == []
        assert list(await self.backend.get_groups(["group_a", "group_b"])) == [group("group_a", "task_a"), opens[1]]

    async def test_settle_keeps_a_family_alive(self) -> None:
        delivery, task_id = await self.taken()
        written = self.clock.monotonic()
        short = [state("task_first"), state("task_a"), state("task_b"), state("task_c"), state("task_stranger")]
        await self.joint.submit(
            short, [], self.expiry, groups=[group("group_a", "task_b")], plans=[plan("plan_a", ids=("task_c",))]
        )
        alive = ("task_first", "task_a", "group_a", "plan_a", "task_unknown")
        await self._settle(Settled(delivery, Ack(), state=state(task_id, State.SUCCESS), alive=alive))
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.2)
        await self.until_gone("task_stranger")
        if in_time:
            found = [await self.state(f"task_{name}") for name in ("first", "a", "b", "c")]
            assert found == [State.PENDING] * 4
            assert await self._group() == group("group_a", "task_b")
            assert list(await self.backend.get_plans(["plan_a"])) == [plan("plan_a", ids=("task_c",))]

    async def test_a_family_is_kept_as_long_as_asked(self) -> None:
        delivery, _ = await self.taken()
        await self.joint.submit([state("task_a"), state("task_b")], [], self.expiry)
        await self.backend.put([state("task_long")])
        await self.advance(self.expiry * 0.5)
        await self.joint.settle([Settled(delivery, Ack(), alive=("task_a", "task_b", "task_long"))], self.expiry)
        await self.advance(self.expiry)
        await self.until_gone("task_a")
        await self.until_gone("task_b")
        assert await self.state("task_long") is State.PENDING

    async def test_the_state_of_an_item_with_a_family_is_kept_no_shorter_than_it_was(self) -> None:
        delivery, task_id = await self.taken()
        await self.joint.submit([state("task_a")], [], self.expiry)
        item = Settled(delivery, Ack(), state=state(task_id, State.SUCCESS), alive=("task_a",))
        await self.joint.settle([item], self.expiry)
        await self.advance(self.expiry)
        await self.until_gone("task_a")
        assert await self.state(task_id) is State.SUCCESS

    async def test_a_family_is_kept_from_the_time_the_state_of_its_item_is_due(self) -> None:
        first, second = await self.taken(), await self.taken()
        written, due = self.clock.monotonic(), self.now() + self.expiry
        short = [state("task_a"), state("task_b"), state("task_c"), state("task_now")]
        await self.joint.submit(
            short, [], self.expiry, groups=[group("group_a", "task_b")], plans=[plan("plan_a", ids=("task_c",))]
        )
        retried = state(first[1], State.RETRY, not_before=due)
        items = [
            Settled(first[0], Ack(), state=retried, alive=("group_a", "plan_a", "task_a")),
            Settled(second[0], Ack(), state=state(second[1], State.SUCCESS), alive=("task_now",)),
        ]
        await self.joint.settle(items, self.expiry)
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.4)
        found = [await self.state(f"task_{name}") for name in "abc"]
        groups, plans = await self.backend.get_groups(["group_a"]), await self.backend.get_plans(["plan_a"])
        if in_time and self.clock.monotonic() - written < 2 * self.expiry:
            assert found == [State.PENDING] * 3
            assert [*groups, *plans] == [group("group_a", "task_b"), plan("plan_a", ids=("task_c",))]
        await self.until_gone("task_now")
        await self.advance(self.expiry * 0.6)
        for name in "abc":
            await self.until_gone(f"task_{name}")

    async def test_groups_for_later_that_settle_opens_are_kept_from_the_time_they_are_due(self) -> None:
        delivery, _ = await self.taken()
        written, due = self.clock.monotonic(), self.now() + self.expiry
        await self.joint.settle([Settled(delivery, Ack(), opens=(group("group_a", not_before=due),))], self.expiry)
        await self.advance(self.expiry * 1.4)
        found = list(await self.backend.get_groups(["group_a"]))
        if self.clock.monotonic() - written < 2 * self.expiry:
            assert found == [group("group_a")]
        await self.advance(self.expiry * 0.6)

        async def is_gone() -> bool:
            return list(await self.backend.get_groups(["group_a"])) == [None]

        await self.until(is_gone)

    async def test_groups_that_settle_makes_are_kept_as_long_as_asked(self) -> None:
        first, second = await self.taken(), await self.taken()
        short = Settled(first[0], Ack(), opens=(group("group_a", "task_a"),), end=GroupEnd("group_b"))
        await self.joint.settle([short], self.expiry)
        await self._settle(Settled(second[0], Ack(), opens=(group("group_c", "task_c"),), end=GroupEnd("group_d")))
        await self.advance(self.expiry)

        async def are_gone() -> bool:
            return list(await self.backend.get_groups(["group_a", "group_b"])) == [None, None]

        await self.until(are_gone)
        assert await self._group("group_c") == group("group_c", "task_c")
        assert (await self._group("group_d")).chord_triggered

    async def test_ends_that_settle_records_end_watches(self) -> None:
        first, second = await self.taken(), await self.taken()
        await self.backend.begin([state("task_b"), state("task_c")])
        await self.backend.open_groups([group("group_a", "task_x")])

        async def watch(task_id: str) -> list[State | None]:
            return [state_of(ending) async for _, ending in self.backend.watch([task_id])]

        watching = [asyncio.create_task(self.in_time(watch(task_id))) for task_id in ("task_b", "task_c")]
        await asyncio.sleep(0.02)
        end = GroupEnd("group_a", ended=(state("task_c", State.FAILURE),))
        await self._settle(
            Settled(first[0], Ack(), ended=(state("task_b", State.FAILURE),)), Settled(second[0], Ack(), end=end)
        )
        assert await asyncio.gather(*watching) == [[State.FAILURE], [State.FAILURE]]

    # settle: counting

    async def test_a_member_that_is_not_the_last_settles(self) -> None:
        first, second = await self._group_of(2)
        successor = self.call("successor")
        assert await self._settle(member_ends(first, publish=(successor,))) == []
        assert await self.state(first[1]) is State.SUCCESS
        (shown,) = await self.fetch_until(1)
        assert shown.body == successor.body
        await self.broker.ack([shown, second[0]])
        await self.assert_done(first[0])

    async def test_settle_counts_as_finish_members_does(self) -> None:
        members = await self._group_of(4)
        await self._settle(member_ends(members[0]))
        await self._end(members[1][1])
        assert await self._finish("group_a", members[1][1]) is Progress.WAITING
        await self.backend.forget([members[0][1], members[1][1]])  # only the count knows that they have ended
        await self._end(members[2][1])  # as another program would
        item = member_ends(members[3])
        assert await self._settle(item) == [Unsettled(item, Progress.COMPLETE)]
        assert await self._finish("group_a", members[3][1]) is Progress.COMPLETE

    async def test_the_last_member_comes_back_and_stays_ours_and_nothing_is_published(self) -> None:
        first, last = await self._group_of(2)
        await self._settle(member_ends(first))
        callback = self.call("callback")
        for verdict in (Ack(), Nack(), Nack(self.delay), Bury("reason", "error")):
            item = member_ends(last, verdict=verdict, publish=(callback,))
            assert await self._settle(item) == [Unsettled(item, Progress.COMPLETE)]
            assert list(await self.broker.extend([last[0]])) == []
        await self.advance(self.delay)
        assert await self.fetch_now() == []
        assert list(await self.inspector().dead(self.queue, 10)) == []
        assert not (await self._group()).chord_triggered

    async def test_what_an_item_records_stays_recorded_when_it_comes_back(self) -> None:
        (last,) = await self._group_of(1)
        successor = self.call("successor")
        item = member_ends(
            last,
            pending=(pending(successor),),
            publish=(successor,),
            ended=(state("task_b", State.FAILURE),),
            opens=(group("group_b", "task_c"),),
        )
        assert await self._settle(item) == [Unsettled(item, Progress.COMPLETE)]
        found = await self.backend.get([last[1], successor.id, "task_b"])
        assert [state_of(one) for one in found] == [State.SUCCESS, State.PENDING, State.FAILURE]
        assert await self._group("group_b") == group("group_b", "task_c")

    async def test_a_group_without_an_entry_comes_back_as_lost(self) -> None:
        taken = await self.taken()
        item = member_ends(taken, publish=(self.call("successor"),))
        for _ in range(2):
            assert await self._settle(item) == [Unsettled(item, Progress.LOST)]
        assert await self.state(taken[1]) is State.SUCCESS
        assert list(await self.broker.extend([taken[0]])) == []
        assert await self.fetch_now() == []
        assert list(await self.backend.get_groups(["group_a"])) == [None]

    async def test_a_member_of_a_triggered_group_settles(self) -> None:
        (member,) = await self._group_of(1)
        await self.backend.mark_group_sent("group_a")
        assert await self._settle(member_ends(member, publish=(self.call("successor"),))) == []
        assert names(await self.fetch_until(1)) == ["successor"]
        assert list(await self.broker.extend([member[0]])) == [member[0]]

    async def test_a_failed_member_counts_too(self) -> None:
        first, last = await self._group_of(2)
        assert await self._settle(member_ends(first, new=State.FAILURE)) == []
        item = member_ends(last, new=State.FAILURE)
        assert await self._settle(item) == [Unsettled(item, Progress.COMPLETE)]

    async def test_states_are_recorded_before_the_member_is_counted(self) -> None:
        taken = await self.taken()
        await self.backend.open_groups([group("group_a", taken[1], "task_b")])
        item = member_ends(taken, ended=(state("task_b", State.FAILURE),))
        assert await self._settle(item) == [Unsettled(item, Progress.COMPLETE)]

    async def test_groups_are_opened_before_the_member_is_counted(self) -> None:
        taken = await self.taken()
        item = member_ends(taken, opens=(group("group_a", taken[1], "task_b"),))
        assert await self._settle(item) == []
        await self._end("task_b")
        assert await self._finish("group_a", "task_b") is Progress.COMPLETE

    async def test_two_members_of_one_group_in_one_batch(self) -> None:
        first, second = await self._group_of(2)
        items = [member_ends(first), member_ends(second)]
        came_back = await self._settle(*items)
        assert Unsettled(items[1], Progress.COMPLETE) in came_back
        callback = self.call("callback")
        assert await self._settle(*(ends(one.item, callback) for one in came_back)) == []
        assert names(await self.fetch_until(1)) == ["callback"]
        assert await self.fetch_now() == []
        assert list(await self.broker.extend([first[0], second[0]])) == [first[0], second[0]]

    async def test_whoever_an_item_fails_counts_for_the_items_after_it(self) -> None:
        first, second, third = await self.taken(), await self.taken(), await self.taken()
        await self.backend.begin([state("task_a"), state("task_b")])
        await self.backend.open_groups([group("group_a", "task_a", "task_b", third[1]), group("group_b", "task_c")])
        end = GroupEnd("group_b", ended=(state("task_b", State.FAILURE),))
        batch = [
            Settled(first[0], Ack(), ended=(state("task_a", State.FAILURE),)),
            Settled(second[0], Ack(), end=end),
            member_ends(third),
        ]
        assert await self._settle(*batch) == [Unsettled(batch[2], Progress.COMPLETE)]

    async def test_an_item_that_comes_back_does_not_hold_up_the_others(self) -> None:
        first, second = await self.taken(), await self.taken()
        (member,) = await self._group_of(1)
        item = member_ends(member)
        batch = [
            Settled(first[0], Ack(), state=state(first[1], State.SUCCESS), publish=(self.call("x"),)),
            item,
            Settled(second[0], Ack(), state=state(second[1], State.SUCCESS), publish=(self.call("y"),)),
        ]
        assert await self._settle(*batch) == [Unsettled(item, Progress.COMPLETE)]
        assert names(await self.fetch_until(2)) == ["x", "y"]
        assert list(await self.broker.extend([first[0], member[0], second[0]])) == [first[0], second[0]]

    # settle: the end of a group

    async def test_an_end_sends_once_and_lets_go(self) -> None:
        first, last = await self._group_of(2)
        await self._settle(member_ends(first))
        callback = self.call("callback")
        (came_back,) = await self._settle(member_ends(last))
        assert await self._settle(ends(came_back.item, callback)) == []
        (shown,) = await self.fetch_until(1)
        assert shown.body == callback.body
        assert await self.state(callback.id) is State.PENDING
        assert (await self._group()).chord_triggered
        assert (await self._group()).task_uuids == (first[1], last[1])
        await self.broker.ack([shown])
        await self.assert_done(last[0])

    async def test_an_end_needs_no_complete_group(self) -> None:
        """The first failure ends a group whose callback must not run; the others find it over."""
        first, second, last = await self._group_of(3)
        word = self.call("word")
        failed = state(word.id, State.FAILURE, error="a member failed")
        end = GroupEnd("group_a", ended=(failed,), publish=(word,))
        assert await self._settle(member_ends(first, new=State.FAILURE, end=end)) == []
        assert names(await self.fetch_until(1)) == ["word"]
        assert list(await self.backend.get([word.id])) == [failed]
        assert await self._settle(member_ends(second), member_ends(last)) == []
        assert await self.fetch_now() == []
        assert list(await self.broker.extend([first[0], second[0], last[0]])) == [first[0], second[0], last[0]]

    async def test_an_end_needs_no_member(self) -> None:
        (member,) = await self._group_of(1)
        deadline = await self.taken()
        item = Settled(deadline[0], Ack(), end=GroupEnd("group_a", publish=(self.call("word"),)))
        assert await self._settle(item) == []
        assert names(await self.fetch_until(1)) == ["word"]
        assert await self._settle(member_ends(member)) == []

    async def test_an_end_of_a_triggered_group_does_nothing_but_the_item_settles(self) -> None:
        first, second = await self._group_of(2)
        await self._settle(ends(member_ends(first), self.call("callback")))
        await self.broker.ack(await self.fetch_until(1))
        late, own = self.call("late"), self.call("own")
        end = GroupEnd(
            "group_a", ended=(state("task_x", State.FAILURE),), pending=(pending(late),), publish=(self.call("word"),)
        )
        assert await self._settle(member_ends(second, end=end, publish=(own,))) == []
        (shown,) = await self.fetch_until(1)
        assert shown.body == own.body
        assert [await self.state(late.id), await self.state("task_x")] == [None, None]
        assert await self.state(second[1]) is State.SUCCESS
        await self.broker.ack([shown])
        await self.assert_done(second[0])

    async def test_a_claim_alone_does_not_keep_a_group_from_its_end(self) -> None:
        (member,) = await self._group_of(1)
        await self.backend.claim_group("group_a", "me", LONG)
        item = member_ends(member)
        assert await self._settle(item) == [Unsettled(item, Progress.COMPLETE)]
        assert await self._settle(ends(item, self.call("callback"))) == []
        assert names(await self.fetch_until(1)) == ["callback"]
        assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.SENT
        assert await self._finish("group_a", member[1]) is Progress.TRIGGERED

    async def test_an_end_of_what_was_marked_as_sent_sends_nothing(self) -> None:
        (member,) = await self._group_of(1)
        await self.backend.mark_group_sent("group_a")
        assert await self._settle(ends(member_ends(member), self.call("callback"))) == []
        assert await self.fetch_now() == []

    async def test_a_group_that_was_ended_nobody_can_claim(self) -> None:
        (member,) = await self._group_of(1)
        await self._settle(ends(member_ends(member), self.call("callback")))
        assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.SENT
        assert await self._finish("group_a", member[1]) is Progress.TRIGGERED
        assert not await self.backend.add_members("group_a", ["task_b"])

    async def test_an_end_of_a_group_without_an_entry_makes_one_that_is_triggered(self) -> None:
        first, second = await self.taken(), await self.taken()
        (came_back,) = await self._settle(member_ends(first))
        assert await self._settle(ends(came_back.item, self.call("callback"))) == []
        assert names(await self.fetch_until(1)) == ["callback"]
        found = await self._group()
        assert (found.task_uuids or (), found.chord_triggered) == ((), True)
        assert await self._settle(ends(member_ends(second), self.call("again"))) == []
        assert await self.fetch_now() == []
        assert list(await self.broker.extend([first[0], second[0]])) == [first[0], second[0]]

    async def test_what_an_end_records_follows_the_rules(self) -> None:
        (member,) = await self._group_of(1)
        done = state("task_done", State.SUCCESS, name="kept")
        started = state("task_started", State.STARTED, name="kept")
        await self.backend.put([done, started, state("task_waiting", name="waiting", created_at=SENT_AT)])
        end = GroupEnd(
            "group_a",
            ended=(state("task_done", State.FAILURE), state("task_waiting", State.FAILURE, error="why")),
            pending=(state("task_started"), state("task_fresh")),
        )
        assert await self._settle(member_ends(member, end=end)) == []
        found = await self.backend.get(["task_done", "task_started", "task_waiting", "task_fresh"])
        waiting = state("task_waiting", State.FAILURE, name="waiting", error="why", created_at=SENT_AT)
        assert list(found) == [done, started, waiting, state("task_fresh")]

    async def test_messages_of_an_end_go_before_those_of_its_item(self) -> None:
        (member,) = await self._group_of(1)
        end = GroupEnd("group_a", publish=(self.call("a"), self.call("b")))
        await self._settle(member_ends(member, end=end, publish=(self.call("c"), self.call("d"))))
        assert names(await self.fetch_until(4)) == ["a", "b", "c", "d"]

    async def test_the_verdict_of_an_item_with_an_end_is_carried_out(self) -> None:
        buried, given_back = await self._group_of(2)
        bury = member_ends(buried, new=State.FAILURE, verdict=Bury("max_deliveries", "seen ☃ times"))
        await self._settle(ends(bury, self.call("word")))
        await self.broker.ack(await self.fetch_until(1))
        (entry,) = await self.inspector().dead(self.queue, 10)
        assert (entry.body, entry.reason) == (buried[0].body, "max_deliveries")
        await self._settle(ends(member_ends(given_back, verdict=Nack()), self.call("word")))
        assert [one.body for one in await self.fetch_until(1)] == [given_back[0].body]

    async def test_an_end_adds_no_second_copy_of_what_was_published_before(self) -> None:
        (member,) = await self._group_of(1)
        callback = self.call("callback")
        await self.broker.publish([callback])
        await self.broker.ack(await self.fetch_until(1))
        await self._settle(ends(member_ends(member), callback))
        assert (await self._group()).chord_triggered
        assert await self.fetch_now() == []

    async def test_a_waiting_fetch_takes_what_an_end_publishes(self) -> None:
        (member,) = await self._group_of(1)
        other = await self.another_broker()
        waiting = asyncio.create_task(self.fetch_until(1, broker=other, queue=self.other_queue))
        await asyncio.sleep(0.01)
        callback = self.message("callback", queue=self.other_queue)
        await self._settle(ends(member_ends(member), callback))
        assert names(await waiting) == ["callback"]

    # settle: only what is ours, and once

    async def test_what_is_no_longer_ours_changes_no_group_and_does_not_come_back(self) -> None:
        first, last = await self._group_of(2)
        await self._settle(member_ends(first))
        await self.joint.submit([state("task_alive"), state("task_other")], [], self.expiry)
        await self.broker.ack([last[0]])
        word = self.call("word")
        item = member_ends(
            last,
            pending=(pending(word),),
            publish=(word,),
            ended=(state("task_b", State.FAILURE),),
            opens=(group("group_b", "task_b"),),
            alive=("task_alive", "task_other"),
        )
        assert await self._settle(item) == []
        assert await self._settle(ends(item, self.call("callback"))) == []
        found = [await self.state(task_id) for task_id in (last[1], word.id, "task_b")]
        assert found == [State.PENDING, None, None]
        assert await self._group() == group("group_a", first[1], last[1])
        assert list(await self.backend.get_groups(["group_b"])) == [None]
        assert await self.fetch_now() == []
        assert await self._finish("group_a", first[1]) is Progress.WAITING
        await self.advance(self.expiry)
        await self.until_gone("task_alive")
        await self.until_gone("task_other")

    async def test_an_item_that_came_back_and_was_lost_meanwhile_ends_nothing(self) -> None:
        (member,) = await self._group_of(1)
        (came_back,) = await self._settle(member_ends(member))
        await self.broker.nack([member[0]])
        (again,) = await self.fetch_until(1)
        assert await self._settle(ends(came_back.item, self.call("callback"))) == []
        assert not (await self._group()).chord_triggered
        assert await self.fetch_now() == []
        assert list(await self.broker.extend([again])) == []

    async def test_a_settle_that_is_repeated_after_success_changes_nothing(self) -> None:
        first, second, third = await self._group_of(3)
        batch = [
            member_ends(first),
            member_ends(second, ended=(state("task_x", State.FAILURE),), opens=(group("group_b", "task_x"),)),
            member_ends(third, end=GroupEnd("group_a", publish=(self.message("callback"),))),
        ]
        assert await self._settle(*batch) == []
        await self.broker.ack(await self.fetch_until(1))
        await self.backend.forget(["group_a", "group_b", "task_x"])
        assert await self._settle(*batch) == []
        assert list(await self.backend.get_groups(["group_a", "group_b"])) == [None, None]
        assert await self.state("task_x") is None
        assert await self.fetch_now() == []

    async def test_a_settle_that_is_repeated_gives_back_what_came_back(self) -> None:
        first, last = await self._group_of(2)
        done, item = member_ends(first), member_ends(last)
        expected = [Unsettled(item, Progress.COMPLETE)]
        assert [one for one in await self._settle(done, item) if one.item is not done] == expected
        assert [one for one in await self._settle(done, item) if one.item is not done] == expected
        assert list(await self.broker.extend([last[0]])) == []

    async def test_of_20_racing_members_one_ends_the_group(self) -> None:
        twins = [self.joint, *[await self.opened(self.joint.twin()) for _ in range(3)]]
        members = await self._group_of(RACERS)
        callbacks = [self.message("callback") for _ in members]  # without tokens: the group itself says it was done

        async def settle(number: int) -> int:
            twin = twins[number % len(twins)]
            left = await twin.settle([member_ends(members[number])], KEEP)
            for one in left:
                assert one.progress is Progress.COMPLETE
            assert list(await twin.settle([ends(one.item, callbacks[number]) for one in left], KEEP)) == []
            return len(left)

        assert sum(await asyncio.gather(*map(settle, range(RACERS)))) >= 1
        assert names(await self.fetch_until(1)) == ["callback"]
        assert await self.fetch_now() == []
        assert len(await self.broker.extend([delivery for delivery, _ in members])) == RACERS

    async def test_of_racing_ends_one_is_applied(self) -> None:
        twins = [self.joint, *[await self.opened(self.joint.twin()) for _ in range(3)]]
        members = await self._group_of(len(twins))
        await asyncio.gather(
            *(
                twin.settle([ends(member_ends(member), self.message("word"))], KEEP)
                for twin, member in zip(twins, members, strict=True)
            )
        )
        assert names(await self.fetch_until(1)) == ["word"]
        assert await self.fetch_now() == []

    async def test_racing_settles_of_one_end_apply_it_once(self) -> None:
        twins = [self.joint, *[await self.opened(self.joint.twin()) for _ in range(3)]]
        (member,) = await self._group_of(1)
        item = ends(member_ends(member), self.message("callback"))
        await asyncio.gather(*(twin.settle([item], KEEP) for twin in twins))
        assert names(await self.fetch_until(1)) == ["callback"]
        assert await self.fetch_now() == []

    # helpers

    async def _settle(self, *batch: Settled) -> list[Unsettled]:
        return list(await self.joint.settle(batch, KEEP))

    async def _group_of(self, size: int) -> list[Taken]:
        """``group_a`` with so many members, all of which this worker took."""
        messages = [self.call(f"m{number}") for number in range(size)]
        opened = group("group_a", *(message.id for message in messages))
        await self.joint.submit([pending(message) for message in messages], messages, KEEP, groups=[opened])
        taken = {delivery.body: delivery for delivery in await self.fetch_until(size)}
        return [(taken[message.body], message.id) for message in messages]

    async def _group(self, group_id: str = "group_a") -> GroupMeta:
        (found,) = await self.backend.get_groups([group_id])
        assert found is not None
        return found

    async def _end(self, *task_ids: str) -> None:
        await self.backend.put([state(task_id, State.SUCCESS) for task_id in task_ids])

    async def _finish(self, group_id: str, task_id: str) -> Progress:
        (progress,) = await self.backend.finish_members([Member(group_id, task_id)])
        return progress


def member_ends(
    taken: Taken,
    *,
    new: State = State.SUCCESS,
    verdict: Verdict | None = None,
    pending: tuple[TaskState, ...] = (),
    publish: tuple[Message, ...] = (),
    ended: tuple[TaskState, ...] = (),
    opens: tuple[GroupMeta, ...] = (),
    alive: tuple[str, ...] = (),
    end: GroupEnd | None = None,
) -> Settled:
    """The end of a task that is a member of ``group_a``."""
    delivery, task_id = taken
    return Settled(
        delivery,
        verdict or Ack(),
        state=state(task_id, new),
        pending=pending,
        publish=publish,
        ended=ended,
        opens=opens,
        member=Member("group_a", task_id),
        end=end,
        alive=alive,
    )


def ends(item: Settled, callback: Message) -> Settled:
    """The same item, now with what follows ``group_a``."""
    return replace(item, end=GroupEnd("group_a", pending=(pending(callback),), publish=(callback,)))
