"""What we read and write, against what Machinery itself wrote, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asyncqueue import arguments, wire
from asyncqueue.errors import ArgumentError, BadMessage
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import GroupMeta, State, TaskState
from tests.wire import goldens
from tests.wire.goldens import VERSIONS, Vector

OTHER_ZONE = '"2020-01-02T03:04:05+02:00"'
"""Go keeps the zone of an ETA. We keep the moment, and write it in UTC."""


def _scenario_name(path: Path) -> str:
    return "/".join(path.parts[-4:])


@pytest.mark.parametrize("path", goldens.scenarios(), ids=_scenario_name)
def test_what_machinery_wrote_is_read_and_written_again_byte_for_byte(path: Path) -> None:
    signatures = goldens.texts(path, '{"UUID":"')
    for text in signatures:
        expected = text.replace(OTHER_ZONE, '"2020-01-02T01:04:05Z"')
        assert wire.encode_signature(wire.decode_signature(text.encode())).decode() == expected
    states = goldens.texts(path, '{"TaskUUID":"')
    for text in states:
        assert wire.encode_state(wire.decode_state(text.encode())).decode() == text
    groups = goldens.texts(path, '{"GroupUUID":"')
    for text in groups:
        assert wire.encode_group(wire.decode_group(text.encode())).decode() == text
    assert signatures or states or path.stem in ("malformed", "idle")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_data_holds_signatures_states_and_groups(version: str) -> None:
    paths = [path for path in goldens.scenarios() if version in path.parts]
    assert sum(len(goldens.texts(path, '{"UUID":"')) for path in paths) > 60
    assert sum(len(goldens.texts(path, '{"TaskUUID":"')) for path in paths) > 150
    assert sum(len(goldens.texts(path, '{"GroupUUID":"')) for path in paths) >= 8


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("flavour", ["publish", "run"])
def test_the_pending_state_of_our_own_making_equals_theirs(version: str, flavour: str) -> None:
    for path in (goldens.GOLDEN / version / "redis" / flavour).glob("*.json"):
        for text in goldens.texts(path, '{"TaskUUID":"'):
            theirs = wire.decode_state(text.encode())
            if theirs.state is State.PENDING:
                ours = TaskState(task_uuid=theirs.task_uuid, task_name=theirs.task_name, created_at=theirs.created_at)
                assert wire.encode_state(ours).decode() == text


@pytest.mark.parametrize("version", VERSIONS)
def test_a_signature_of_our_own_making_equals_theirs(version: str) -> None:
    ours = Signature(
        uuid="task_00000000-0000-4000-8000-000000000001",
        name="add",
        routing_key="machinery_tasks",
        args=(Arg(type="int64", value=1), Arg(type="int64", value=2)),
        headers={},
    )
    (sent,) = [
        command[2]
        for command in goldens.commands(goldens.GOLDEN / version / "redis" / "publish" / "add.json")
        if command[0] == "RPUSH"
    ]
    assert wire.encode_signature(ours).decode() == sent


@pytest.mark.parametrize("version", VERSIONS)
def test_a_group_of_our_own_making_equals_theirs(version: str) -> None:
    (text,) = goldens.texts(goldens.GOLDEN / version / "redis" / "publish" / "group.json", '{"GroupUUID":"')
    theirs = json.loads(text)
    ours = GroupMeta(
        group_uuid=theirs["GroupUUID"], task_uuids=tuple(theirs["TaskUUIDs"]), created_at=theirs["CreatedAt"]
    )
    assert wire.encode_group(ours).decode() == text


# — encode vectors —

NAMELESS = "Name: the name of a task is missing"
"""Go reads a signature without a task name. Nothing can run it, so we refuse it."""


@pytest.mark.parametrize("version", VERSIONS)
def test_every_encode_vector_comes_out_as_go_writes_it(version: str) -> None:
    refused = 0
    for given, expected in goldens.encode_vectors(version):
        if not json.loads(expected)["Name"]:
            with pytest.raises(BadMessage, match=NAMELESS):
                wire.decode_signature(given.encode())
            refused += 1
            continue
        signature = _with_python_values(wire.decode_signature(given.encode()))
        ours = wire.encode_signature(signature).decode()
        assert ours == expected.replace('"2020-01-02T03:04:05.12+02:00"', '"2020-01-02T01:04:05.12Z"')
    assert refused == 1


def _with_python_values(signature: Signature) -> Signature:
    """What Go's vectors went through: every argument decoded by its type, and encoded again."""
    if signature.args is None:
        return signature
    there_and_back = [
        arg.model_copy(update={"value": arguments.encode(arg.type, arguments.decode(arg.type, arg.value))})
        for arg in signature.args
    ]
    return signature.with_changes(args=tuple(there_and_back))


# — reflect vectors —

ODDITIES = frozenset(
    {
        # anything without elements is an empty slice to Go; we want null or a list
        *(
            f'{{"Type":"[]{name}","Value":{empty}}}'
            for name in ("bool", "int", "int8", "int64", "float32", "float64", "string")
            for empty in ('""', "{}")
        ),
        *(f'{{"Type":"[]{name}","Value":{{}}}}' for name in ("uint8", "byte", "uint64")),
        # and a number is its own text to it, if bytes are wanted
        *(f'{{"Type":"[]{name}","Value":1}}' for name in ("uint8", "byte", "uint64")),
        # an infinite float32 cannot be written as JSON again
        '{"Type":"float32","Value":3.5e38}',
    }
)
"""What Go takes by accident and we refuse."""


def _wrapped_around(vector: Vector) -> bool:
    """Whether Go silently made another number of it, because its type is too narrow."""
    given = json.loads(vector.arg)["Value"]
    narrow = vector.type.removeprefix("[]").rstrip("0123456789") in ("int", "uint", "byte")
    if not narrow or not vector.accepted or isinstance(given, (str, dict)) or given is None:
        return False
    back = arguments.decode(vector.go_type, json.loads(vector.encoded))
    return bool(list(back) != given) if isinstance(given, list) else bool(back != given)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_reflect_vector_is_accepted_or_refused_as_go_does(version: str) -> None:
    accepted = refused = wrapped = odd = 0
    for vector in goldens.reflect_vectors(version):
        if vector.arg in ODDITIES:
            assert vector.accepted
            _assert_refused(vector)
            odd += 1
        elif _wrapped_around(vector):
            _assert_refused(vector)
            wrapped += 1
        elif vector.accepted:
            _assert_accepted(vector)
            accepted += 1
        else:
            _assert_refused(vector)
            refused += 1
    assert odd == len(ODDITIES)
    assert (accepted, refused, wrapped) == (218, 579, 51)


def _assert_refused(vector: Vector) -> None:
    with pytest.raises((ArgumentError, BadMessage)):
        _decoded(vector)


def _assert_accepted(vector: Vector) -> None:
    value = _decoded(vector)
    again = Signature(name="n", args=(Arg(type=vector.go_type, value=arguments.encode(vector.go_type, value)),))
    assert f'"Value":{vector.encoded}}}],"Headers"' in wire.encode_signature(again).decode(), vector.arg


def _decoded(vector: Vector) -> object:
    signature = wire.decode_signature(f'{{"Name":"n","Args":[{vector.arg}]}}'.encode())
    assert signature.args is not None
    (arg,) = signature.args
    return arguments.decode(arg.type, arg.value)
