"""Bad input at the front door: every mistake gets an error that names the thing, and costs nobody else anything."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import subprocess
import sys
import traceback
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from asyncqueue import (
    ConfigError,
    Int8,
    MessageTooLarge,
    NoBackend,
    Refused,
    ResultExpired,
    ResultTimeout,
    ResultUnknown,
    Server,
    Settings,
    Signature,
    TaskFailed,
    Unavailable,
    Worker,
    chain,
    urls,
)
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import Message
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.errors import ArgumentError, PublishUnknown
from asyncqueue.locks.memory import MemoryLock
from asyncqueue.signature import Arg
from tests.conftest import StartServer
from tests.path.bench import Bench, Stores, eventually, in_time
from tests.services import RedisServer, free_port

CANARY = "c4nary-hunter2"
ROOT = Path(__file__).parent.parent.parent


def everything_said(error: BaseException, caplog: pytest.LogCaptureFixture) -> str:
    """All that a person or a log could be shown of an error: its chain, with tracebacks, and what was logged."""
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None:
        chain += [str(link), repr(link), repr(link.args), *traceback.format_exception(link)]
        link = link.__cause__ or link.__context__
    return "\n".join([*chain, caplog.text])


def cli(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asyncqueue", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(("part", "kind"), [("broker", "broker"), ("backend", "result backend"), ("lock", "lock")])
def test_an_unknown_scheme_is_told_which_ones_there_are(part: str, kind: urls.Kind) -> None:
    parts: dict[str, Any] = {"broker": "memory://"} | {part: f"kafka://user:{CANARY}@host/"}
    with pytest.raises(ConfigError) as raised:
        Server(**parts)
    said = str(raised.value)
    assert "unknown scheme 'kafka'" in said
    usable = {f"{scheme}://" for driver in urls.DRIVERS if driver.target(kind) for scheme in driver.schemes}
    known = set(said.partition("Known schemes: ")[2].split(", "))
    assert known - usable == ({"or 'null' to keep no results"} if part == "backend" else set())
    assert known >= usable
    assert CANARY not in said


@pytest.mark.parametrize(
    ("url", "near"), [("redi://h", "redis://"), ("sqllite:///x", "sqlite://"), ("redis+sock:///x", "redis+socket://")]
)
def test_a_misspelt_scheme_is_told_the_nearest_one(url: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {near.replace('+', '.')}"):
        Server(url)


@pytest.mark.parametrize(
    ("part", "url", "said"),
    [
        ("broker", "https://dynamodb.us-east-2.amazonaws.com", "Amazon DynamoDB has no broker"),
        ("broker", f"mongodb://u:{CANARY}@h/db", "MongoDB has no broker"),
        ("broker", f"mongodb+srv://u:{CANARY}@h/db", "MongoDB has no broker"),
        ("broker", "memcache://h1:11211,h2:11211", "Memcached has no broker"),
        ("backend", f"https://k:{CANARY}@sqs.us-east-2.amazonaws.com/1", "Amazon SQS has no result backend"),
        ("backend", f"http://k:{CANARY}@localhost:9324/1", "Amazon SQS has no result backend"),
        ("backend", "gcppubsub://p/s", "Google Pub/Sub has no result backend"),
        ("lock", f"amqp://u:{CANARY}@h/", "RabbitMQ has no lock"),
        ("lock", "memcache://h1:11211", "Memcached has no lock"),
    ],
)
def test_a_service_that_cannot_be_what_it_is_meant_to_be_is_refused_at_once(part: str, url: str, said: str) -> None:
    urls: dict[str, Any] = {"broker": "memory://"} | {part: url}
    with pytest.raises(ConfigError, match=f"{said}; name another store") as raised:
        Server(**urls)
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize("url", ["ftp://example.org", "localhost:6379", "", "redis//h"])
def test_what_is_no_url_of_ours_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="unknown scheme"):
        Server(url)


@pytest.mark.parametrize(
    ("url", "mongodb", "said"),
    [
        ("mongodb://h/results", {}, "database is 'results', and Go's workers look at 'machinery'"),
        ("mongodb://h/", {"database": "mine"}, "database is 'mine'"),
        ("mongodb://h/", {"tasks_collection": "states"}, "collection of tasks is 'states'"),
        ("mongodb://h/", {"group_metas_collection": "groups"}, "collection of groups is 'groups'"),
    ],
)
def test_under_go_compat_results_where_go_does_not_look_are_warned_of(
    url: str, mongodb: dict[str, object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    urls.backend_for(url, Settings.parse({"mongodb": mongodb}))
    urls.backend_for("mongodb://h/machinery", Settings.parse({"go_compat": True}))
    assert caplog.messages == []
    urls.backend_for(url, Settings.parse({"mongodb": mongodb, "go_compat": True}))
    (warning,) = caplog.messages
    assert said in warning


def test_under_go_compat_delays_on_pubsub_that_nobody_may_end_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for fine in ({}, {"go_compat": True, "go_queues": ["orders"]}):
        urls.broker_for("gcppubsub://project/workers", Settings.parse(fine))
    assert caplog.messages == []
    urls.broker_for("gcppubsub://project/workers", Settings.parse({"go_compat": True}))
    (warning,) = caplog.messages
    assert "go_queues names none" in warning


def test_a_missing_client_library_is_told_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = urls.Driver("RabbitMQ", ("amqp",), "amqp://", "a_library_that_is_not_there:Broker", extra="amqp")
    monkeypatch.setattr(urls, "DRIVERS", (absent,))
    with pytest.raises(ConfigError, match=r"needs a_library_that_is_not_there: install asyncqueue\[amqp\]"):
        urls.broker_for(f"amqp://guest:{CANARY}@h/", Settings())
    with pytest.raises(ConfigError, match="RabbitMQ has no lock"):
        urls.lock_for("amqp://h/", Settings())


@pytest.mark.parametrize(
    ("url", "redis", "said"),
    [
        ("redis://h,i/1", {}, "a cluster has no database but 0, and this asks for 1"),
        ("redis://h/1", {"cluster_mode": True}, "a cluster has no database but 0"),
        ("redis://h/1", {"cluster_enabled": True}, "a cluster has no database but 0"),
        ("redis://h", {"cluster_mode": True, "master_name": "m"}, "both a cluster and"),
        ("redis+socket:///tmp/x", {"master_name": "m"}, "behind a unix socket"),
        ("redis://h,redis://i", {}, "the scheme stands once"),
    ],
)
async def test_what_no_redis_can_be_is_said_in_words(url: str, redis: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        await Server(url, settings=Settings.parse({"redis": redis})).connected()


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    for url, expected in (
        (f"mongodb://u:{CANARY}@h/", "MongoDB has no broker"),
        (f"kafka://u:{CANARY}@h", "unknown"),
    ):
        ended = cli("queues", "--broker", url, cwd=tmp_path)
        assert ended.returncode != 0
        (line,) = ended.stderr.strip().splitlines()
        assert expected in line
        assert CANARY not in ended.stderr + ended.stdout


# ------------------------------------------------------------------------------------- servers that are away


@pytest.fixture
def nowhere() -> int:
    """A port that nobody listens on."""
    return free_port()


@pytest.mark.parametrize(
    "url", ["redis://user:{}@127.0.0.1:{}/0", "rediss://:{}@127.0.0.1:{}", "redis://{}@127.0.0.1:{}"]
)
async def test_a_server_that_is_away_is_named_and_its_password_is_not(
    url: str, nowhere: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    # a first connection does not wait for publish_timeout: the address may simply be wrong
    server = Server(url.format(CANARY, nowhere), settings=Settings.parse({"publish_timeout": 3_600}))
    with pytest.raises(Unavailable) as sent:
        await in_time(server.send_task("add", 1, 2))
    with pytest.raises(Unavailable) as started:
        await in_time(Worker(server).start())
    with pytest.raises(Unavailable) as asked:
        await in_time(server.result("task_x").get())
    for raised in (sent, started, asked):
        assert f"127.0.0.1:{nowhere}" in str(raised.value)
        assert CANARY not in everything_said(raised.value, caplog)
    assert CANARY not in repr(server)


async def test_a_name_that_nobody_knows_is_in_the_error(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(f"redis://:{CANARY}@no-such-host.invalid:6400")
    with pytest.raises(Unavailable, match=r"no-such-host\.invalid:6400") as raised:
        await in_time(server.send_task("add"))
    assert CANARY not in everything_said(raised.value, caplog)


async def test_a_wrong_password_is_said_and_not_shown(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis = start_server(RedisServer(password="right"))
    place = redis.url.rpartition("@")[2]
    with pytest.raises(Refused, match="does not let us in") as raised:
        await in_time(Server(f"redis://:{CANARY}@{place}").send_task("add"))
    assert place.partition("/")[0] in str(raised.value)
    assert CANARY not in everything_said(raised.value, caplog)


def test_the_command_line_names_the_server_that_is_away_and_not_its_password(nowhere: int, tmp_path: Path) -> None:
    url = f"redis://user:{CANARY}@127.0.0.1:{nowhere}"
    for words in (("queues",), ("--debug", "queues"), ("send", "add"), ("doctor",), ("result", "task_x")):
        ended = cli(*words, "--broker", url, cwd=tmp_path)
        assert ended.returncode == 1
        assert f"127.0.0.1:{nowhere}" in ended.stderr + ended.stdout
        assert CANARY not in ended.stderr + ended.stdout
    (tmp_path / "app.py").write_text(f"from asyncqueue import Server\nserver = Server({url!r})\n")
    ended = cli("worker", "app:server", cwd=tmp_path)
    assert ended.returncode == 1
    assert f"127.0.0.1:{nowhere}" in ended.stderr
    assert CANARY not in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_server_that_goes_away_later_is_waited_for_as_long_as_was_said(start_server: StartServer) -> None:
    redis = start_server(RedisServer())
    server = Server(redis.url, settings=Settings.parse({"publish_timeout": 0.3}))
    sent = await server.send_task("add", 1, 2)
    waiting = asyncio.create_task(sent.get())
    redis.kill()
    with pytest.raises(PublishUnknown, match=redis.url.split("/")[2]) as raised:
        await in_time(server.send_task("add", 3, 4))
    assert len(raised.value.task_ids) == 1
    with pytest.raises(Unavailable, match=redis.url.split("/")[2]):
        await in_time(waiting)
    await server.close()


async def test_a_result_is_waited_for_through_a_restart(redis_server: RedisServer) -> None:
    server = Server(redis_server.url)

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    sent = await add.send(1, 2)
    waiting = asyncio.create_task(sent.get())
    await asyncio.to_thread(redis_server.kill)
    await asyncio.to_thread(redis_server.restart)
    async with Worker(server, grace=5):
        assert await in_time(waiting) == 3
    await server.close()


async def test_a_server_that_is_closed_ends_the_waits_for_its_results(bench: Bench, one_store: Stores) -> None:
    server = bench.server()
    sent = await server.send_task("add", 1, 2)
    waiting = asyncio.create_task(sent.get())
    await asyncio.sleep(0)
    await server.close()
    with pytest.raises(Unavailable, match="closed"):
        await in_time(waiting)


# ------------------------------------------------------------------------------------------ tasks, arguments


async def nothing_was_sent(server: Server) -> None:
    (depth,) = await server.queues()
    assert (depth.ready, depth.held, depth.delayed, depth.dead) == (0, 0, 0, 0)


@pytest.fixture
def adding(bench: Bench, one_store: Stores) -> Server:
    """A server with one task."""
    server = bench.server()

    server.task(name="add")(_add)
    return server


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "takes 1 to 2 arguments, not 0"),
        ((1, 2, 3), {}, "takes 1 to 2 arguments, not 3"),
        ((1,), {"c": 3}, "'c'"),
        ((1,), {"a": 1}, "'a'"),
        (("one",), {}, "argument 1.*'one' is not int64"),
        ((None,), {}, "argument 1"),
        ((1.5,), {}, "argument 1"),
        ((2**63,), {}, "argument 1.*int64"),
        ((1, 128), {}, "argument 2.*int8"),
        ((math.nan,), {}, "argument 1.*nan"),
        ((object(),), {}, "argument 1"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_when_sent(
    args: tuple[Any, ...], kwargs: dict[str, Any], said: str, adding: Server
) -> None:
    with pytest.raises(ArgumentError, match=f"add.*({said})"):
        await adding.send_task("add", *args, **kwargs)
    add = adding.task(name="add")(_add)
    with pytest.raises(ArgumentError, match=f"add.*({said})"):
        await add.send(*args, **kwargs)
    await nothing_was_sent(adding)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**64, object(), {1, 2}, "\ud800"])
async def test_values_that_no_message_can_hold_are_refused_for_unknown_tasks_too(value: Any, adding: Server) -> None:
    with pytest.raises(ArgumentError, match=r"another server.*argument 1"):
        await adding.send_task("a task of another server", value)
    await nothing_was_sent(adding)


async def test_times_that_mean_nothing_are_refused(adding: Server) -> None:
    add = adding.task(name="again")(_again)
    for options, said in (
        ({"eta": datetime(2030, 1, 1)}, "eta.*(naive|time zone|timezone)"),
        ({"eta": "tomorrow"}, "eta"),
        ({"countdown": math.nan}, "countdown.*finite"),
        ({"countdown": 1e308}, "task again: countdown: .* after 9999"),
        ({"countdown": 10**400}, "task again: countdown: .* after 9999"),
        ({"eta": datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))}, "task again: eta: .* after 9999"),
        ({"countdown": 1.0, "eta": datetime(2030, 1, 1, tzinfo=UTC)}, "one of them"),
    ):
        with pytest.raises(ArgumentError, match=said):
            await add.with_(**options).send(1)
    await nothing_was_sent(adding)


async def _again(a: int) -> int:
    return a


async def _add(a: int, b: Int8 = 0) -> int:
    return a + b


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"priority": 256}, "priority must be a whole number from 0 to 255, not 256"),
        ({"priority": -1}, "priority must be"),
        ({"retries": -1}, "retries must be"),
        ({"retries": 1.5}, "retries must be"),
        ({"countdown": "5"}, "countdown must be a finite number of seconds"),
        ({"countdown": 1e30}, "countdown.*year"),
        ({"on_success": "add"}, "on_success must be a signature"),
        ({"headers": "x"}, "headers must be a mapping"),
        ({"headers": {"x": object()}}, "headers"),
        ({"prority": 5}, "no option 'prority'; did you mean 'priority'"),
        ({"delay": 5}, "no option 'delay' .known: eta, countdown"),
        ({"queue": 7}, "queue must be a text"),
        ({"eta": "tomorrow"}, "task add: eta must be a datetime with a time zone"),
        ({"eta": None}, "task add: eta must be a datetime with a time zone"),
        ({"countdown": True}, "countdown must be"),
        ({"headers": {1: "x"}}, "headers must be a mapping of names to values"),
        ({"immutable": "no"}, "immutable must be True or False"),
        ({"on_success": [Signature(name="add")]}, "on_success must be a signature, .* or a tuple of them"),
    ],
)
async def test_options_of_a_send_that_cannot_be_are_refused(options: Any, said: str, adding: Server) -> None:
    add = adding.task(name="add")(_add)
    with pytest.raises(ArgumentError, match=said):
        await add.with_(**options).send(1)
    await nothing_was_sent(adding)


async def test_names_that_cannot_be_are_refused(adding: Server) -> None:
    add = adding.task(name="add")(_add)
    for queue in ("a queue", "q" * 201, "delayed_tasks"):
        with pytest.raises(Refused, match=f"task 'add' cannot be sent: queue '{queue[:64]}"):
            await add.with_(queue=queue).send(1)
        with pytest.raises(ConfigError, match=f"queue '{queue[:64]}"):
            Worker(adding, queues=queue)
    for uuid in ("a b", "machinery_tasks"):
        with pytest.raises(Refused, match=f"task UUID '{uuid}'"):
            await add.with_(task_id=uuid).send(1)
    for name in ("", "a\nb", "n" * 201):
        with pytest.raises(Refused, match="1 to 200 printable characters"):
            await adding.send_task(name, 1)
    await nothing_was_sent(adding)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retries": -1}, "retries must be"),
        ({"retries": "5"}, "retries must be"),
        ({"priority": 256}, "priority must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": math.nan}, "timeout must be"),
        ({"timeout": "30"}, "timeout must be"),
        ({"retry_on": (ValueError, 5)}, "retry_on must be an exception class, or a tuple of them, not .*5"),
        ({"backoff": "fast"}, "task '_add': backoff 'fast': expected fibonacci"),
        ({"backoff": 5}, "backoff must be a name, or a plain function"),
        ({"backoff": lambda attempt: attempt}, "backoff must be a name, or a plain function"),
        ({"backoff": asyncio.sleep}, "backoff must be a name, or a plain function"),
        ({"timeout": True}, "timeout must be"),
        ({"retry_later_limit": 0}, "retry_later_limit must be a whole number from 1 on"),
        ({"stop_task_deletion_on_error": "no"}, "stop_task_deletion_on_error must be True or False"),
        ({"queue": "a b"}, "task '_add': queue 'a b'"),
        ({"queue": ["a"]}, "task '_add': queue .'a'.: expected text"),
        ({"name": ""}, "task name '': expected 1 to 200"),
        ({"name": 5}, "task name 5: expected text"),
        ({"retires": 5}, "no option 'retires'; did you mean 'retries'"),
    ],
)
def test_options_of_a_task_that_cannot_be_are_refused(options: Any, said: str) -> None:
    server = Server("memory://options")
    with pytest.raises(ConfigError, match=said):
        server.task(**options)(_add)
    assert server.registered_task_names() == []


def test_workers_that_cannot_be_are_refused() -> None:
    server = Server("memory://options")
    for options, said in (
        ({"concurrency": -1}, "concurrency"),
        ({"grace": -1.0}, "grace"),
        ({"grace": math.nan}, "grace"),
        ({"queues": ["a", "a"]}, "named twice"),
        ({"concurrency": "4"}, "concurrency must be a whole number .* not '4'"),
        ({"concurrency": 1.5}, "concurrency must be a whole number"),
        ({"grace": "5"}, "grace must be a number of seconds"),
        ({"queues": 5}, "queues must be a name or a list of names, not 5"),
        ({"queues": [5]}, "queue 5: expected text"),
    ):
        with pytest.raises(ConfigError, match=said):
            Worker(server, **options)
    with pytest.raises(ConfigError, match="a worker runs the tasks of a Server, not of str"):
        Worker("redis://")  # type: ignore[arg-type]  # what somebody without a type checker may do


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": 5}, "the URL of a server must be a text, not int"),
        ({"broker": ["amqp://a:c4nary-hunter2@b"]}, "broker must be a URL or a driver, not list"),
        ({"backend": False}, "backend must be a URL or a driver, not bool"),
        ({"lock": object()}, "lock must be a URL or a driver, not object"),
        ({"broker": MemoryBroker}, "broker must be a URL or a driver, not the class MemoryBroker"),
        ({"url": "https://k:c4nary-hunter2@[b/1"}, r"broker URL 'https://k:\*\*\*@\[b/1': Invalid IPv6 URL"),
        ({"settings": {"broker": "redis://:c4nary-hunter2@b"}}, "settings must be Settings, not dict; Settings.parse"),
        ({"settings": Settings(go_queues=("orders",))}, "go_queues names .* go_compat is off; expected go_compat"),
    ],
)
def test_servers_that_cannot_be_are_refused(options: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        Server(**options)
    assert CANARY not in everything_said(raised.value, caplog)


@pytest.mark.parametrize("url", ["gcppubsub://project/workers", "https://sqs.us-east-2.amazonaws.com/1"])
def test_a_backend_of_ones_own_stands_beside_a_service_that_keeps_no_results(url: str) -> None:
    backend = MemoryBackend(MemoryStore())
    for server in (Server(url, backend=backend), Server(broker=url, backend=backend)):
        assert server.broker_address == url


async def test_a_lock_that_is_named_stands_beside_a_broker_of_ones_own() -> None:
    broker = MemoryBroker(MemoryStore())
    settings = Settings.parse({"lock": "memory://options"})
    for named in (Server(broker=broker, lock="memory://options"), Server(broker=broker, settings=settings)):
        async with named:
            assert isinstance(await named.turn_lock(), MemoryLock)
    async with Server(broker=broker) as server:
        assert await server.lock() is None


def test_go_queues_may_stand_in_one_source_and_go_compat_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.yaml").write_text("broker: memory://\ngo_queues: [orders]\n")
    with pytest.raises(ConfigError, match="go_compat is off"):
        Server.from_yaml(tmp_path / "queue.yaml")
    monkeypatch.setenv("ASYNCQUEUE_GO_COMPAT", "true")
    server = Server("memory://options")
    server.override(tmp_path / "queue.yaml")
    assert server.rules().go.shares("orders")


def test_functions_without_a_name_need_one() -> None:
    server = Server("memory://options")
    for function in (lambda: 1, functools.partial(_add, 1)):
        with pytest.raises(ConfigError, match=r"has no name of its own; expected server.task\(name="):
            server.task(function)
        assert server.task(name="named")(function).name == "named"
        server = Server("memory://options")


def test_a_task_of_one_server_can_be_one_of_another_too() -> None:
    here, there = Server("memory://here"), Server("memory://there")
    add = here.task(name="add")(_add)
    assert there.task(add).function is _add
    there.register_tasks({"add": add, "plus": add})
    assert there.registered_task_names() == ["add", "plus"]


async def test_what_is_no_task_is_refused_where_it_is_sent(adding: Server) -> None:
    add = adding.task(name="add")(_add)
    server: Any = adding  # whoever has no type checker gives anything
    signature: Any = Signature
    sends = (
        (server.send_task(5), "send_task: expected a task, .* not int 5"),
        (server.send_task(_again), "_again is a function and no task: register it with @server.task"),
        (server.send_task(_again(1)), r"_again\(…\) was called, not sent: use _again.s\(…\)"),
        (server.send_task(add.send(1)), r"use s\(…\) in place of send\(…\)"),
        (server.send_many(add.s(1)), "send_many: expected a list of signatures"),
        (server.send_many(None), "send_many: expected a list of signatures, not None"),
        (server.send_many([add.s(1), "add"]), r"send_many: 'add' is a name: use server.signature\('add'"),
        (server.send_many([chain(add.s(1), add.s())]), "send_many: a chain is more than one task: use send"),
        (server.send(5), "send: expected a task, a signature or a workflow, not int 5"),
        (server.send([add.s(1)]), "send: expected a task, a signature or a workflow, not list"),
    )
    for send, said in sends:
        with pytest.raises(ArgumentError, match=said):
            await send
    with pytest.raises(ArgumentError, match=r"a result is asked for by its UUID, .* not by TaskSignature"):
        server.result(add.s(1))
    with pytest.raises(ConfigError, match="cron spec 5: expected a text"):
        server.schedule(5, "often", add.s(1))
    with pytest.raises(ArgumentError, match="task add: a signature has no field 'queue'"):
        add.s(1).with_changes(queue="x")
    with pytest.raises(ValueError, match=r"queue\n.*[Ee]xtra"):
        signature(name="add", queue="x")
    await nothing_was_sent(adding)


async def test_a_message_over_the_limit_is_refused_with_both_sizes(adding: Server) -> None:
    with pytest.raises(MessageTooLarge, match=r"'?big'?.*is \d{7} bytes, the limit is 1000000"):
        await adding.send_task("big", "x" * 1_000_000)
    await nothing_was_sent(adding)


async def test_one_bad_signature_among_many_keeps_all_of_them_back(adding: Server) -> None:
    good = adding.signature("add", 1)
    bad = Signature(name="add", args=(Arg(type="string", value="x"),))
    with pytest.raises(ArgumentError, match="add"):
        await adding.send_many([good, bad, good])
    await nothing_was_sent(adding)


async def test_arguments_that_nobody_could_check_are_a_failure_with_its_callback(
    bench: Bench, one_store: Stores
) -> None:
    sender, server = bench.server(), bench.server()
    told: list[str] = []

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    @server.task
    async def note(error: str) -> None:
        told.append(error)

    async with bench.working(server):
        bad = sender.signature("add", "x", 1).with_changes(on_error=(Signature(name="note"),))
        too_few = sender.signature("add", 1)
        results = await sender.send_many([bad, too_few, sender.signature("add", 1, 2)])
        with pytest.raises(TaskFailed, match=r"add.*argument 1.*int64"):
            await results[0].get(30)
        with pytest.raises(TaskFailed, match=r"add.*takes 2 arguments"):
            await results[1].get(30)
        assert await results[2].get(30) == 3

        async def is_told() -> bool:
            return len(told) == 1

        await eventually(is_told)
    assert "argument 1" in told[0]


async def test_a_result_that_is_not_what_the_task_says_is_told_without_our_own_lines(
    bench: Bench, one_store: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    server = bench.server()

    @server.task
    async def count() -> int:
        return "three"  # type: ignore[return-value]  # that is what is tried here

    async with bench.working(server):
        with pytest.raises(TaskFailed, match=r"the result of task count: .three. is not int64"):
            await (await count.send()).get(30)
    (failure,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert failure.exc_info
    lines = traceback.format_exception(failure.exc_info[1])
    assert sum(line.lstrip().startswith("File ") for line in lines) == 1


async def test_a_task_that_nobody_knows_is_kept_and_one_warning_names_it(
    bench: Bench, one_store: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    old, new = bench.server(), bench.server()
    results = await old.send_many([Signature(name="from_the_next_release") for _ in range(5)])
    async with bench.working(old):

        async def is_warned() -> bool:
            return "from_the_next_release is not registered" in caplog.text

        await eventually(is_warned)
    assert caplog.text.count("from_the_next_release") == 1

    @new.task
    async def from_the_next_release() -> str:
        return "here"

    async with bench.working(new):
        assert [await each.get(30) for each in results] == ["here"] * 5


async def test_hostile_bytes_go_to_the_dead_letter_with_a_reason(bench: Bench, one_store: Stores) -> None:
    server = bench.server()

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    hostile = {
        b"\x00\xff\xfe": "undecodable",
        b'{"UUID":"task_x","Name":7}': "invalid_signature",
        b"[" * 100_000: "undecodable",
    }
    await (await server.connected()).broker.publish([Message(body, "machinery_tasks", "x") for body in hostile])
    async with bench.working(server):
        assert await (await add.send(1, 2)).get(30) == 3

        async def all_dead() -> list[Any]:
            dead = list(await server.dead())
            return dead if len(dead) == len(hostile) else []

        dead = await eventually(all_dead)
    assert {each.body: each.reason for each in dead}.keys() == hostile.keys()
    assert all(each.reason and each.error for each in dead)


# ------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("default_que: x\n", "unknown key 'default_que'; did you mean 'default_queue'"),
        ("worker: {concurency: 3}\n", "'concurency' in section 'worker'; did you mean 'concurrency'"),
        ("worker: {concurrency: -3}\n", "worker.concurrency: expected at least 0"),
        ("worker: {grace: .nan}\n", "worker.grace"),
        (f"broker: [redis://:{CANARY}@h]\n", "broker: expected text"),
        (f"brokr: redis://:{CANARY}@h\n", "did you mean 'broker'"),
    ],
)
def test_a_file_with_a_mistake_is_named_with_the_key_and_the_nearest_one(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "asyncqueue.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        Server.from_yaml(file)
    assert str(raised.value).startswith(str(file))
    assert said in str(raised.value)
    assert CANARY not in str(raised.value)


def test_the_command_line_checks_a_file(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(f"broker: redis://:{CANARY}@h\ndefault_que: x\n")
    (tmp_path / "app.py").write_text("from asyncqueue import Server\nserver = Server('memory://')\n")
    for words in (("config", "check", "bad.yaml"), ("worker", "app:server", "--config", "bad.yaml")):
        ended = cli(*words, cwd=tmp_path)
        assert ended.returncode != 0
        assert "unknown key 'default_que'; did you mean 'default_queue'?" in ended.stderr
        assert CANARY not in ended.stderr + ended.stdout
        assert "Traceback" not in ended.stderr


# ------------------------------------------------------------------------------------------------- results


async def test_no_backend_expired_and_unknown_are_three_errors(bench: Bench, one_store: Stores) -> None:
    server = bench.server(results_expire_in=0.3)
    sent = await server.send_task("add", 1, 2)
    for ask in (lambda: server.result("task_never_sent").get(), lambda: server.result("task_never_sent").state()):
        with pytest.raises(ResultUnknown, match="task_never_sent"):
            await in_time(ask())
    with pytest.raises(ResultExpired, match=sent.task_id):
        await in_time(sent.get())
    with pytest.raises(ResultUnknown, match=sent.task_id):  # reopened, and nobody knows whether it ever was
        await in_time(server.result(sent.task_id).get())
    silent = Server(broker=one_store.broker, backend="null")
    with pytest.raises(NoBackend, match="no result backend"):
        await (await silent.send_task("add", 1, 2)).get()
    await silent.close()


async def test_a_result_that_does_not_come_in_time_names_the_task(adding: Server) -> None:
    sent = await adding.send_task("add", 1, 2)
    with pytest.raises(ResultTimeout, match=sent.task_id):
        await sent.get(0.05)
    with pytest.raises(TimeoutError):
        await sent.get(0)
