"""What is true of every backend's groups and plans: those sentences of ``asyncqueue.backends.base``, as tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import permutations

import pytest

from asyncqueue.backends.base import Backend, GroupClaim, Member, Progress
from asyncqueue.errors import EntryTooLarge
from asyncqueue.signature import Arg, Plan, Signature
from asyncqueue.state import GroupMeta, State
from asyncqueue.testing.suite import KEPT, BackendSuite, state

SENT_AT = 1_735_787_045_123_456_789
LONG = 600.0
BATCH = 500
MANY = 2000
RACERS = 20


class GroupContract(BackendSuite):
    """Subclass it, and say how to make the backend."""

    claim_ttl: float = 0.5
    """How long (seconds) a claim holds in the tests of its end. A real service really waits that long."""

    # the instance

    async def test_verbs_raise_unavailable_when_the_service_does_not_answer(self) -> None:
        backend = await self.make_unreachable()
        await self.raises_unavailable(
            [
                lambda: backend.open_groups([group("group_a", "task_a")]),
                lambda: backend.get_groups(["group_a"]),
                lambda: backend.finish_members([Member("group_a", "task_a")]),
                lambda: backend.add_members("group_a", ["task_b"]),
                lambda: backend.claim_group("group_a", "owner", LONG),
                lambda: backend.mark_group_sent("group_a"),
                lambda: backend.put_plans([plan("plan_a")]),
                lambda: backend.get_plans(["plan_a"]),
                lambda: backend.touch([["task_a"]]),
            ]
        )
        await backend.close()

    async def test_every_verb_takes_an_empty_batch(self) -> None:
        await self.backend.open_groups([])
        assert list(await self.backend.get_groups([])) == []
        assert list(await self.backend.finish_members([])) == []
        await self.backend.put_plans([])
        assert list(await self.backend.get_plans([])) == []
        await self.backend.touch([])
        await self.backend.touch([[], []])

    async def test_every_verb_takes_a_batch_of_500(self) -> None:
        numbers = range(BATCH)
        groups = [group(f"group_{number}", f"task_{number}") for number in numbers]
        plans = [plan(f"plan_{number}", ids=(f"task_{number}",)) for number in numbers]
        ids = [each for number in numbers for each in (f"task_{number}", f"group_{number}", f"plan_{number}")]
        await self.backend.open_groups(groups)
        await self.backend.put_plans(plans)
        assert list(await self.backend.get_groups([one.group_uuid for one in groups])) == groups
        assert list(await self.backend.get_plans([one.plan_id for one in plans])) == plans
        await self.backend.put([state(f"task_{number}", State.SUCCESS) for number in numbers])
        members = [Member(f"group_{number}", f"task_{number}") for number in numbers]
        assert list(await self.backend.finish_members(members)) == [Progress.COMPLETE] * BATCH
        await self.backend.touch([[each] for each in ids])
        await self.backend.forget(ids)
        assert list(await self.backend.get_groups([one.group_uuid for one in groups])) == [None] * BATCH
        assert list(await self.backend.get_plans([one.plan_id for one in plans])) == [None] * BATCH

    # open_groups and get_groups

    async def test_a_group_comes_back_whole(self) -> None:
        for number, members in enumerate([("task_b", "task_a", "task_c"), ("task_a",), ()]):
            opened = group(f"group_{number}", *members)
            await self.backend.open_groups([opened])
            assert list(await self.backend.get_groups([opened.group_uuid])) == [opened]

    async def test_groups_come_in_the_order_asked_with_none_where_there_is_no_entry(self) -> None:
        first, second = group("group_a", "task_a"), group("group_b", "task_b")
        await self.backend.open_groups([first, second])
        asked = ["group_b", "group_x", "group_a", "group_b", "group_y"]
        assert list(await self.backend.get_groups(asked)) == [second, None, first, second, None]

    async def test_what_one_instance_opened_another_reads(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        assert await self._members(backend=await self.another_backend()) == ("task_a",)

    async def test_a_group_is_opened_only_where_no_entry_is(self) -> None:
        first = group("group_a", "task_a")
        await self.backend.open_groups([first, group("group_a", "task_x")])
        await self.backend.open_groups([group("group_a", "task_y", "task_z"), group("group_b", "task_b")])
        assert list(await self.backend.get_groups(["group_a", "group_b"])) == [first, group("group_b", "task_b")]

    async def test_opening_again_takes_back_no_progress(self) -> None:
        opened = group("group_a", "task_a", "task_b")
        await self.backend.open_groups([opened])
        await self._end("task_a")
        assert await self._finish("task_a") == [Progress.WAITING]
        assert await self.backend.add_members("group_a", ["task_c"])
        await self.backend.open_groups([opened])
        assert await self._members() == ("task_a", "task_b", "task_c")
        await self._end("task_b", "task_c")
        await self.backend.forget(["task_a"])  # only the count knows that it has ended
        assert (await self._finish("task_b", "task_c"))[-1] is Progress.COMPLETE
        await self.backend.claim_group("group_a", "owner", LONG)
        await self.backend.open_groups([opened])
        assert await self._is_triggered()
        await self.backend.mark_group_sent("group_a")
        await self.backend.open_groups([opened])
        assert await self._finish("task_b") == [Progress.TRIGGERED]

    async def test_groups_do_not_concern_each_other(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b"), group("group_b", "task_c", "task_d")])
        await self._end("task_a", "task_c", "task_d")
        answers = await self.backend.finish_members(
            [Member("group_a", "task_a"), Member("group_b", "task_c"), Member("group_b", "task_d")]
        )
        assert (answers[0], answers[2]) == (Progress.WAITING, Progress.COMPLETE)
        await self.backend.claim_group("group_b", "owner", LONG)
        assert not await self._is_triggered("group_a")

    # finish_members

    async def test_whoever_finishes_last_is_told_complete_in_whatever_order(self) -> None:
        tasks = ("a", "b", "c")
        for number, order in enumerate(permutations(tasks)):
            group_id = f"group_{number}"
            ids = {task: f"task_{number}_{task}" for task in tasks}
            await self.backend.open_groups([group(group_id, *ids.values())])
            answers = []
            for task in order:
                await self._end(ids[task])
                answers += await self._finish(ids[task], group_id=group_id)
            assert answers == [Progress.WAITING, Progress.WAITING, Progress.COMPLETE]

    async def test_a_group_of_one_is_complete_with_it(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        await self._end("task_a")
        assert await self._finish("task_a") == [Progress.COMPLETE]

    async def test_a_failed_member_has_ended_as_well(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b")])
        await self.backend.put([state("task_a", State.FAILURE)])
        assert await self._finish("task_a") == [Progress.WAITING]
        await self.backend.put([state("task_b", State.FAILURE)])
        assert await self._finish("task_b") == [Progress.COMPLETE]

    async def test_the_same_member_twice_counts_once(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b", "task_c")])
        await self._end("task_a")
        assert await self._finish("task_a", "task_a") == [Progress.WAITING] * 2
        assert await self._finish("task_a") == [Progress.WAITING]
        await self._end("task_b")
        assert await self._finish("task_b") == [Progress.WAITING]

    async def test_who_was_counted_stays_counted(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b", "task_c")])
        await self._end("task_a", "task_b")
        await self._finish("task_a", "task_b")
        await self.backend.begin([state("task_a")])
        await self.backend.forget(["task_b"])
        await self._end("task_c")
        assert await self._finish("task_c") == [Progress.COMPLETE]

    async def test_who_is_no_member_counts_for_nothing(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        await self._end("task_x")
        assert await self._finish("task_x") == [Progress.WAITING]
        await self._end("task_a")
        assert await self._finish("task_x") == [Progress.COMPLETE]

    async def test_a_members_end_is_the_callers_word(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        assert await self._finish("task_a") == [Progress.COMPLETE]

    async def test_members_finished_together_make_it_complete(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b", "task_c")])
        await self._end("task_a", "task_b", "task_c")
        assert (await self._finish("task_a", "task_b", "task_c"))[-1] is Progress.COMPLETE

    async def test_progress_is_told_in_the_order_asked(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b"), group("group_b", "task_c")])
        await self.backend.open_groups([group("group_c", "task_d")])
        await self.backend.mark_group_sent("group_c")
        await self._end("task_a", "task_c", "task_d")
        members = [("group_c", "task_d"), ("group_x", "task_a"), ("group_a", "task_a"), ("group_b", "task_c")]
        assert list(await self.backend.finish_members([Member(*member) for member in members])) == [
            Progress.TRIGGERED,
            Progress.LOST,
            Progress.WAITING,
            Progress.COMPLETE,
        ]

    async def test_a_member_whose_end_others_recorded_counts_as_well(self) -> None:
        """Nobody calls ``finish_members`` for what another program's worker has run."""
        await self.backend.open_groups([group("group_a", "task_a", "task_b", "task_c")])
        await self._end("task_a")
        assert await self._finish("task_a") == [Progress.WAITING]
        other = await self.another_backend()
        await other.put([state("task_c", State.FAILURE)])
        await self._end("task_b")
        assert await self._finish("task_b") == [Progress.COMPLETE]

    async def test_a_group_is_complete_with_its_first_count_where_all_have_ended(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b", "task_c")])
        await self._end("task_a", "task_b", "task_c")
        assert await self._finish("task_b") == [Progress.COMPLETE]

    async def test_a_member_that_has_not_ended_is_waited_for(self) -> None:
        others = {f"task_{new}": new for new in State if not new.is_final}
        for task_id, new in others.items():
            await self.backend.open_groups([group(f"group_{task_id}", "task_a", task_id, "task_b")])
            await self.backend.put([state(task_id, new)])
        await self.backend.open_groups([group("group_task_unknown", "task_a", "task_unknown", "task_b")])
        await self._end("task_a", "task_b")
        for task_id in (*others, "task_unknown"):
            answers = await self._finish("task_a", "task_b", "task_a", group_id=f"group_{task_id}")
            assert answers == [Progress.WAITING] * 3

    async def test_complete_is_told_until_what_follows_is_sent(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b")])
        await self._end("task_a", "task_b")
        await self._finish("task_a", "task_b")
        other = await self.another_backend()
        for backend in (self.backend, other, self.backend):
            assert await self._finish("task_b", backend=backend) == [Progress.COMPLETE]
            assert await self._finish("task_a", backend=backend) == [Progress.COMPLETE]
        await self.backend.claim_group("group_a", "owner", LONG)  # the owner may die before it sends
        for backend in (self.backend, other):
            assert await self._finish("task_a", backend=backend) == [Progress.COMPLETE]
        await self.backend.mark_group_sent("group_a")
        for backend in (self.backend, other):
            assert await self._finish("task_a", backend=backend) == [Progress.TRIGGERED]

    async def test_a_group_that_was_claimed_early_waits_until_what_follows_is_sent(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b", "task_c")])
        await self.backend.claim_group("group_a", "owner", LONG)
        await self._end("task_a")
        assert await self._finish("task_a") == [Progress.WAITING]
        await self.backend.mark_group_sent("group_a")
        await self._end("task_b", "task_c")
        assert await self._finish("task_b", "task_c") == [Progress.TRIGGERED] * 2

    async def test_a_group_that_another_program_triggered_is_triggered(self) -> None:
        opened = group("group_a", "task_a").model_copy(update={"chord_triggered": True})
        await self.backend.open_groups([opened])
        await self._end("task_a")
        assert await self._finish("task_a") == [Progress.TRIGGERED]
        assert list(await self.backend.get_groups(["group_a"])) == [opened]

    async def test_a_group_without_an_entry_is_lost(self) -> None:
        await self._end("task_a")
        assert await self._finish("task_a") == [Progress.LOST]
        assert list(await self.backend.get_groups(["group_a"])) == [None]

    async def test_of_20_racing_finishers_one_at_least_is_told_complete(self) -> None:
        others = [await self.another_backend() for _ in range(3)]
        backends = [self.backend, *others]
        for round_number in range(5):
            group_id = f"group_{round_number}"
            tasks = [f"task_{round_number}_{number}" for number in range(RACERS)]
            await self.backend.begin([state(task_id) for task_id in tasks])
            await self.backend.open_groups([group(group_id, *tasks)])

            async def finish(number: int, group_id: str = group_id, tasks: Sequence[str] = tasks) -> Progress:
                backend = backends[number % len(backends)]
                await backend.put([state(tasks[number], State.SUCCESS)])
                (progress,) = await self._finish(tasks[number], group_id=group_id, backend=backend)
                return progress

            answers = await asyncio.gather(*map(finish, range(RACERS)))
            assert Progress.COMPLETE in answers
            assert set(answers) <= {Progress.WAITING, Progress.COMPLETE}

    async def test_a_group_of_2000_is_counted_down(self) -> None:
        tasks = [f"task_{number}" for number in range(MANY)]
        await self.backend.open_groups([group("group_a", *tasks)])
        answers: list[Progress] = []
        for start in range(0, MANY, BATCH):
            some = tasks[start : start + BATCH]
            await self._end(*some)
            answers += await self._finish(*some)
        assert answers[: MANY - BATCH] == [Progress.WAITING] * (MANY - BATCH)
        assert answers[-1] is Progress.COMPLETE
        assert await self._members() == tuple(tasks)

    # add_members

    async def test_members_are_appended_in_the_order_given(self) -> None:
        await self.backend.open_groups([group("group_a", "task_b", "task_a")])
        assert await self.backend.add_members("group_a", ["task_d", "task_c"])
        assert await self.backend.add_members("group_a", ["task_0"])
        assert await self.backend.add_members("group_a", [])
        expected = group("group_a", "task_b", "task_a", "task_d", "task_c", "task_0")
        assert list(await self.backend.get_groups(["group_a"])) == [expected]

    async def test_who_is_a_member_already_is_not_added_again(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b")])
        for _ in range(2):
            assert await self.backend.add_members("group_a", ["task_c", "task_a", "task_c"])
            assert await self._members() == ("task_a", "task_b", "task_c")

    async def test_a_member_that_has_ended_is_not_waited_for_again(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b")])
        await self._end("task_a")
        await self._finish("task_a")
        await self.backend.begin([state("task_a")])
        assert await self.backend.add_members("group_a", ["task_a"])
        await self._end("task_b")
        assert await self._finish("task_b") == [Progress.COMPLETE]

    async def test_a_group_waits_for_members_that_were_added_before_the_first_count(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        assert await self.backend.add_members("group_a", ["task_b"])
        await self._end("task_a")
        assert await self._finish("task_a") == [Progress.WAITING]
        await self._end("task_b")
        assert await self._finish("task_b") == [Progress.COMPLETE]

    async def test_a_group_that_was_down_to_one_waits_for_the_added(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b")])
        await self._end("task_a")
        assert await self._finish("task_a") == [Progress.WAITING]
        assert await self.backend.add_members("group_a", ["task_c", "task_d"])
        await self._end("task_b")
        assert await self._finish("task_b") == [Progress.WAITING]
        await self._end("task_d")
        assert await self._finish("task_d") == [Progress.WAITING]
        await self._end("task_c")
        assert await self._finish("task_c") == [Progress.COMPLETE]

    async def test_nobody_is_added_to_a_group_that_is_complete(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a"), group("group_empty")])
        await self._end("task_a")
        assert await self._finish("task_a") == [Progress.COMPLETE]
        for group_id, members in (("group_a", ("task_a",)), ("group_empty", ())):
            assert not await self.backend.add_members(group_id, ["task_b"])
            assert await self._members(group_id) == members
        assert await self._finish("task_a") == [Progress.COMPLETE]

    async def test_nobody_is_added_to_a_group_that_is_claimed_or_triggered(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        await self.backend.claim_group("group_a", "owner", LONG)
        assert not await self.backend.add_members("group_a", ["task_b"])
        await self.backend.mark_group_sent("group_a")
        assert not await self.backend.add_members("group_a", ["task_b"])
        assert await self._members() == ("task_a",)

    async def test_nobody_is_added_to_a_group_without_an_entry(self) -> None:
        assert not await self.backend.add_members("group_a", ["task_b"])
        assert list(await self.backend.get_groups(["group_a"])) == [None]

    async def test_racing_additions_are_all_there(self) -> None:
        others = [await self.another_backend() for _ in range(3)]
        await self.backend.open_groups([group("group_a", "task_a")])
        await asyncio.gather(
            *(
                backend.add_members("group_a", [f"task_{number}"])
                for number, backend in enumerate([self.backend, *others] * 5)
            )
        )
        assert set(await self._members()) == {"task_a", *(f"task_{number}" for number in range(20))}

    # claim_group and mark_group_sent

    async def test_a_claim_is_one_owners(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        other = await self.another_backend()
        assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.MINE
        assert await other.claim_group("group_a", "you", LONG) is GroupClaim.TAKEN
        assert await self.backend.claim_group("group_a", "you", LONG) is GroupClaim.TAKEN
        assert await other.claim_group("group_a", "me", LONG) is GroupClaim.MINE

    async def test_other_programs_see_a_claimed_group_as_triggered(self) -> None:
        await self.backend.open_groups([group("group_a", "task_b", "task_a")])
        assert not await self._is_triggered()
        await self.backend.claim_group("group_a", "me", LONG)
        triggered = group("group_a", "task_b", "task_a").model_copy(update={"chord_triggered": True})
        assert list(await self.backend.get_groups(["group_a"])) == [triggered]

    async def test_a_claim_ends_with_its_time(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        taken = self.clock.monotonic()
        assert await self.backend.claim_group("group_a", "me", self.claim_ttl) is GroupClaim.MINE
        other = await self.another_backend()
        early = await other.claim_group("group_a", "you", LONG)
        assert early is GroupClaim.TAKEN or self.clock.monotonic() - taken >= self.claim_ttl
        await self.advance(self.claim_ttl)
        await self._until_claimed("you", other)
        assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.TAKEN
        assert await self._is_triggered()

    async def test_a_claim_of_the_same_owner_starts_its_time_anew(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        await self.backend.claim_group("group_a", "me", self.claim_ttl)
        assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.MINE
        await self.advance(self.claim_ttl * 1.2)
        assert await self.backend.claim_group("group_a", "you", LONG) is GroupClaim.TAKEN

    async def test_of_20_racing_claimers_one_gets_the_group(self) -> None:
        backends = [self.backend, *[await self.another_backend() for _ in range(3)]] * 5
        for number in range(5):
            group_id = f"group_{number}"
            if number % 2:  # of the others an entry is made
                await self.backend.open_groups([group(group_id, "task_a")])
            claims = await asyncio.gather(
                *(backend.claim_group(group_id, f"owner-{index}", LONG) for index, backend in enumerate(backends))
            )
            assert sorted(claim.value for claim in claims) == ["mine"] + ["taken"] * (RACERS - 1)

    async def test_of_20_who_race_for_an_ended_claim_one_gets_the_group(self) -> None:
        backends = [self.backend, *[await self.another_backend() for _ in range(3)]] * 5
        await self.backend.open_groups([group("group_a", "task_a")])
        await self.backend.claim_group("group_a", "dead", self.claim_ttl)
        await self.advance(self.claim_ttl * 1.2)
        claims = await asyncio.gather(
            *(backend.claim_group("group_a", f"owner-{index}", LONG) for index, backend in enumerate(backends))
        )
        assert sorted(claim.value for claim in claims) == ["mine"] + ["taken"] * (RACERS - 1)

    async def test_what_follows_a_group_is_sent_once_however_its_members_race(self) -> None:
        backends = [self.backend, *[await self.another_backend() for _ in range(3)]]
        for round_number in range(3):
            group_id = f"group_{round_number}"
            tasks = [f"task_{round_number}_{number}" for number in range(RACERS)]
            await self.backend.open_groups([group(group_id, *tasks)])
            sent: list[str] = []

            async def end(number: int, group_id: str, task_id: str, sent: list[str]) -> None:
                backend = backends[number % len(backends)]
                await backend.put([state(task_id, State.SUCCESS)])
                progress = [Progress.BUSY]
                while progress == [Progress.BUSY]:
                    progress = await self._finish(task_id, group_id=group_id, backend=backend)
                if progress == [Progress.COMPLETE]:
                    claim = GroupClaim.BUSY
                    while claim is GroupClaim.BUSY:
                        claim = await backend.claim_group(group_id, task_id, LONG)
                    if claim is GroupClaim.MINE:
                        sent.append(task_id)
                        await backend.mark_group_sent(group_id)

            ends = (end(number, group_id, task_id, sent) for number, task_id in enumerate(tasks))
            await self.in_time(asyncio.gather(*ends))
            assert len(sent) == 1
            assert await self._finish(tasks[0], group_id=group_id) == [Progress.TRIGGERED]

    async def test_what_was_marked_as_sent_nobody_can_claim(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        await self.backend.claim_group("group_a", "me", self.claim_ttl)
        other = await self.another_backend()
        for _ in range(2):
            await self.backend.mark_group_sent("group_a")
            assert await other.claim_group("group_a", "you", LONG) is GroupClaim.SENT
            assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.SENT
        await self.advance(self.claim_ttl * 1.2)
        assert await other.claim_group("group_a", "you", LONG) is GroupClaim.SENT

    async def test_a_mark_needs_no_claim(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b")])
        await self.backend.mark_group_sent("group_a")
        await self._end("task_a", "task_b")
        assert await self._finish("task_a", "task_b") == [Progress.TRIGGERED] * 2
        assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.SENT

    async def test_a_mark_needs_no_entry(self) -> None:
        await self.backend.mark_group_sent("group_a")
        assert (await self._members(), await self._is_triggered()) == ((), True)
        assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.SENT

    async def test_what_another_program_triggered_is_sent(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a").model_copy(update={"chord_triggered": True})])
        for _ in range(2):
            assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.SENT

    async def test_a_claim_of_a_group_without_an_entry_makes_one_that_has_no_members(self) -> None:
        assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.MINE
        assert await self.backend.claim_group("group_a", "you", LONG) is GroupClaim.TAKEN
        assert await self._members() == ()
        assert await self._is_triggered()
        await self.backend.open_groups([group("group_a", "task_a")])
        assert await self._members() == ()
        assert not await self.backend.add_members("group_a", ["task_a"])
        await self.backend.mark_group_sent("group_a")
        assert await self.backend.claim_group("group_a", "you", LONG) is GroupClaim.SENT
        assert await self._finish("task_a") == [Progress.TRIGGERED]

    # plans

    async def test_a_plan_comes_back_whole(self) -> None:
        inner = Signature(uuid="task_inner", name="inner ☃", args=(Arg(type="string", value='line\n"two" <&> \u2028'),))
        whole = Plan(
            plan_id="plan_a",
            signatures=(
                Signature(uuid="task_a", name="a", on_success=(inner,), headers={"aq-plan": "plan_b"}, args=()),
                Signature(uuid="task_b", name="b", chord_callback=inner, group_uuid="group_a", group_task_count=1),
            ),
            ids=("task_a", "task_inner", "task_b", "group_a", "plan_b"),
        )
        empty = Plan("plan_empty", (), ())
        await self.backend.put_plans([whole, empty])
        assert list(await self.backend.get_plans(["plan_a", "plan_empty"])) == [whole, empty]

    async def test_plans_come_in_the_order_asked_with_none_where_there_is_no_entry(self) -> None:
        first, second = plan("plan_a"), plan("plan_b")
        await self.backend.put_plans([first, second])
        other = await self.another_backend()
        asked = ["plan_b", "plan_x", "plan_a", "plan_b", "plan_y"]
        assert list(await other.get_plans(asked)) == [second, None, first, second, None]

    async def test_a_plan_may_be_bigger_than_a_message(self) -> None:
        text = Arg(type="string", value="x" * 100_000)
        big = Plan(
            "plan_a",
            tuple(Signature(uuid=f"task_{number}", name="big", args=(text,)) for number in range(20)),
            tuple(f"task_{number}" for number in range(20)),
        )
        await self.backend.put_plans([big])
        assert list(await self.backend.get_plans(["plan_a"])) == [big]

    async def test_of_a_plan_the_last_write_wins(self) -> None:
        await self.backend.put_plans([plan("plan_a", ids=("task_old",)), plan("plan_b")])
        for _ in range(2):
            await self.backend.put_plans([plan("plan_a", ids=("task_new",))])
            assert list(await self.backend.get_plans(["plan_a"])) == [plan("plan_a", ids=("task_new",))]

    async def test_a_plan_over_the_size_limit_is_named_and_nothing_is_written(self) -> None:
        text = Arg(type="string", value=self.over_the_limit())
        big = Plan("plan_big", (Signature(uuid="task_a", name="big", args=(text,)),), ("task_a",))
        for batch in ([big], [plan("plan_a"), big], [big, plan("plan_a")]):
            with pytest.raises(EntryTooLarge) as raised:
                await self.backend.put_plans(batch)
            self.assert_names(raised.value, "plan_big")
            assert list(await self.backend.get_plans(["plan_a", "plan_big"])) == [None, None]

    async def test_a_group_over_the_size_limit_is_named_and_nothing_is_written(self) -> None:
        length = len(self.over_the_limit())
        big = group("group_big", *(f"task_{number:095}" for number in range(length // 100 + 1)))
        for batch in ([big], [group("group_a"), big], [big, group("group_a")]):
            with pytest.raises(EntryTooLarge) as raised:
                await self.backend.open_groups(batch)
            self.assert_names(raised.value, "group_big")
            assert list(await self.backend.get_groups(["group_a", "group_big"])) == [None, None]

    # forget and expiry

    async def test_what_was_forgotten_is_gone(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a"), group("group_b", "task_b")])
        await self.backend.put_plans([plan("plan_a"), plan("plan_b")])
        await self.backend.put([state("task_a", State.SUCCESS)])
        await self.backend.forget(["plan_a", "group_a", "task_a", "group_unknown", "plan_unknown"])
        assert list(await self.backend.get_groups(["group_a", "group_b"])) == [None, group("group_b", "task_b")]
        assert list(await self.backend.get_plans(["plan_a", "plan_b"])) == [None, plan("plan_b")]
        assert await self.states("task_a") == [None]
        assert await self._finish("task_a") == [Progress.LOST]

    async def test_forgetting_a_group_leaves_its_members(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        await self._end("task_a")
        await self.backend.forget(["group_a"])
        assert await self.states("task_a") == [State.SUCCESS]

    async def test_a_forgotten_group_starts_over(self) -> None:
        opened = group("group_a", "task_a", "task_b")
        await self.backend.open_groups([opened])
        await self._end("task_a")
        await self._finish("task_a")
        await self.backend.claim_group("group_a", "me", LONG)
        await self.backend.mark_group_sent("group_a")
        await self.backend.forget(["group_a", "task_a"])
        await self.backend.open_groups([opened])
        await self._end("task_b")
        assert await self._finish("task_b") == [Progress.WAITING]
        assert await self.backend.claim_group("group_a", "you", LONG) is GroupClaim.MINE

    async def test_groups_and_plans_are_gone_some_time_after_they_were_written(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        await short.open_groups([group("group_a", "task_a")])
        await short.put_plans([plan("plan_a")])
        await self.backend.open_groups([group("group_kept", "task_a")])
        await self.backend.put_plans([plan("plan_kept")])
        found = await self._present("group_a", "plan_a")
        if self.clock.monotonic() - written < self.expiry:
            assert found == ["group_a", "plan_a"]
        await self.advance(self.expiry)
        await self._until_gone("group_a", "plan_a")
        assert await self._present("group_kept", "plan_kept") == ["group_kept", "plan_kept"]

    async def test_groups_and_plans_for_later_are_kept_from_the_time_they_are_due(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        due, over = self.now() + self.expiry, self.now() - 2 * self.expiry
        await short.open_groups([group("group_a", not_before=due), group("group_old", not_before=over)])
        await short.put_plans([plan("plan_a", not_before=due), plan("plan_old", not_before=over)])
        found = await self._present("group_old", "plan_old")
        if self.clock.monotonic() - written < self.expiry:
            assert found == ["group_old", "plan_old"]
        await self.advance(self.expiry * 1.4)
        found = await self._present("group_a", "plan_a")
        if self.clock.monotonic() - written < 2 * self.expiry:
            assert found == ["group_a", "plan_a"]
        await self._until_gone("group_old", "plan_old")
        await self.advance(self.expiry * 0.6)
        await self._until_gone("group_a", "plan_a")

    async def test_when_a_group_or_plan_is_due_is_not_written(self) -> None:
        due = self.now() + LONG
        await self.backend.open_groups([group("group_a", "task_a", not_before=due)])
        await self.backend.put_plans([plan("plan_a", not_before=due)])
        assert await self._group("group_a") == group("group_a", "task_a")
        assert list(await self.backend.get_plans(["plan_a"])) == [plan("plan_a")]

    async def test_an_expired_group_starts_over(self) -> None:
        short = await self.another_backend(self.expiry)
        opened = group("group_a", "task_a", "task_b")
        await short.open_groups([opened])
        await self._finish("task_a", backend=short)
        await short.claim_group("group_a", "me", self.expiry)
        await short.mark_group_sent("group_a")
        await self.advance(self.expiry)
        await self._until_gone("group_a")
        await self.backend.open_groups([opened])
        assert await self._finish("task_b") == [Progress.WAITING]
        assert await self.backend.claim_group("group_a", "you", LONG) is GroupClaim.MINE

    # touch

    async def test_touch_keeps_a_family_as_though_it_were_written_now(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        await short.put([state("task_first"), state("task_a", State.STARTED), state("task_b", State.SUCCESS)])
        await short.open_groups([group("group_a", "task_x")])
        await short.put_plans([plan("plan_a")])
        await short.put([state("task_stranger")])
        family = ["task_first", "task_a", "task_b", "group_a", "plan_a"]
        before = await self._entries(*family)
        await self.backend.touch([family])
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.2)
        await self._until_gone("task_stranger")
        if in_time:
            assert list(before) == family
            assert await self._entries(*family) == before

    async def test_what_was_touched_is_gone_after_its_time_too(self) -> None:
        short = await self.another_backend(self.expiry)
        await short.put([state("task_first")])
        await short.open_groups([group("group_a", "task_x")])
        await short.put_plans([plan("plan_a")])
        await self.advance(self.expiry * 0.5)
        await short.touch([["task_first", "group_a", "plan_a"]])
        await self.advance(self.expiry)
        await self._until_gone("task_first", "group_a", "plan_a")

    async def test_touch_keeps_a_family_from_the_time_it_is_due(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        due = self.now() + self.expiry
        await short.put([state("task_first"), state("task_a", State.SUCCESS), state("task_b"), state("task_c")])
        await short.open_groups([group("group_a", "task_b")])
        await short.put_plans([plan("plan_a", ids=("task_c",))])
        await short.touch([["task_first", "task_a", "group_a", "plan_a"]], due)
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.4)
        family = ["task_first", "task_a", "task_b", "task_c", "group_a", "plan_a"]
        found = await self._present(*family)
        if in_time and self.clock.monotonic() - written < 2 * self.expiry:
            assert found == family
        await self.advance(self.expiry * 0.6)
        await self._until_gone(*family)

    async def test_what_was_due_before_is_touched_as_though_it_were_written_now(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        await short.put([state("task_first"), state("task_a"), state("task_stranger")])
        await self.backend.touch([["task_first", "task_a"]], self.now() - 2 * KEPT)
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.2)
        await self._until_gone("task_stranger")
        if in_time:
            assert await self._present("task_first", "task_a") == ["task_first", "task_a"]

    async def test_a_touched_group_stands_for_its_members_too(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        await short.open_groups([group("group_a", "task_a", "task_b"), group("group_first", "task_c")])
        assert await short.add_members("group_a", ["task_d"])
        members = ["task_a", "task_b", "task_d", "task_c"]
        await short.put([state(task_id) for task_id in (*members, "task_stranger")])
        await self.backend.touch([["group_first", "group_a"]])
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.2)
        await self._until_gone("task_stranger")
        if in_time:
            assert await self._present(*members) == members

    async def test_a_group_that_was_added_to_is_touched_as_though_it_were_not(self) -> None:
        """Else those of its members that ended early are gone before the last of those that are added."""
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        await short.open_groups([group("group_a", "task_early", "task_late")])
        await short.put([state("task_early", State.SUCCESS), state("task_late"), state("task_stranger")])
        await self.advance(self.expiry * 0.5)
        is_added = await short.add_members("group_a", ["task_added"])
        await short.touch([["group_a"]])
        in_time = self.clock.monotonic() - written < self.expiry
        assert is_added or not in_time
        await self.advance(self.expiry * 0.6)
        await self._until_gone("task_stranger")
        found = await self._present("task_early", "task_late", "group_a")
        if in_time and self.clock.monotonic() - written < self.expiry * 1.5:
            assert found == ["task_early", "task_late", "group_a"]

    async def test_a_touched_plan_stands_for_all_that_is_in_it(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        await short.put_plans([plan("plan_a", ids=("task_a", "group_a", "plan_b")), plan("plan_b")])
        await short.open_groups([group("group_a", "task_b")])
        await short.put([state("task_first"), state("task_a"), state("task_stranger")])
        await self.backend.touch([["task_first", "plan_a"]])
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.2)
        await self._until_gone("task_stranger")
        if in_time:
            assert await self._present("task_a", "group_a", "plan_a", "plan_b") == [
                "task_a",
                "group_a",
                "plan_a",
                "plan_b",
            ]

    async def test_nothing_is_done_where_the_first_of_a_family_has_most_of_its_time_left(self) -> None:
        short = await self.another_backend(self.expiry)
        await short.put([state("task_a"), state("task_b"), state("task_c")])
        await self.backend.put([state("task_first")])
        await self.backend.open_groups([group("group_first", "task_b")])
        await self.backend.put_plans([plan("plan_first", ids=("task_c",))])
        await self.backend.touch([["task_first", "task_a"], ["group_first", "task_b"], ["plan_first", "task_c"]])
        await self.advance(self.expiry)
        await self._until_gone("task_a", "task_b", "task_c")
        firsts = ["task_first", "group_first", "plan_first"]
        assert await self._present(*firsts) == firsts

    async def test_nothing_is_done_where_the_first_of_a_family_would_be_kept_but_little_longer(self) -> None:
        short = await self.another_backend(self.expiry)
        written, due = self.clock.monotonic(), self.now() + LONG
        await short.put([state("task_a"), state("task_b")])
        await self.backend.put([state("task_first", not_before=due)])
        await self.backend.touch([["task_first", "task_a"]], due + 0.2 * KEPT)
        await self.backend.touch([["task_first", "task_b"]], due + 0.3 * KEPT)
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.2)
        await self._until_gone("task_a")
        if in_time:
            assert await self._present("task_first", "task_b") == ["task_first", "task_b"]

    async def test_families_do_not_concern_each_other(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        await self.backend.put([state("task_fresh")])
        await short.put([state("task_a"), state("task_b"), state("task_old")])
        await self.backend.touch([["task_fresh", "task_a"], ["task_old", "task_b"]])
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.2)
        await self._until_gone("task_a")
        if in_time:
            assert await self._present("task_old", "task_b") == ["task_old", "task_b"]

    async def test_touch_keeps_nothing_shorter_than_it_was(self) -> None:
        short = await self.another_backend(self.expiry)
        await short.put([state("task_first")])
        await self.backend.put([state("task_a"), state("task_b")])
        await self.backend.open_groups([group("group_a", "task_b")])
        await self.backend.put_plans([plan("plan_a", ids=("task_b",))])
        await self.advance(self.expiry * 0.5)
        await short.touch([["task_first", "task_a", "group_a", "plan_a"]])
        await self.advance(self.expiry * 1.2)
        await self._until_gone("task_first")
        kept = ["task_a", "task_b", "group_a", "plan_a"]
        assert await self._present(*kept) == kept

    async def test_touch_keeps_nothing_for_later_shorter_than_it_was(self) -> None:
        short = await self.another_backend(self.expiry)
        due = self.now() + LONG
        await short.put([state("task_first"), state("task_a", not_before=due)])
        await short.open_groups([group("group_a", not_before=due)])
        await short.put_plans([plan("plan_a", not_before=due)])
        await self.advance(self.expiry * 0.5)
        await short.touch([["task_first", "task_a", "group_a", "plan_a"]])
        await short.touch([["task_unknown", "task_a", "group_a", "plan_a"]], self.now() + self.expiry * 0.1)
        await self.advance(self.expiry * 1.2)
        await self._until_gone("task_first")
        assert await self._present("task_a", "group_a", "plan_a") == ["task_a", "group_a", "plan_a"]

    async def test_touch_takes_unknown_ones(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        await short.put([state("task_a"), state("task_b")])
        await self.backend.touch([["task_x", "task_a"], ["group_x", "plan_x"], ["task_b", "group_y", "task_y"]])
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.2)
        if in_time:
            assert await self._present("task_a", "task_b") == ["task_a", "task_b"]
        assert await self._present("task_x", "task_y", "group_x", "group_y", "plan_x") == []

    async def test_a_touched_group_remembers_what_became_of_it(self) -> None:
        short = await self.another_backend(self.expiry)
        written = self.clock.monotonic()
        await short.open_groups([group(name, "task_a", "task_b") for name in ("group_a", "group_b", "group_c")])
        await self._finish("task_a", group_id="group_a", backend=short)
        await short.claim_group("group_b", "me", LONG)
        await short.claim_group("group_c", "me", LONG)
        await short.mark_group_sent("group_c")
        await self.backend.touch([["group_a"], ["group_b"], ["group_c"]])
        in_time = self.clock.monotonic() - written < self.expiry
        await self.advance(self.expiry * 1.2)
        if in_time:
            assert await self._finish("task_b", group_id="group_a") == [Progress.COMPLETE]
            assert await self.backend.claim_group("group_b", "you", LONG) is GroupClaim.TAKEN
            assert await self.backend.claim_group("group_c", "you", LONG) is GroupClaim.SENT

    # helpers

    async def _end(self, *task_ids: str) -> None:
        await self.backend.put([state(task_id, State.SUCCESS) for task_id in task_ids])

    async def _finish(
        self, *task_ids: str, group_id: str = "group_a", backend: Backend | None = None
    ) -> list[Progress]:
        members = [Member(group_id, task_id) for task_id in task_ids]
        return list(await (backend or self.backend).finish_members(members))

    async def _group(self, group_id: str, backend: Backend | None = None) -> GroupMeta:
        (found,) = await (backend or self.backend).get_groups([group_id])
        assert found is not None
        return found

    async def _members(self, group_id: str = "group_a", *, backend: Backend | None = None) -> tuple[str, ...]:
        return (await self._group(group_id, backend)).task_uuids or ()

    async def _is_triggered(self, group_id: str = "group_a") -> bool:
        return (await self._group(group_id)).chord_triggered

    async def _until_claimed(self, owner: str, backend: Backend) -> None:
        async def is_mine() -> bool:
            return await backend.claim_group("group_a", owner, LONG) is GroupClaim.MINE

        await self.until(is_mine)

    async def _entries(self, *ids: str) -> dict[str, object]:
        """What there is of these tasks, groups and plans."""
        kinds: dict[str, Callable[[Sequence[str]], Awaitable[Sequence[object]]]] = {
            "task_": self.backend.get,
            "group_": self.backend.get_groups,
            "plan_": self.backend.get_plans,
        }
        found: dict[str, object] = {}
        for prefix, get in kinds.items():
            some = [one for one in ids if one.startswith(prefix)]
            found.update(zip(some, await get(some), strict=True))
        return {one: found[one] for one in ids if found[one] is not None}

    async def _present(self, *ids: str) -> list[str]:
        return list(await self._entries(*ids))

    async def _until_gone(self, *ids: str) -> None:
        async def are_gone() -> bool:
            return await self._present(*ids) == []

        await self.until(are_gone)


def group(group_id: str, *task_ids: str, not_before: float | None = None) -> GroupMeta:
    """A group of these members."""
    return GroupMeta(group_uuid=group_id, task_uuids=task_ids, created_at=SENT_AT, not_before=not_before)


def plan(plan_id: str, ids: tuple[str, ...] = ("task_a",), *, not_before: float | None = None) -> Plan:
    """A plan that is small, of things that need not be."""
    return Plan(plan_id, (Signature(uuid="task_a", name="a"),), ids, not_before)
