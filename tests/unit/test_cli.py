"""The verbs of the command line, within this process: what they print, and what they say when it does not work."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from asyncqueue import Server, Settings
from asyncqueue.brokers.base import Message
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.cli import logs, reference
from asyncqueue.cli.doctor import _lock
from asyncqueue.cli.main import main
from asyncqueue.cli.target import load_server
from asyncqueue.cli.watch import snapshot
from asyncqueue.cli.worker import _warn_of_idleness
from asyncqueue.config import WorkerSettings
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.connections.sqlite import SCHEMA_VERSION
from asyncqueue.engine.events import Events, TaskFailed
from asyncqueue.errors import ConfigError
from tests.services import RedisServer

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
URL = "sqlite:///tasks.db"
QUEUE = "machinery_tasks"
APP = """
from asyncqueue import Server

server = Server("sqlite:///tasks.db")
number = 7


@server.task
async def add(a: int, b: int) -> int:
    return a + b


@server.task
async def fail() -> None:
    raise ValueError("no good")


def make() -> Server:
    return Server("sqlite:///made.db")


def make_badly() -> Server:
    raise RuntimeError("redis://user:s3cret@localhost:6379 is away")


async def make_later() -> Server:
    return server
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory: empty but for ``app.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    (tmp_path / "app.py").write_text(APP)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def cli(*words: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, words, input=stdin, env=env, catch_exceptions=False)


def cli_json(*words: str) -> Any:
    result = cli(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def with_server(work: Callable[[Server], Coroutine[Any, Any, None]], url: str = URL) -> None:
    async def run() -> None:
        async with Server(url) as server:
            await work(server)

    asyncio.run(run())


def bury(*bodies: bytes, url: str = URL) -> None:
    """Put bodies into the dead letter of the default queue."""

    async def work(server: Server) -> None:
        broker = (await server.connected()).broker
        await broker.publish([Message(body, QUEUE, f"task_{number}") for number, body in enumerate(bodies)])
        for _ in bodies:
            await broker.bury(await broker.fetch(QUEUE, 1, 10.0), "undecodable", "no JSON \x1b[2J")

    with_server(work, url)


# — which server —


def test_a_server_is_found_in_the_current_directory() -> None:
    assert load_server("app:server").registered_task_names() == ["add", "fail"]


def test_a_module_alone_means_its_only_server() -> None:
    assert load_server("app") is load_server("app:server")


def test_a_function_that_makes_a_server_is_called() -> None:
    assert "made.db" in load_server("app:make").broker_address


def test_a_missing_module_is_named_with_the_folder_that_was_searched(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no module 'nowhere'") as caught:
        load_server("nowhere:server")
    assert str(folder) in str(caught.value)


def test_a_module_that_is_missing_inside_the_application_is_not_taken_for_the_application(folder: Path) -> None:
    (folder / "needy.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ConfigError, match=r"module 'needy' cannot be imported: .*'not_installed_anywhere'.*needy.py:1"):
        load_server("needy:server")


def test_an_application_that_does_not_compile_is_shown_with_its_line(folder: Path) -> None:
    (folder / "typo.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(ConfigError, match=r"SyntaxError: .*typo.py:2") as caught:
        load_server("typo:server")
    assert str(caught.value).count("typo.py") == 1


def test_an_application_that_leaves_while_it_is_imported_is_named(folder: Path) -> None:
    (folder / "script.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match=r"module 'script' cannot be imported: SystemExit: 0 .*script.py:2"):
        load_server("script:server")


def test_a_missing_attribute_lists_the_servers_that_are_there() -> None:
    with pytest.raises(ConfigError, match="has no 'sever'; the servers in it are app:server"):
        load_server("app:sever")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("app:number", "app:number is a int, not a Server"),
        ("app:add", "app:add is a CoroutineTask, not a Server"),
        ("app:Server", "app:Server is the class Server"),
        ("app:make_later", "is a coroutine function"),
        ("app.py:server", "did you mean app:server"),
        ("app:", "not of the form MODULE:SERVER"),
        ("json", "there is no Server in it"),
    ],
)
def test_what_is_no_server_is_said_to_be_none(target: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_server(target)


def test_a_function_that_fails_to_make_a_server_is_quoted_without_passwords() -> None:
    with pytest.raises(ConfigError, match=r"app:make_badly\(\) failed: RuntimeError") as caught:
        load_server("app:make_badly")
    assert "s3cret" not in str(caught.value)


def test_errors_are_one_line_and_exit_code_1() -> None:
    result = cli("queues", "nowhere:server")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: there is no module 'nowhere'")


def test_debug_shows_the_whole_error() -> None:
    with pytest.raises(ConfigError):
        cli("--debug", "queues", "nowhere:server")


def test_a_server_must_be_said_once() -> None:
    nothing = cli("queues")
    assert nothing.exit_code == 2
    assert "Which server?" in nothing.stderr
    twice = cli("queues", "app:server", "--broker", URL)
    assert twice.exit_code == 2
    assert "both say which server" in twice.stderr
    too_much = cli("result", "app:server", "task_1", "task_2")
    assert too_much.exit_code == 2
    assert "Expected [MODULE:SERVER] UUID" in too_much.stderr


async def test_a_file_laid_over_the_code_leaves_what_it_does_not_say_and_takes_back_what_it_no_longer_says(
    folder: Path,
) -> None:
    file = folder / "settings.yaml"
    file.write_text("worker: {concurrency: 2}\n")
    server = Server(URL, settings=Settings(default_queue="mails", worker=WorkerSettings(concurrency=7, grace=3)))
    server.override(file)
    assert (server.settings.worker.concurrency, server.settings.worker.grace) == (2, 3)
    assert (server.settings.default_queue, server.broker_address) == ("mails", URL)
    reloader = server.reloader(file)
    assert await reloader.look() == frozenset()
    file.write_text("default_queue: reports\n")
    assert await reloader.look() == {"worker.concurrency", "default_queue"}
    assert (server.settings.worker.concurrency, server.settings.worker.grace) == (7, 3)
    assert server.rules().default_queue == "reports"


def test_options_a_file_and_the_environment_stand_for_a_server(folder: Path) -> None:
    (folder / "settings.yaml").write_text(f"broker: {URL}\ndefault_queue: from_file\n")
    assert cli_json("queues", "--broker", URL)[0]["queue"] == QUEUE
    assert cli_json("queues", "--config", "settings.yaml")[0]["queue"] == "from_file"
    by_environment = cli("queues", "--json", env={"BROKER": URL, "DEFAULT_QUEUE": "from_environment"})
    assert json.loads(by_environment.stdout)[0]["queue"] == "from_environment"


def test_an_error_never_shows_a_password() -> None:
    result = cli("queues", "--broker", "redsi://user:s3cret@localhost:6379/0")
    assert result.exit_code == 1
    assert "unknown scheme 'redsi'" in result.stderr
    assert "s3cret" not in result.stderr
    for words in (("queues",), ("queues", "--broker", URL), ("queues", "one", "two"), ("dead", "show", "one")):
        result = cli(*words, "redis://user:s3cret@localhost:6379/0")
        assert result.exit_code in (1, 2)
        assert "s3cret" not in result.stderr
    assert "a URL is given as --broker URL" in cli("queues", "redis://localhost:6379/0").stderr


# — sending and asking —


def test_a_sent_task_can_be_asked_for_by_the_id_that_was_printed() -> None:
    task_id = cli("send", "app:server", "add", "--args", "[2, 3]").stdout.strip()
    assert cli("result", "app:server", task_id).stdout == "PENDING\n"
    state = cli_json("result", "--broker", URL, task_id)
    assert list(state) == ["task_id", "name", "state", "results", "value", "error", "created_at", "attempt"]
    assert (state["task_id"], state["name"], state["state"], state["value"]) == (task_id, "add", "PENDING", None)


def test_waiting_prints_the_result(folder: Path) -> None:
    (folder / "eager.py").write_text(APP.replace("sqlite:///tasks.db", "eager://"))
    result = cli("send", "eager:server", "add", "--args", "[2]", "--kwargs", '{"b": 3}', "--wait", "30")
    assert result.stdout.splitlines()[1] == "SUCCESS 5"
    sent = cli_json("send", "eager:server", "add", "--args", "[2, 3]", "--wait", "30")
    assert sent["value"] == 5
    assert sent["results"] == [{"type": "int64", "value": 5}]
    assert {"task_id", "name", "queue", "due_at", "state", "error", "created_at", "attempt"} <= sent.keys()


def test_a_task_that_failed_is_exit_code_1(folder: Path) -> None:
    (folder / "eager.py").write_text(APP.replace("sqlite:///tasks.db", "eager://"))
    result = cli("send", "eager:server", "fail", "--wait", "30")
    assert result.exit_code == 1
    outcome = result.stdout.splitlines()[1]
    assert outcome.startswith("FAILURE ")
    assert outcome.endswith("no good")


def test_giving_up_waiting_is_exit_code_1_and_the_id_was_printed() -> None:
    result = cli("send", "app:server", "add", "--args", "[2, 3]", "--wait", "0.01")
    assert result.exit_code == 1
    assert result.stdout.startswith("task_")
    assert "did not end within 0.01 s" in result.stderr


def test_queue_and_countdown_are_taken_over() -> None:
    sent = cli_json("send", "app:server", "add", "--args", "[1, 2]", "--queue", "later", "--countdown", "3600")
    assert sent["queue"] == "later"
    (waiting,) = cli_json("tasks", "delayed", "app:server")
    assert (waiting["task_id"], waiting["queue"]) == (sent["task_id"], "later")
    assert sent["due_at"][:19] == waiting["due_at"][:19]
    assert cli_json("tasks", "delayed", "app:server", "--queue", "other") == []


def test_arguments_that_do_not_fit_are_an_error() -> None:
    result = cli("send", "app:server", "add", "--args", '["x", 3]')
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: task add")


@pytest.mark.parametrize(
    "option", [("--args", "[1,"), ("--args", "{}"), ("--kwargs", "[]"), ("--countdown", "-1"), ("--wait", "soon")]
)
def test_an_option_that_cannot_be_read_is_misuse(option: tuple[str, str]) -> None:
    result = cli("send", "app:server", "add", *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr


def test_a_name_that_is_not_registered_is_sent_with_a_note() -> None:
    result = cli("send", "app:server", "ad")
    assert result.exit_code == 0
    assert "did you mean add?" in result.stderr


def test_what_is_sent_into_the_memory_of_a_command_is_sent_with_a_note() -> None:
    assert "seen by this process alone" in cli("send", "--broker", "memory://", "add").stderr
    assert cli("send", "--broker", URL, "add").stderr == ""


def test_an_unknown_task_is_exit_code_1() -> None:
    result = cli("result", "app:server", "task_nobody_sent")
    assert result.exit_code == 1
    assert "no entry of task task_nobody_sent" in result.stderr


# — looking and purging —


def test_queues_are_listed_with_what_is_in_them() -> None:
    for _ in range(3):
        cli("send", "app:server", "add", "--args", "[1, 2]")
    expected = {"queue": QUEUE, "ready": 3, "held": 0, "delayed": 0, "dead": 0}
    assert cli_json("queues", "app:server") == [expected]
    header, row = cli("queues", "app:server").stdout.splitlines()
    assert header.split() == list(expected)
    assert row.split() == [str(value) for value in expected.values()]


def test_pending_tasks_are_listed_next_first_and_a_message_that_is_no_task_is_not_hidden() -> None:
    first = cli("send", "app:server", "add", "--args", "[1, 2]").stdout.strip()

    async def work(server: Server) -> None:
        await (await server.connected()).broker.publish([Message(b"\x1b]0;boo\x07", QUEUE, "task_x")])

    with_server(work)
    one, other = cli_json("tasks", "pending", "app:server")
    assert list(one) == ["task_id", "name", "queue", "due_at", "args", "priority", "bytes"]
    assert (one["task_id"], one["name"], one["args"]) == (first, "add", [1, 2])
    assert (other["task_id"], other["name"], other["bytes"]) == (None, None, 8)
    assert "(no task: 8 bytes)" in cli("tasks", "pending", "app:server").stdout
    assert cli_json("tasks", "pending", "app:server", "--limit", "1") == [one]


def test_purge_asks_and_drops() -> None:
    cli("send", "app:server", "add", "--args", "[1, 2]")
    refused = cli("purge", "app:server", QUEUE, stdin="n\n")
    assert refused.exit_code == 1
    assert cli_json("queues", "app:server")[0]["ready"] == 1
    assert cli("purge", "app:server", QUEUE, stdin="y\n").exit_code == 0
    assert cli_json("queues", "app:server")[0]["ready"] == 0
    assert cli_json("purge", "app:server", QUEUE, "--yes") == {"queue": QUEUE, "purged": 0}


def test_dead_messages_are_listed_shown_requeued_and_dropped() -> None:
    bury(b"garbage", b"\xff\xfe", b"third")
    listed = cli_json("dead", "list", "app:server")
    assert [each["reason"] for each in listed] == ["undecodable"] * 3
    assert list(listed[0]) == ["id", "queue", "task_id", "name", "reason", "error", "attempt", "buried_at"]
    first, second, third = (each["id"] for each in listed)
    assert cli_json("dead", "show", "app:server", first)["body"] == "garbage"
    shown = cli_json("dead", "show", "app:server", second)
    assert (shown["body"], shown["body_base64"]) == (None, "//4=")

    assert cli_json("dead", "requeue", "app:server", first) == {"queue": QUEUE, "requeued": 1}
    assert cli_json("queues", "app:server")[0] == {"queue": QUEUE, "ready": 1, "held": 0, "delayed": 0, "dead": 2}
    gone = cli("dead", "drop", "--broker", URL, first, second)
    assert gone.exit_code == 1
    assert gone.stdout == "1 dropped\n"
    assert "1 of the 2 ids are not in the dead letter" in gone.stderr
    assert [each["id"] for each in cli_json("dead", "list", "app:server")] == [third]
    assert cli_json("dead", "drop", "app:server", "--all") == {"queue": QUEUE, "dropped": 1}


def test_what_a_message_says_cannot_move_the_terminals_cursor() -> None:
    bury(b"\x1b[2Jgarbage\r\n")
    (entry,) = cli_json("dead", "list", "app:server")
    for words in (("list", "app:server"), ("show", "app:server", entry["id"])):
        printed = cli("dead", *words).stdout
        assert "\x1b" not in printed
        assert "\r" not in printed
        assert "\\x1b[2J" in printed


@pytest.mark.parametrize("verb", ["requeue", "drop"])
def test_ids_or_all_must_be_said(verb: str) -> None:
    assert cli("dead", verb, "app:server").exit_code == 2
    assert cli("dead", verb, "app:server", "1", "--all").exit_code == 2


def test_a_dead_message_that_is_not_there_is_named() -> None:
    result = cli("dead", "show", "app:server", "999")
    assert result.exit_code == 1
    assert "no '999' in the dead letter" in result.stderr


# — settings —


def test_config_check_prints_what_follows_from_file_and_environment_without_passwords(folder: Path) -> None:
    (folder / "settings.yaml").write_text("broker: redis://user:s3cret@localhost:6379/0\nworker: {concurrency: 4}\n")
    environment = {"ASYNCQUEUE_WORKER_CONCURRENCY": "9"}
    result = cli("config", "check", "settings.yaml", env=environment)
    assert result.exit_code == 0
    assert 'broker: "redis://user:***@localhost:6379/0"' in result.stdout.splitlines()
    assert "worker.concurrency: 9" in result.stdout.splitlines()
    assert "s3cret" not in result.stdout
    as_json = json.loads(cli("config", "check", "settings.yaml", "--json", env=environment).stdout)
    assert as_json["worker"]["concurrency"] == 9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("worker: {concurency: 4}\n", "did you mean 'concurrency'"),
        ("broker: rediss+scoket://user:s3cret@localhost\n", "unknown scheme"),
        ("", "the file is empty"),
    ],
)
def test_settings_that_cannot_work_are_one_line_and_exit_code_2(folder: Path, content: str, said: str) -> None:
    (folder / "settings.yaml").write_text(content)
    result = cli("config", "check", "settings.yaml")
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert "s3cret" not in result.stderr


# — the doctor —


def test_the_doctor_finds_a_good_server_well() -> None:
    report = cli_json("doctor", "app:server")
    assert report["ok"]
    found = {each["check"]: each for each in report["checks"]}
    assert list(found["broker"]) == ["check", "status", "detail", "milliseconds"]
    assert {"connect", "broker", "publish and fetch", "backend", "lock", "settlement", "tasks"} == found.keys()
    assert {each["status"] for each in report["checks"]} == {"ok"}
    assert found["settlement"]["detail"].startswith("atomic")
    assert found["tasks"]["detail"] == "2 registered"


def test_the_doctor_leaves_nothing_behind() -> None:
    cli("doctor", "app:server")
    assert cli_json("queues", "app:server") == [{"queue": QUEUE, "ready": 0, "held": 0, "delayed": 0, "dead": 0}]


def test_the_doctor_fails_where_nobody_answers() -> None:
    result = cli("doctor", "--broker", "redis://user:s3cret@127.0.0.1:1/0")
    assert result.exit_code == 1
    assert result.stdout.startswith("fail  connect")
    assert "127.0.0.1:1" in result.stdout
    assert "s3cret" not in result.stdout + result.stderr


def test_the_doctor_warns_of_stores_that_only_this_process_sees() -> None:
    assert "warn  connect" in cli("doctor", "--broker", "memory://").stdout


def test_the_doctor_knows_that_two_stores_settle_in_order() -> None:
    result = cli("doctor", "--broker", URL, "--backend", "sqlite:///results.db")
    assert "in order: state, callbacks, acknowledgement" in result.stdout


def test_the_doctor_says_that_a_server_without_a_lock_keeps_no_schedules() -> None:
    server = Server(broker=MemoryBroker(MemoryStore()), backend="null")
    (finding,) = asyncio.run(_lock(server))
    assert finding.detail.startswith("none: this server keeps no schedules")


def test_the_doctor_tells_version_clock_and_bad_settings_of_a_redis(redis_server: RedisServer) -> None:
    redis_server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    report = cli_json("doctor", "--broker", redis_server.url)
    found = {(each["check"], each["status"]): each["detail"] for each in report["checks"]}
    assert found["server", "ok"].startswith("version ")
    assert "allkeys-lru" in found["server", "warn"]
    assert ("clock", "ok") in found
    assert found["settlement", "ok"].startswith("atomic")


def test_the_doctor_names_what_a_user_of_redis_may_not_do(redis_server: RedisServer) -> None:
    redis_server.call("ACL", "SETUSER", "looker", "on", ">s3cret", "~*", "&*", "+@all", "-evalsha", "-eval", "-zadd")
    url = redis_server.url.replace("redis://", "redis://looker:s3cret@")
    result = cli("doctor", "--broker", url)
    assert result.exit_code == 1
    assert "fail  publish and fetch" in result.stdout
    assert "s3cret" not in result.stdout


# — logs, watching, and the rest —


def _failed(form: logging.Formatter) -> str:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(form.format(record))

    logger = logging.Logger("asyncqueue")
    logger.addHandler(Keep())
    events = Events(logger)
    try:
        raise ValueError("no\x1b[31m\ngood")
    except ValueError as exc:
        events.emit(TaskFailed("task_1", "add", "mails", str(exc), exc))
    return lines[0]


def test_a_json_line_carries_the_facts_of_its_event() -> None:
    line = _failed(logs.JsonLines())
    assert "\n" not in line
    record = json.loads(line)
    assert list(record)[:5] == ["time", "level", "logger", "message", "process"]
    assert (record["event"], record["task_id"], record["queue"]) == ("TaskFailed", "task_1", "mails")
    assert record["error"] == "no\x1b[31m\ngood"
    assert "ValueError" in record["exception"]


def test_a_text_line_escapes_control_characters_and_cannot_be_faked() -> None:
    first, *rest = _failed(logs.TextLines()).split("\n")
    assert "\x1b" not in first + "".join(rest)
    assert "ERROR" in first
    assert all(line.startswith(" ") for line in rest)


def test_a_snapshot_sees_sources_and_not_what_is_hidden_or_installed(folder: Path) -> None:
    for name in ("pkg/inside.py", ".hidden/no.py", "env/lib/no.py", "__pycache__/no.py", "notes.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (folder / "env" / "pyvenv.cfg").write_text("")
    assert {Path(path).name for path in snapshot(folder)} == {"app.py", "inside.py"}


def test_the_page_holds_the_help_of_every_verb_word_for_word() -> None:
    assert PAGE.read_text().endswith(reference.markdown()), "regenerate it: python -m asyncqueue.cli.reference"


def test_a_word_before_the_verbs_loads_no_driver() -> None:
    program = (
        "import sys; from asyncqueue.cli.main import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: print(sorted({'redis', 'sqlite3', 'asyncqueue.server'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[1:] == ["[]"]


def test_a_worker_that_would_wait_for_ever_says_why(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "idle.py").write_text("from asyncqueue import Server\nserver = Server('memory://idle')\n")
    _warn_of_idleness(load_server("app:server"))
    assert caplog.messages == []
    _warn_of_idleness(load_server("idle:server"))
    no_task, memory = caplog.messages
    assert no_task.startswith("no task is registered on this server")
    assert memory.startswith("memory://idle: what other processes send does not come here")


def test_reload_and_burst_do_not_go_together() -> None:
    assert cli("worker", "app:server", "--reload", "--burst").exit_code == 2


# — schedules —

SCHEDULES = """
from asyncqueue import Server

server = Server("redis://localhost:1")


@server.task
async def report(day: str) -> None: ...


server.schedule("CRON_TZ=UTC 0 6 1 1 *", "new year", report.s("first"), missed="last")
server.schedule("@every 1h", "often", report.s("any"), overlap="skip")
"""


def test_schedules_are_listed_with_their_next_times_and_nothing_is_connected(folder: Path) -> None:
    (folder / "periodic.py").write_text(SCHEDULES)
    yearly, often = cli_json("schedules", "periodic:server", "--count", "2")
    assert {**yearly, "next": len(yearly["next"])} == {
        "name": "new year",
        "spec": "CRON_TZ=UTC 0 6 1 1 *",
        "task": "report",
        "missed": "last",
        "overlap": "allow",
        "next": 2,
    }
    assert all(each.endswith("-01-01T06:00:00Z") for each in yearly["next"])
    assert [each[14:] for each in often["next"]] == ["00:00Z", "00:00Z"]
    lines = cli("schedules", "periodic:server").stdout.splitlines()
    assert lines[0].split() == ["name", "spec", "task", "next"]
    assert [len(line.split()) for line in lines[1:]] == [10, 1, 1, 5, 1, 1]


def test_a_server_without_schedules_says_so() -> None:
    result = cli("schedules", "app:server")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "There is no schedule.\n")
    assert cli_json("schedules", "app:server") == []


# migrate


def test_migrate_says_what_is_missing_and_makes_it_once(folder: Path) -> None:
    file = folder / "tasks.db"
    line = f"broker {file}: tables of version {SCHEMA_VERSION}\n"
    for _ in range(2):
        assert cli("migrate", "app:server", "--dry-run").output == f"missing  {line}"
        assert not file.exists()
    assert cli("migrate", "app:server").output == f"made  {line}"
    for options in ((), ("--dry-run",)):
        again = cli("migrate", "app:server", *options)
        assert (again.exit_code, again.stdout, again.stderr) == (0, "", "Nothing is missing.\n")


def test_migrate_tells_programs_of_each_store(folder: Path) -> None:
    stores = ("--broker", "sqlite:///one.db", "--backend", "sqlite:///other.db")
    change = f"tables of version {SCHEMA_VERSION}"
    expected = [
        {"part": "broker", "address": str(folder / "one.db"), "change": change},
        {"part": "result backend", "address": str(folder / "other.db"), "change": change},
    ]
    assert cli_json("migrate", *stores, "--dry-run") == expected
    assert cli_json("migrate", *stores) == expected
    assert cli_json("migrate", *stores) == []


def test_migrate_asks_nothing_of_stores_that_need_nothing() -> None:
    away = "redis://:s3cret@127.0.0.1:1/0"
    done = cli("migrate", "--broker", away)
    assert (done.exit_code, done.stderr) == (0, "Nothing is missing.\n")


def test_migrate_leaves_another_programs_file_alone(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "tasks.db")) as other:
        other.execute("CREATE TABLE theirs (id)")
    done = cli("migrate", "app:server")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "tasks.db belongs to another program" in done.stderr
