"""What a type checker knows of workflows: their results, what is handed from link to link, and mistakes in it.

Marked as in the page about tasks: a mistake that is not found is an error itself.
"""

from __future__ import annotations

from typing import Any, assert_type

from asyncqueue import (
    Chain,
    ChainResult,
    Chord,
    ChordResult,
    Group,
    GroupResult,
    MemberFailure,
    Server,
    Signature,
    TaskContext,
    TaskSignature,
    chain,
    chord,
    group,
)

server = Server("memory://")


@server.task
async def add(a: int, b: int) -> int:
    return a + b


@server.task
def double(n: int) -> int:
    return 2 * n


@server.task
async def text(n: int) -> str:
    return str(n)


@server.task
async def split(line: str) -> tuple[str, int]:
    return line, len(line)


@server.task
async def repeat(line: str, times: int) -> str:
    return line * times


@server.task
async def total(*numbers: int) -> int:
    return sum(numbers)


@server.task
async def table(*rows: int | MemberFailure) -> list[str]:
    return [str(row) for row in rows]


@server.task
async def note(line: str) -> None:
    print(line)


@server.task
async def rounded(value: float, digits: int = 0) -> float:
    return round(value, digits)


@server.task
async def greet(name: str = "you") -> str:
    return f"hello {name}"


@server.task
async def report(ctx: TaskContext, title: str) -> str:
    return f"{ctx.task_id}: {title}"


@server.task
async def four(a: int, b: str, c: int, d: int) -> bytes:
    return b * (a + c + d)  # type: ignore[return-value]  # text is no bytes


@server.task
async def anything(value: object) -> bool:
    return bool(value)


def a_signature_tells_what_it_still_takes() -> None:
    assert_type(double.s(), TaskSignature[int, int])
    assert_type(add.s(), TaskSignature[int, tuple[int, int]])
    assert_type(add.s(1), TaskSignature[int, int])
    assert_type(add.s(1, 2), TaskSignature[int])
    assert_type(report.s(), TaskSignature[str, str])
    assert_type(greet.s(), TaskSignature[str, str | None])
    assert_type(rounded.s(), TaskSignature[float, float | tuple[float, int]])
    assert_type(rounded.s(1.5), TaskSignature[float, int | None])
    assert_type(total.s(), TaskSignature[int])
    assert_type(four.s(1), TaskSignature[bytes])
    assert_type(double.si(1), TaskSignature[int])


def a_chain_has_the_result_of_its_last_link() -> None:
    assert_type(chain(double.s(1)), Chain[int, object, int])
    assert_type(chain(add.s(1, 2), double, text), Chain[str, object, str])
    assert_type(chain(add.s(1, 2), add.s(3), double.s(), double.s(), text.s()), Chain[str, object, str])
    assert_type(add.s(1, 2) | double, Chain[int, object, int])
    assert_type(add.s(1, 2) | double.s() | text, Chain[str, object, str])
    assert_type(double | double | text, Chain[str, object, str])
    assert_type(chain(double, text), Chain[str, int, str])
    assert_type(add.s(1, 2) | chain(double, text) | note, Chain[None, object, None])
    assert_type(text.s(1) | split | repeat, Chain[str, object, str])
    assert_type(chain(text.s(1), split.s(), repeat.s()), Chain[str, object, str])
    assert_type(text.s(1) | anything, Chain[bool, object, bool])
    assert_type(text.s(1) | double.si(3), Chain[int, object, int])
    assert_type(note.s("x") | greet, Chain[str, object, str])
    assert_type(chain(note.s("x"), rounded.s(1.5)), Chain[float, object, float])
    assert_type(split.s("x") | four, Chain[bytes, object, bytes])


def groups_and_chords_have_results_of_their_members_and_callbacks() -> None:
    assert_type(group(double.s(1), add.s(1, 2)), Group[int, object])
    assert_type(group(*(double.s(each) for each in range(3))), Group[int, object])
    assert_type(group(double.s(1), text.s(2)), Group[Any, object])
    assert_type(group(chain(double.s(1), text), text.s(1)), Group[str, object])
    assert_type(group(double.s(1), double.s(2)) | total, Chord[int, object, int])
    assert_type(group(double.s(1), double.s(2)) | add, Chord[int, object, int])
    assert_type(group(double.s(1)) | total | text, Chain[str, object, str])
    assert_type(chord(group(double.s(1)), text), Chord[str, object, str])
    assert_type(chord([double.s(1), double.s(2)], table, on_failure="pass"), Chord[list[str], object, list[str]])
    assert_type(chord(group(double.s(1)), chain(total, text)), Chord[str, object, str])
    assert_type(chord(group(double.s(1)), group(total, text)), Chord[list[Any], object, Any])
    assert_type(chain(double.s(1), group(double, double)), Chain[list[int], object, Any])
    assert_type(chain(double.s(1), group(double, double)) | total, Chain[int, object, int])
    assert_type(chain(double.s(1), group(double, double), total, text), Chain[str, object, str])


def a_plain_signature_is_taken_anywhere() -> None:
    plain = Signature(name="elsewhere")
    assert_type(chain(plain, double), Chain[int, Any, int])
    assert_type(chain(double.s(1), plain), Chain[Any, object, Any])
    assert_type(double.s(1) | plain | text, Chain[str, object, str])
    assert_type(group(plain, plain), Group[Any, Any])


async def sending_is_typed() -> None:
    assert_type(await (add.s(1, 2) | double).send(), ChainResult[int])
    assert_type(await group(double.s(1), double.s(2)).send(), GroupResult[int])
    assert_type(await (group(double.s(1)) | text).send(), ChordResult[str])
    assert_type(await (await (add.s(1, 2) | text).send()), str)
    assert_type(await (await group(double.s(1)).send()).get(), list[int])
    assert_type(await (await (group(double.s(1)) | text).send()).get(timeout=1), str)
    assert_type(await server.send_chain(add.s(1, 2) | text), ChainResult[str])
    assert_type(await server.send_group(group(double.s(1))), GroupResult[int])
    assert_type(await server.send_chord(group(double.s(1)) | text), ChordResult[str])
    await server.send_chain(chain(double, text))  # type: ignore[arg-type]  # nothing is handed to its first link
    await chain(greet, note).send()


def mistakes_are_found() -> None:
    chain(text.s(1), double.s())  # type: ignore[misc]  # it is handed a text
    chain(text.s(1), double)  # type: ignore[misc]  # a task itself is checked as well
    chain(add.s(1, 2), text, double)  # type: ignore[misc]  # in the middle, too
    chain(text.s(1), add.s(1))  # type: ignore[misc]  # what is still missing is an int
    chain(add.s(1, 2), add.s())  # type: ignore[misc]  # two are missing, one comes
    chain(add.s(1, 2), add)  # type: ignore[misc]  # the same, of a task itself
    chain(split.s("x"), text.s())  # type: ignore[misc]  # two come, one is missing
    chain(text.s(1), chain(double, text))  # type: ignore[misc]  # a chain takes what its first link takes
    chain(note.s("x"), double)  # type: ignore[misc]  # nothing comes
    text.s(1) | double  # type: ignore[operator]  # written with |
    text.s(1) | double.s()  # type: ignore[operator]  # and of a signature
    add.s(1, 2) | text | double  # type: ignore[operator]  # in the middle, too
    text | double  # type: ignore[operator]  # of tasks alone
    text.s(1) | group(double, double)  # type: ignore[arg-type]  # each member takes it
    group(double.s(1)) | text | double  # type: ignore[operator]  # a callback hands on as well
    chord(group(double.s(1)), text, on_failure="ignore")  # type: ignore[arg-type]  # no such policy
    chain(add.s(1, 2), len)  # type: ignore[call-overload]  # a function and no task
    chain([add.s(1, 2), double.s()])  # type: ignore[call-overload]  # parts, not a list of them
    group(add(1, 2))  # type: ignore[call-overload]  # called, not signed
    wrong: Chain[str] = chain(add.s(1, 2), double.s())  # type: ignore[arg-type]  # it is an int
    assert wrong
