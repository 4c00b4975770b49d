"""Names to tasks: how arguments travel, and what is said where they do not fit."""

from __future__ import annotations

import functools
import importlib
import inspect
import runpy
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from asyncqueue import Server
from asyncqueue.engine.context import TaskContext
from asyncqueue.engine.registry import KEYWORDS_HEADER, Registered, Registry, TaskOptions, register
from asyncqueue.errors import ArgumentError, ConfigError, TaskNotRegistered
from asyncqueue.signature import Arg, Signature


class Order(BaseModel):
    number: int
    items: list[str] = []


def made(function: Any) -> Registered:
    return register("task", function, TaskOptions())


def round_trip(registered: Registered, *args: Any, **kwargs: Any) -> Any:
    """Call with arguments that went over the wire."""
    wire_args, by_name = registered.arguments(args, kwargs)
    bound = registered.bind(Signature(name="task", args=wire_args, headers={KEYWORDS_HEADER: "1"} if by_name else None))
    return registered.function(*bound.args, **bound.kwargs)


def test_arguments_travel_by_place_and_by_name() -> None:
    def task(a: int, b: str = "b", *, c: float = 1.5) -> str:
        return f"{a} {b} {c}"

    registered = made(task)
    assert round_trip(registered, 1) == "1 b 1.5"
    assert round_trip(registered, 1, "x", c=2.5) == "1 x 2.5"
    assert round_trip(registered, b="x", a=2) == "2 x 1.5"
    assert round_trip(registered, 1, c=3.5) == "1 b 3.5"


def test_keyword_arguments_become_positional_where_no_gap_is_left() -> None:
    def task(a: int, b: int, c: int = 3) -> None: ...

    registered = made(task)
    args, by_name = registered.arguments((), {"b": 2, "a": 1})
    assert ([each.value for each in args], by_name) == ([1, 2], False)
    args, by_name = registered.arguments((1,), {"c": 3})
    assert ([(each.name, each.value) for each in args], by_name) == ([("", 1), ("c", 3)], True)


def test_any_number_of_arguments() -> None:
    def total(first: str, *numbers: int) -> str:
        return f"{first} {sum(numbers)}"

    def named(**values: int) -> dict[str, int]:
        return values

    assert round_trip(made(total), "x", 1, 2, 3) == "x 6"
    assert round_trip(made(total), "x") == "x 0"
    assert round_trip(made(named), a=1, b=2) == {"a": 1, "b": 2}


def test_parameters_that_go_by_name_only_stand_beside_any_number_of_arguments() -> None:
    def task(*values: int, scale: int = 1) -> int:
        return sum(values) * scale

    def picky(a: int, *, b: int) -> int:
        return a * b

    assert round_trip(made(task), 1, 2) == 3
    assert round_trip(made(task), 1, 2, scale=3) == 9
    assert round_trip(made(picky), 2, b=3) == 6
    for refused in (lambda: made(picky).arguments((1, 2), {}), lambda: round_trip(made(picky), 1)):
        with pytest.raises(
            ArgumentError, match=r"task task\(a: int64, \*, b: int64\) takes 1 arguments and, by name, b"
        ):
            refused()


def test_models_none_and_nested_values_travel() -> None:
    def task(order: Order, maybe: int | None, nested: dict[str, list[int]]) -> str:
        return f"{type(order).__name__} {order.number} {maybe} {nested}"

    assert round_trip(made(task), Order(number=7), None, {"a": [1]}) == "Order 7 None {'a': [1]}"


def test_bytes_and_floats_keep_their_kind() -> None:
    def task(data: bytes, number: float) -> tuple[bytes, float]:
        return data, number

    assert round_trip(made(task), b"\x00\xff", 2) == (b"\x00\xff", 2.0)


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((1, 2, 3), {}, "takes 2 arguments, not 3"),
        ((1, "x"), {}, r"argument 2 \(b\)"),
        ((2**63, 1), {}, "argument 1"),
        ((True, 1), {}, "argument 1"),
        ((1.5, 1), {}, "argument 1"),
        ((), {"c": 1}, "'c'"),
        ((1,), {"a": 1}, "'a'"),
    ],
)
def test_arguments_that_can_never_fit_are_refused_when_they_are_given(
    args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    def task(a: int, b: int) -> int:
        return a + b

    with pytest.raises(ArgumentError, match=said) as raised:
        made(task).arguments(args, kwargs)
    assert "task task" in str(raised.value)
    assert isinstance(raised.value, TypeError)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), r"task\(a: int64, b: int64\) takes 2 arguments, not 0"),
        ((Arg(type="int64", value=1),), "takes 2 arguments, not 1"),
        ((Arg(type="int64", value=1),) * 3, "takes 2 arguments, not 3"),
        ((Arg(type="int64", value=1), Arg(type="string", value="x")), r"argument 2 \(b\)"),
        ((Arg(type="int64", value="1"), Arg(type="int64", value=1)), "argument 1"),
    ],
)
def test_arguments_off_the_wire_that_do_not_fit_are_told_by_place(args: tuple[Arg, ...], said: str) -> None:
    def task(a: int, b: int) -> int:
        return a + b

    with pytest.raises(ArgumentError, match=said):
        made(task).bind(Signature(name="task", args=args))


def test_names_on_the_wire_bind_only_where_the_header_says_so() -> None:
    def task(a: int, b: int) -> tuple[int, int]:
        return a, b

    registered = made(task)
    args = (Arg(name="b", type="int64", value=1), Arg(name="a", type="int64", value=2))
    assert list(registered.bind(Signature(name="task", args=args)).args) == [1, 2]
    by_name = registered.bind(Signature(name="task", args=args, headers={KEYWORDS_HEADER: "1"}))
    assert by_name.kwargs == {"b": 1, "a": 2}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "a"), "given twice"),
        (("a", "c"), "no parameter 'c'"),
        (("a",), "missing"),
        (("a", "b", ""), "multiple values"),
    ],
)
def test_names_on_the_wire_that_do_not_fit_are_told(names: tuple[str, ...], said: str) -> None:
    def task(a: int, b: int) -> None: ...

    args = tuple(Arg(name=each, type="int64", value=1) for each in names)
    with pytest.raises(ArgumentError, match=said):
        made(task).bind(Signature(name="task", args=args, headers={KEYWORDS_HEADER: "1"}))


def test_the_context_is_no_argument_of_the_wire() -> None:
    def task(ctx: TaskContext, a: int) -> int:
        return a

    registered = made(task)
    assert registered.context_parameter == "ctx"
    with pytest.raises(ArgumentError):
        registered.arguments((1,), {"ctx": 2})
    named = (Arg(name="ctx", type="int64", value=1), Arg(name="a", type="int64", value=1))
    with pytest.raises(ArgumentError):
        registered.bind(Signature(name="task", args=named, headers={KEYWORDS_HEADER: "1"}))


def returning(hint: Any) -> Registered:
    def task() -> Any: ...

    task.__annotations__["return"] = hint
    return made(task)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, 3),
        (tuple[int, str], (1, "x")),
        (None, None),
        (list[int], [1, 2]),
        (Order, Order(number=1)),
        (int | None, None),
        (bytes, b"\xff"),
        (tuple[int, ...], (1, 2, 3)),
        (Any, {"a": 1}),
        (Any, None),
        (Any, (1, "x")),
    ],
)
def test_results_travel(hint: Any, value: Any) -> None:
    registered = returning(hint)
    found = registered.value_of(registered.results_of(value))
    assert tuple(found) == value if hint == tuple[int, ...] else found == value


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        (int, "x", "result of task task"),
        (None, 1, "annotated `-> None`"),
        (tuple[int, str], (1,), "tuple of 2 values, not a tuple of 1"),
        (tuple[int, str], 1, "tuple of 2 values, not int"),
        (float, float("nan"), "nan"),
        (Any, object(), "result of task task"),
    ],
)
def test_a_result_that_breaks_its_annotation_is_told(hint: Any, value: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        returning(hint).results_of(value)


@pytest.mark.parametrize("hint", [Any, int])
def test_a_coroutine_that_was_not_awaited_is_told_as_such(hint: Any) -> None:
    async def number() -> int:
        return 1

    unawaited = number()
    with pytest.raises(ArgumentError, match="task task returned a coroutine that was not awaited; expected its result"):
        returning(hint).results_of(unawaited)
    assert inspect.getcoroutinestate(unawaited) == inspect.CORO_CLOSED


def test_names_are_found_and_listed() -> None:
    registry = Registry()
    first, second = register("b", lambda: 1, TaskOptions()), register("a", lambda: 1, TaskOptions())
    registry.add(first)
    registry.add(second)
    assert (registry.names(), registry.find("b"), registry.find("c")) == (["a", "b"], first, None)
    with pytest.raises(TaskNotRegistered, match="registered: a, b"):
        registry.get("c")


def test_two_functions_of_one_name_are_an_error_that_says_where_both_are() -> None:
    def first() -> None: ...

    def second() -> None: ...

    registry = Registry()
    registry.add(register("a", first, TaskOptions()))
    both = r"task 'a': tests\.unit\.test_registry\.\S+\.first \(\S+:\d+\) and \S+\.second \(\S+:\d+\)"
    with pytest.raises(ConfigError, match=both):
        registry.add(register("b", second, TaskOptions()), register("a", second, TaskOptions()))
    assert registry.names() == ["a"]
    with pytest.raises(ConfigError, match="task 'a'"):
        registry.add(register("a", functools.partial(second), TaskOptions()))
    assert registry.get("a").function is first


def test_lambdas_of_one_name_are_told_apart_by_their_lines() -> None:
    registry = Registry()
    for _ in range(2):
        registry.add(register("a", lambda: 1, TaskOptions()))
    with pytest.raises(ConfigError, match="two functions are named task 'a'"):
        registry.add(register("a", lambda: 2, TaskOptions()))


def test_a_module_that_is_loaded_again_registers_its_tasks_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    monkeypatch.setattr(functools, "tasks_of_a_test", registry, raising=False)  # which no load makes anew
    path = tmp_path / "tasks_to_load_again.py"
    source = """
import functools
from asyncqueue.engine.registry import TaskOptions, register

def add(a: int, b: int) -> int:
    return a + b

functools.tasks_of_a_test.add(register("add", add, TaskOptions()))
"""
    path.write_text(source)
    module = importlib.import_module(path.stem)
    first = registry.get("add").function
    path.write_text("\n\n" + source)
    importlib.reload(module)
    second = registry.get("add").function
    runpy.run_path(str(path), run_name="__main__")
    assert len({first, second, registry.get("add").function}) == 3
    del sys.modules[path.stem]


@pytest.mark.parametrize(("name", "function"), [("", print), ("a\nb", print), ("x" * 201, print), ("a", 7)])
def test_what_cannot_be_a_task_is_told(name: str, function: Any) -> None:
    with pytest.raises(ConfigError):
        register(name, function, TaskOptions())


def test_functions_that_nobody_could_run_are_told() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later_numbers() -> AsyncIterator[int]:
        yield 1

    class Shop:
        def sell(self, item: int) -> int:
            return item

    for function in (numbers, later_numbers):
        with pytest.raises(ConfigError, match=rf"task 'a' must return its result, and {function.__name__} is a gen"):
            register("a", function, TaskOptions())
    with pytest.raises(ConfigError, match=r"task 'sell': nobody gives it its parameter 'self'; expected a bound"):
        register("sell", Shop.sell, TaskOptions())
    assert round_trip(register("sell", Shop().sell, TaskOptions()), 3) == 3


@pytest.mark.parametrize("name", ["aq.pass", "aq.none", "aq.deadline", "aq.later"])
def test_a_name_of_a_built_in_task_cannot_be_registered(name: str) -> None:
    server = Server("memory://")
    reserved = f"task name {name!r} is reserved: .* 'aq\\.'"
    with pytest.raises(ConfigError, match=reserved):
        server.register_task(name, print)
    with pytest.raises(ConfigError, match=reserved):
        server.task(name=name)(print)
    with pytest.raises(ConfigError, match=reserved):
        server.register_tasks({"fine": print, name: print})
    assert server.registered_task_names() == []


def test_an_annotation_that_cannot_be_read_is_told() -> None:
    def task(a: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # that is what is tried here

    with pytest.raises(ConfigError, match="NoSuchType"):
        made(task)


def test_coroutine_functions_are_known_however_they_are_wrapped() -> None:
    import functools

    async def task(a: int) -> None: ...

    class Callable:
        async def __call__(self, a: int) -> None: ...

    @functools.wraps(task)
    async def wrapper(*args: Any) -> None: ...

    assert all(made(each).is_async for each in (task, functools.partial(task), wrapper, Callable()))
    assert not made(lambda: None).is_async
