"""What a sender and a task can rely on, on every pair of stores."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncqueue import Server
from asyncqueue.engine.context import TaskContext, current_task
from asyncqueue.errors import ArgumentError, RetryTaskLater, TaskFailed
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import State
from tests.path.bench import PATIENCE, Bench, Stores, eventually, in_time


class Diary:
    """What tasks did, in order."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self._written = asyncio.Condition()

    async def write(self, line: Any) -> None:
        async with self._written:
            self.lines.append(line)
            self._written.notify_all()

    async def has(self, count: int) -> list[Any]:
        async with asyncio.timeout(PATIENCE), self._written:
            await self._written.wait_for(lambda: len(self.lines) >= count)
        return self.lines


def failing(server: Server) -> Any:
    """A task that always fails."""

    @server.task
    async def fail(text: str) -> None:
        raise ValueError(text)

    return fail


async def test_a_task_is_sent_in_three_forms(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with bench.working(server):
        results = [
            await server.send_task(add.s(1, 2)),
            await server.send_task(add, 3, b=4),
            await server.send_task("add", 5, 6),
            await add.send(7, 8),
        ]
        assert [await each.get(PATIENCE) for each in results] == [3, 7, 11, 15]
        assert await in_time(results[0]) == 3
        assert (await results[0].is_completed(), await results[0].is_success(), await results[0].is_failure()) == (
            True,
            True,
            False,
        )


async def test_many_are_sent_together_and_answer_in_order(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def double(n: int) -> int:
        return 2 * n

    async with bench.working(server, concurrency=50):
        results = await server.send_many([double.s(n) for n in range(300)])
        assert [await each.get(PATIENCE) for each in results] == [2 * n for n in range(300)]


async def test_one_bad_task_among_many_keeps_all_from_being_sent(stores: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def double(n: int) -> int:
        return 2 * n

    bad = Signature(name="double", args=(Arg(type="string", value="x"),))
    with pytest.raises(ArgumentError, match="double"):
        await server.send_many([double.s(1), bad])
    assert await server.get_pending_tasks() == []


async def test_a_task_returns_one_value_several_or_none(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def one() -> list[int]:
        return [1, 2]

    @server.task
    async def several() -> tuple[int, str, float]:
        return 1, "two", 3.0

    @server.task
    async def none() -> None:
        return None

    @server.task
    async def unannotated():  # type: ignore[no-untyped-def]  # that is what is tried here
        return {"a": [1, None]}

    async with bench.working(server):
        results = [await server.send_task(each.s()) for each in (one, several, none, unannotated)]
        values = [await each.get(PATIENCE) for each in results]
    assert values == [[1, 2], (1, "two", 3.0), None, {"a": [1, None]}]


async def test_a_plain_function_runs_in_a_thread_and_knows_its_context(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    def where(ctx: TaskContext, n: int) -> list[str]:
        assert current_task() is ctx
        return [threading.current_thread().name, ctx.task_name, str(ctx.attempt), str(n)]

    async with bench.working(server):
        thread, *facts = await (await server.send_task(where.s(7))).get(PATIENCE)
    assert thread.startswith("asyncqueue-")
    assert facts == ["where", "1", "7"]


async def test_a_task_knows_its_context(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    contexts: list[TaskContext] = []

    @server.task
    async def look(a: int, ctx: TaskContext, b: int = 2) -> int:
        contexts.append(ctx)
        assert current_task() is ctx
        return a + b

    async with bench.working(server):
        sent = await look.with_(headers={"trace": "abc"}, priority=7).send(1)  # type: ignore[call-arg]  # types see only a first one
        assert await sent.get(PATIENCE) == 3
    (context,) = contexts
    assert (context.task_id, context.task_name, context.queue) == (sent.task_id, "look", "machinery_tasks")
    assert (context.attempt, context.deliveries) == (1, 1)
    assert context.signature.headers == {"trace": "abc"}
    assert context.signature.priority == 7
    with pytest.raises(LookupError):
        current_task()


async def test_a_failure_says_type_and_message(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    fail = failing(server)
    async with bench.working(server):
        result = await server.send_task(fail.s("no such thing"))
        with pytest.raises(TaskFailed, match="ValueError: no such thing") as raised:
            await result.get(PATIENCE)
        assert (raised.value.task_name, raised.value.task_id) == ("fail", result.task_id)
        assert (await result.state()).state is State.FAILURE


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("mine"), GeneratorExit(), BaseException("own")]
)
async def test_whatever_a_task_raises_is_its_own_failure(one_store: Stores, bench: Bench, error: BaseException) -> None:
    server = bench.server()

    @server.task
    async def leave() -> None:
        raise error

    @server.task
    def leave_thread() -> None:
        raise error

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with bench.working(server, concurrency=1):
        results = [await server.send_task(leave.s()), await server.send_task(leave_thread.s())]
        for each in results:
            with pytest.raises(TaskFailed, match=type(error).__name__):
                await each.get(PATIENCE)
        assert await (await server.send_task(add.s(1, 2))).get(PATIENCE) == 3


async def test_a_plain_function_may_raise_what_no_future_can_carry(one_store: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    def run_dry() -> int:
        return next(iter(()))

    async with bench.working(server):
        with pytest.raises(TaskFailed, match="StopIteration"):
            await (await server.send_task(run_dry.s())).get(PATIENCE)


async def test_a_failed_run_is_retried_until_it_succeeds(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    attempts: list[tuple[int, int]] = []

    @server.task(retries=3, backoff="fixed:0.05")
    async def third_time(ctx: TaskContext) -> str:
        attempts.append((ctx.attempt, ctx.signature.retry_count))
        if ctx.attempt < 3:
            raise OSError("not yet")
        return "done"

    async with bench.working(server):
        assert await (await server.send_task(third_time.s())).get(PATIENCE) == "done"
    assert attempts == [(1, 3), (2, 2), (3, 1)]


async def test_retries_end_in_failure(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    attempts: list[int] = []

    @server.task(retries=2, backoff="fixed:0.05")
    async def never(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)
        raise OSError(f"attempt {ctx.attempt}")

    async with bench.working(server):
        with pytest.raises(TaskFailed, match="OSError: attempt 3"):
            await (await server.send_task(never.s())).get(PATIENCE)
    assert attempts == [1, 2, 3]


async def test_only_what_retry_on_names_is_retried(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    attempts: list[int] = []

    @server.task(retries=5, retry_on=OSError, backoff="fixed:0.02")
    async def pick(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)
        raise ConnectionError("again") if ctx.attempt == 1 else ValueError("for good")

    async with bench.working(server):
        with pytest.raises(TaskFailed, match="ValueError: for good"):
            await (await server.send_task(pick.s())).get(PATIENCE)
    assert attempts == [1, 2]


async def test_a_backoff_that_raises_costs_no_retry(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    def broken(attempt: int, previous: float) -> float:
        raise RuntimeError("a mistake in the backoff")

    @server.task(retries=1, backoff=broken)
    async def second_time(ctx: TaskContext) -> int:
        if ctx.attempt == 1:
            raise OSError("not yet")
        return ctx.attempt

    async with bench.working(server):
        assert await (await server.send_task(second_time.s())).get(PATIENCE) == 2


async def test_run_me_later_counts_attempts_and_uses_up_no_retry(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    seen: list[tuple[int, int]] = []

    @server.task(retries=1)
    async def later(ctx: TaskContext) -> int:
        seen.append((ctx.attempt, ctx.signature.retry_count))
        if ctx.attempt == 1:
            raise RetryTaskLater(0.05)
        if ctx.attempt == 2:
            ctx.retry_later(0.05, "a little more")
        return ctx.attempt

    async with bench.working(server):
        assert await (await server.send_task(later.s())).get(PATIENCE) == 3
    assert seen == [(1, 1), (2, 1), (3, 1)]


async def test_run_me_later_ends_at_its_limit(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task(retry_later_limit=3)
    async def always_later(ctx: TaskContext) -> None:
        raise RetryTaskLater(0.02)

    async with bench.working(server):
        with pytest.raises(TaskFailed, match="run 3 of 3"):
            await (await server.send_task(always_later.s())).get(PATIENCE)


@pytest.mark.parametrize("delay", [float("nan"), -1.0])
async def test_run_me_later_with_a_strange_delay_runs_at_once(one_store: Stores, bench: Bench, delay: float) -> None:
    server = bench.server()

    @server.task
    async def strange(ctx: TaskContext) -> int:
        if ctx.attempt == 1:
            raise RetryTaskLater(delay)
        return ctx.attempt

    async with bench.working(server):
        assert await (await server.send_task(strange.s())).get(PATIENCE) == 2


async def test_run_me_in_a_thousand_years_is_a_delayed_task(one_store: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def patient() -> None:
        raise RetryTaskLater(float("inf"))

    async with bench.working(server):
        sent = await server.send_task(patient.s())

        async def delayed() -> list[Signature]:
            return await server.get_delayed_tasks()

        (waiting,) = await eventually(delayed)
    assert waiting.uuid == sent.task_id
    assert (await sent.state()).state is State.RETRY


@pytest.mark.parametrize("how", ["countdown", "timedelta", "eta"])
async def test_a_task_is_never_run_before_it_is_due(stores: Stores, bench: Bench, how: str) -> None:
    server = bench.server()

    @server.task
    async def when() -> int:
        return time.time_ns()

    async with bench.working(server):
        due = datetime.now(UTC) + timedelta(seconds=1)
        options: Any = {
            "countdown": {"countdown": 1.0},
            "timedelta": {"countdown": timedelta(seconds=1)},
            "eta": {"eta": due},
        }[how]
        earliest = time.time_ns() + 1_000_000_000 if how != "eta" else round(due.timestamp() * 1e9)
        sent = await when.with_(**options).send()
        assert len(await server.get_delayed_tasks()) == 1
        assert await sent.get(PATIENCE) >= earliest - 1_000  # a float of seconds is that coarse
        assert await server.get_delayed_tasks() == []


async def test_an_eta_in_the_past_is_now(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with bench.working(server):
        sent = await add.with_(eta=datetime(2001, 2, 3, tzinfo=UTC)).send(1, 2)
        assert await sent.get(PATIENCE) == 3


async def test_a_run_over_its_time_limit_is_cancelled_and_fails(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    cancelled = asyncio.Event()

    @server.task(timeout=0.1)
    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    @server.task(timeout=0.1, retries=1, backoff="fixed:0.02")
    async def slow_once(ctx: TaskContext) -> int:
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return ctx.attempt

    async with bench.working(server):
        with pytest.raises(TaskFailed, match=r"TimeoutError: ran over its time limit of 0\.1 s"):
            await (await server.send_task(endless.s())).get(PATIENCE)
        assert cancelled.is_set()
        assert await (await server.send_task(slow_once.s())).get(PATIENCE) == 2


async def test_a_time_limit_frees_nobody_from_a_thread(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    release = threading.Event()

    @server.task(timeout=0.1)
    def stuck() -> None:
        assert release.wait(PATIENCE)

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with bench.working(server, concurrency=2) as worker:
        assert worker is not None
        with pytest.raises(TaskFailed, match="time limit"):
            await (await server.send_task(stuck.s())).get(PATIENCE)
        assert len(worker.stuck) == 1
        assert await (await server.send_task(add.s(1, 2))).get(PATIENCE) == 3
        release.set()

        async def free() -> bool:
            return not worker.stuck

        await eventually(free)


async def test_results_are_appended_to_the_arguments_of_successors(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    diary = Diary()

    @server.task
    async def pair(a: int) -> tuple[int, str]:
        return a + 1, "x"

    @server.task
    async def note(first: str, number: int, text: str) -> None:
        await diary.write((first, number, text))

    async with bench.working(server):
        await pair.with_(on_success=(note.s("one"), note.s("two"))).send(1)
        assert sorted(await diary.has(2)) == [("one", 2, "x"), ("two", 2, "x")]


async def test_an_immutable_task_hands_nothing_on(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    diary = Diary()

    @server.task
    async def number() -> int:
        return 5

    @server.task
    async def note(*values: int) -> None:
        await diary.write(values)

    async with bench.working(server):
        await number.with_(on_success=note.s(1), immutable=True).send()
        await diary.has(1)
        await server.send_task(number.with_(on_success=note.s(2)).s())
        assert await diary.has(2) == [(1,), (2, 5)]


async def test_the_error_text_is_put_before_the_arguments_of_error_handlers(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    diary = Diary()
    fail = failing(server)

    @server.task
    async def note(error: str, extra: str) -> None:
        await diary.write((error, extra))

    async with bench.working(server):
        told = fail.with_(on_error=note.s("mine"), immutable=True)  # even then: as Machinery has it
        result = await told.send("broken")
        assert await diary.has(1) == [("ValueError: broken", "mine")]
        assert (await result.wait(PATIENCE)).error == "ValueError: broken"


async def test_callbacks_of_callbacks_run(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    diary = Diary()

    @server.task
    async def add(a: int, b: int) -> int:
        await diary.write((a, b))
        return a + b

    async with bench.working(server):
        last = add.s(100)
        middle = add.with_(on_success=last).s(10)
        await add.with_(on_success=middle).send(1, 2)
        assert await diary.has(3) == [(1, 2), (10, 3), (100, 13)]


async def test_a_callback_can_be_waited_for_from_the_start(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with bench.working(server):
        sent = await add.with_(on_success=add.s(10)).send(1, 2)
        assert sent.signature is not None
        (successor,) = sent.signature.on_success or ()
        await sent.get(PATIENCE)
        assert await server.result(successor.uuid).get(PATIENCE) == 13


async def test_keyword_arguments_defaults_and_any_number_of_arguments(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def mixed(a: int, *, b: str = "b", c: float) -> str:
        return f"{a} {b} {c}"

    @server.task
    async def total(*numbers: int) -> int:
        return sum(numbers)

    async with bench.working(server):
        assert await (await server.send_task(mixed.s(1, c=2.5))).get(PATIENCE) == "1 b 2.5"
        assert await (await server.send_task("total", *range(10))).get(PATIENCE) == 45


async def test_arguments_of_an_unknown_task_are_inferred_and_fit(stores: Stores, bench: Bench) -> None:
    sender, server = bench.server(), bench.server()

    @server.task
    async def describe(a: int, b: str, c: list[int], d: dict[str, int]) -> str:
        return f"{a} {b} {c} {d}"

    async with bench.working(server):
        sent = await sender.send_task("describe", 1, "two", [3], d={"four": 4})
        assert await sent.get(PATIENCE) == "1 two [3] {'four': 4}"


async def test_a_result_that_the_store_cannot_hold_is_a_failure_that_says_so(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    diary = Diary()

    @server.task
    async def half_a_character() -> str:
        return "\ud800"

    @server.task
    async def note(error: str) -> None:
        await diary.write(error)

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with bench.working(server):
        bad = await half_a_character.with_(on_error=note.s()).send()
        good = await server.send_many([add.s(n, n) for n in range(20)])
        with pytest.raises(TaskFailed, match="surrogate"):
            await bad.get(PATIENCE)
        assert "surrogate" in (await diary.has(1))[0]
        assert [await each.get(PATIENCE) for each in good] == [2 * n for n in range(20)]


async def test_what_a_successor_cannot_be_given_is_a_failure_of_the_task(stores: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def half_a_character() -> str:
        return "\ud800"

    @server.task
    async def note(text: str) -> None:
        return None

    async with bench.working(server):
        bad = await half_a_character.with_(on_success=note.s()).send()
        with pytest.raises(TaskFailed, match="surrogate"):
            await bad.get(PATIENCE)


async def test_a_result_that_breaks_its_annotation_is_a_failure(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def liar() -> int:
        return "text"  # type: ignore[return-value]  # that is what is tried here

    async with bench.working(server):
        with pytest.raises(TaskFailed, match="result of task liar"):
            await (await server.send_task(liar.s())).get(PATIENCE)
