"""Settings: sources, precedence, complaints, live reload, and a documentation that is in step."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from asyncqueue.config import (
    EFFECT,
    SETTINGS,
    Reloader,
    Settings,
    WorkerSettings,
    changed,
    effect,
    from_env,
    from_overrides,
    from_yaml,
    layered,
    load,
)
from asyncqueue.config.settings import Effect, parse_seconds
from asyncqueue.config.sources import parse_yaml
from asyncqueue.config.table import markdown
from asyncqueue.errors import ConfigError

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
CANARY = "c4n4ry"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("default_queue: q\n")
    path.chmod(0o600)
    return path


def complaint(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text.encode() if isinstance(text, str) else text, "config.yaml")
    assert str(caught.value).startswith("config.yaml: ")
    return str(caught.value).removeprefix("config.yaml: ")


# --- models


def test_nothing_said_means_the_embedded_store_and_machinerys_other_defaults() -> None:
    settings = Settings()
    assert settings.broker == settings.result_backend == "sqlite:///asyncqueue.db"
    assert settings.lock == ""
    assert settings.default_queue == "machinery_tasks"
    assert settings.results_expire_in == 3600
    assert settings.amqp.model_dump() == {
        "exchange": "machinery_exchange",
        "exchange_type": "direct",
        "queue_declare_args": {},
        "queue_binding_args": {},
        "binding_key": "machinery_task",
        "prefetch_count": 3,
        "auto_delete": False,
        "delayed_queue": "",
    }
    assert settings.redis.max_idle == 3
    assert settings.redis.max_idle_timeout == 240
    assert settings.redis.read_timeout == settings.redis.write_timeout == settings.redis.connect_timeout == 15
    assert (settings.redis.normal_tasks_poll_period, settings.redis.delayed_tasks_poll_period) == (1000, 500)
    assert settings.dynamodb.model_dump() == {
        "task_states_table": "task_states",
        "group_metas_table": "group_metas",
        "locks_table": "aq_locks",
    }
    assert settings.worker.concurrency == 10
    assert (settings.worker.prefetch, settings.worker.grace, settings.worker.lease) == (1000, 25, 15)
    assert (settings.worker.max_deliveries, settings.worker.unknown_task_after) == (5, 86_400)
    assert (settings.limits.message_bytes, settings.limits.depth) == (1_000_000, 256)
    assert settings.publish_timeout == 15
    assert settings.go_compat is False


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.default_queue = "other"
    with pytest.raises(ValidationError):
        settings.redis.max_idle = 4


def test_zero_means_the_default_where_it_does_in_machinery() -> None:
    settings = parse_yaml(
        b"results_expire_in: 0\nredis: {normal_tasks_poll_period: 0, delayed_tasks_poll_period: 0}", ""
    )
    assert settings.results_expire_in == 3600
    assert settings.redis.normal_tasks_poll_period == 1000
    assert settings.redis.delayed_tasks_poll_period == 500


def test_every_setting_describes_itself() -> None:
    for setting in SETTINGS:
        assert setting.description.endswith("."), setting.path
        if setting.kind == "seconds":
            assert setting.unit == "s", setting.path
    paths = [setting.path for setting in SETTINGS]
    assert len(set(paths)) == len(paths)
    variables = [name for setting in SETTINGS for name in setting.variables]
    assert len(set(variables)) == len(variables)


def test_every_field_is_a_setting() -> None:
    found = set()
    for name in Settings.model_fields:
        section = Settings.sections().get(name)
        found |= {f"{name}.{inner}" for inner in section.model_fields} if section else {name}
    assert found == {setting.path for setting in SETTINGS}


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("2.5", 2.5), ("1h30m", 5400), ("500ms", 0.5), ("1m1.5s", 61.5), ("-1", -1)]
)
def test_a_duration_reads_as_in_go(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1 s", "1d", "1e3", "nan", "inf", "1h x", "٣s", "٣"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_seconds(text)


# --- what is wrong is named, and no secret is shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redis: {max_idel: 3}", "unknown key 'max_idel' in section 'redis'; did you mean 'max_idle'?"),
        ("defalt_queue: x", "unknown key 'defalt_queue'; did you mean 'default_queue'?"),
        ("concurrency: 3", "unknown key 'concurrency'; did you mean 'worker.concurrency'?"),
        ("zzzzzz: 3", "unknown key 'zzzzzz'"),
        ("1: x", "unknown key '1'"),
        ("worker.concurrency: 3", "unknown key 'worker.concurrency'; it is key 'concurrency' in section 'worker'"),
        ("worker.concurency: 3", "unknown key 'worker.concurency'; did you mean 'worker.concurrency'?"),
        ("broker:redis://h: 3", "unknown key 'broker…'; did you mean 'broker'?"),
        ("redis: {max_idle:3}", "unknown key 'max_idle…' in section 'redis'; did you mean 'max_idle'?"),
        ("results_expire_in: -1", "results_expire_in: expected at least 0 s, got -1"),
        ("redis: {max_idle: many}", "redis.max_idle: expected a whole number of connections, got text"),
        ("redis: {max_idle: true}", "redis.max_idle: expected a whole number of connections, got true or false"),
        ("redis: {max_idle: 1.5}", "redis.max_idle: expected a whole number of connections, got a number"),
        (
            "redis: {read_timeout: soon}",
            'redis.read_timeout: expected seconds, or a duration such as "1m30s", got text',
        ),
        (
            "redis: {read_timeout: .inf}",
            'redis.read_timeout: expected seconds, or a duration such as "1m30s", got a number',
        ),
        ("redis: {wait: 1}", "redis.wait: expected true or false, got a number"),
        ("redis: 3", "redis: expected a section with keys of its own, got a number"),
        ("redis: [a]", "redis: expected a section with keys of its own, got a list"),
        ("default_queue: on", "default_queue: expected text, got true or false"),
        ("default_queue:", "default_queue: expected text, got nothing"),
        ("default_queue: a b", "default_queue: a queue's name has 1 to 200 of the characters"),
        ("broker: ''", "broker: expected a text that is not empty"),
        ("worker: {queues: one}", "worker.queues: expected a list of texts, got text"),
        ("worker: {queues: [1]}", "worker.queues: expected a list of texts, got a number"),
        ("worker: {lease: 0}", "worker.lease: expected more than 0 s, got 0"),
        ("worker: {prefetch: 0}", "worker.prefetch: expected at least 1 tasks, got 0"),
        ("amqp: {prefetch_count: 100000}", "amqp.prefetch_count: expected at most 65535 messages, got 100000"),
        ("amqp: {queue_declare_args: {a: []}}", "amqp.queue_declare_args: expected a mapping of names to"),
        ("amqp: {queue_declare_args: 3}", "amqp.queue_declare_args: expected a mapping of names to"),
        ("tls: {servername: a, server_name: b}", "tls: server_name is set twice, under two spellings"),
        ("tls: {}\ntlsconfig: {}", "tls is set twice, under two spellings"),
        ("limits: {message_bytes: 1" + "0" * 400 + "}", "limits.message_bytes: expected at most 1000000000 bytes"),
        ("limits: {message_bytes: 1" + "0" * 5000 + "}", "a number or date that cannot be"),
        ("default_queue: 2024-99-99", "a number or date that cannot be"),
        ("default_queue: a\ndefault_queue: b", "key 'default_queue' is given twice in line 2"),
        ("redis: {wait: true, wait: false}", "key 'wait' is given twice in line 1"),
        ("broker: &x redis://h\nlock: *x", "aliases and anchors are not allowed"),
        ("redis: {sentinel_password: *secret}", "aliases and anchors are not allowed"),
        ("broker: !!python/name:os.system x", "tags are not allowed"),
        ("broker: !!str x", "tags are not allowed"),
        ("<<: {broker: x}", "could not determine a constructor"),
        ("{[a]: b}", "a key is a mapping or a list in line 1"),
        ("a: b\n---\nc: d", "expected a single document"),
        ("amqp: {queue_declare_args: " + "[" * 100_000, "nested deeper than 16 levels in line 1"),
        ("broker: [", "not the YAML of a configuration"),
        ("broker: \x00", "not the YAML of a configuration"),
        ("", "the file is empty"),
        ("# only a comment", "the file is empty"),
        ("- a", "expected a mapping of settings (key: value), got one list"),
        ("just text", "expected a mapping of settings (key: value), got one str"),
        (b"broker: \xff", "not UTF-8 at byte 8"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(text: str | bytes, said: str) -> None:
    assert said in complaint(text)


def test_all_complaints_come_at_once() -> None:
    said = complaint("defalt_queue: x\nredis: {wait: 1, max_idle: x}")
    assert "defalt_queue" in said
    assert "redis.wait" in said
    assert "redis.max_idle" in said


@pytest.mark.parametrize(
    "text",
    [
        f"broker: [redis://u:{CANARY}@h]",
        f"broker: redis://u:{CANARY}@h\nresults_expire_in: -1",
        f"redis: redis://u:{CANARY}@h",
        f"redis: {{max_idle: 'redis://u:{CANARY}@h'}}",
        f"redis: {{sentinel_password: [{CANARY}]}}",
        f"redis: {{sentinel_password: &{CANARY} x}}",
        f"redis: {{sentinel_password: *{CANARY}}}",
        f"redis: {{sentinel_password: !{CANARY}}}",
        f"redis: {{sentinel_password: {CANARY}",
        f"redis: {{sentinel_password: '{CANARY}",
        f"broker:redis://u:{CANARY}@h\n",
        f"redis: {{sentinel_password:{CANARY}}}",
        f"redis: {{'sentinel_password={CANARY}': 1, 'sentinel_password={CANARY}': 2}}",
        f"broker:redis://u:{CANARY}@h: x",
        f"broker:redis://u:{CANARY}@h: x\nbroker:redis://u:{CANARY}@h: x",
        f"broker: redis://u:{CANARY}@h\n\tlock: x",
    ],
)
def test_no_complaint_shows_a_secret(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text.encode(), "config.yaml")
    shown: BaseException | None = caught.value
    while shown is not None:
        assert CANARY not in f"{shown} {shown!r}"
        shown = None if shown.__suppress_context__ else shown.__context__


def test_a_number_as_password_is_not_shown() -> None:
    assert "12345" not in complaint("redis: {sentinel_password: 12345}")


def test_settings_show_themselves_without_secrets() -> None:
    url = f"redis://u:{CANARY}@h/0"
    settings = Settings.parse(
        {"broker": url, "result_backend": url, "lock": url, "redis": {"sentinel_password": CANARY}}
    )
    for shown in (repr(settings), str(settings), f"{settings.redis!r}", repr(settings.redacted())):
        assert CANARY not in shown
        assert "***" in shown
    assert "redis://u:***@h/0" in repr(settings)
    assert settings.broker == url
    assert settings.has_secrets()
    assert not Settings().has_secrets()


def test_direct_construction_shows_no_secret_either() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(broker=f"redis://:{CANARY}@h", default_queue=f"{CANARY} x")
    assert CANARY not in str(caught.value)


# --- files


def test_a_whole_long_file_counts(file: Path) -> None:
    file.write_text("# " + "x" * 5_000 + "\ndefault_queue: late\n")
    assert from_yaml(file).default_queue == "late"


def test_a_byte_order_mark_is_no_harm() -> None:
    assert parse_yaml(b"\xef\xbb\xbfdefault_queue: a", "").default_queue == "a"


def test_a_section_with_nothing_under_it_is_as_if_it_were_not_there() -> None:
    assert parse_yaml(b"redis:\n  # max_idle: 3\ndefault_queue: a", "").redis == Settings().redis


def test_machinerys_own_spellings_are_understood() -> None:
    settings = parse_yaml(
        b"sqs: {visibility_hearth_beat: true}\ntlsconfig: {insecureskipverify: true, servername: host}", ""
    )
    assert settings.sqs.visibility_hearth_beat
    assert settings.tls.insecure_skip_verify
    assert settings.tls.server_name == "host"
    assert parse_yaml(b"sqs: {visibility_heart_beat: true}", "") == parse_yaml(
        b"sqs: {visibility_hearth_beat: true}", ""
    )


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read the configuration: No such file"):
        from_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        from_yaml(tmp_path)


def test_a_file_over_a_megabyte_is_refused(file: Path) -> None:
    file.write_text("# " + "x" * 1_000_000)
    with pytest.raises(ConfigError, match="larger than 1000000 bytes"):
        from_yaml(file)


def test_a_file_with_a_password_that_others_may_write_is_warned_of(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.chmod(0o666)
    from_yaml(file)
    assert not caplog.records
    file.write_text(f"broker: redis://u:{CANARY}@h")
    from_yaml(file)
    assert "can be changed by other users" in caplog.text
    assert CANARY not in caplog.text


# --- environment

MACHINERYS_VARIABLES: Mapping[str, tuple[str, str, object]] = {
    "BROKER": ("broker", "redis://h", "redis://h"),
    "LOCK": ("lock", "redis://h", "redis://h"),
    "MULTIPLE_BROKEN_SEPARATOR": ("multiple_broker_separator", ";", ";"),
    "MULTIPLE_BROKER_SEPARATOR": ("multiple_broker_separator", ";", ";"),
    "DEFAULT_QUEUE": ("default_queue", "q", "q"),
    "RESULT_BACKEND": ("result_backend", "redis://h", "redis://h"),
    "RESULTS_EXPIRE_IN": ("results_expire_in", "60", 60.0),
    "NO_UNIX_SIGNALS": ("no_unix_signals", "T", True),
    "AMQP_EXCHANGE": ("amqp.exchange", "x", "x"),
    "AMQP_EXCHANGE_TYPE": ("amqp.exchange_type", "topic", "topic"),
    "AMQP_QUEUE_DECLARE_ARGS": (
        "amqp.queue_declare_args",
        "x-max-priority:10,x:a,y:1.5,z:true,n:007",
        {"x-max-priority": 10, "x": "a", "y": 1.5, "z": True, "n": "007"},
    ),
    "AMQP_QUEUE_BINDING_ARGS": ("amqp.queue_binding_args", "image-type:png,n:1", {"image-type": "png", "n": "1"}),
    "AMQP_BINDING_KEY": ("amqp.binding_key", "k", "k"),
    "AMQP_PREFETCH_COUNT": ("amqp.prefetch_count", "7", 7),
    "AMQP_AUTO_DELETE": ("amqp.auto_delete", "1", True),
    "AMQP_DELAYED_QUEUE": ("amqp.delayed_queue", "d", "d"),
    "SQS_WAIT_TIME_SECONDS": ("sqs.receive_wait_time_seconds", "20", 20),
    "SQS_VISIBILITY_TIMEOUT": ("sqs.receive_visibility_timeout", "30", 30),
    "SQS_VISIBILITY_HEARTBEAT": ("sqs.visibility_hearth_beat", "true", True),
    "REDIS_MAX_IDLE": ("redis.max_idle", "0x10", 16),
    "REDIS_MAX_ACTIVE": ("redis.max_active", "5", 5),
    "REDIS_IDLE_TIMEOUT": ("redis.max_idle_timeout", "5m", 300.0),
    "REDIS_WAIT": ("redis.wait", "True", True),
    "REDIS_READ_TIMEOUT": ("redis.read_timeout", "1", 1.0),
    "REDIS_WRITE_TIMEOUT": ("redis.write_timeout", "2", 2.0),
    "REDIS_CONNECT_TIMEOUT": ("redis.connect_timeout", "500ms", 0.5),
    "REDIS_NORMAL_TASKS_POLL_PERIOD": ("redis.normal_tasks_poll_period", "100", 100),
    "REDIS_DELAYED_TASKS_POLL_PERIOD": ("redis.delayed_tasks_poll_period", "20", 20),
    "REDIS_DELAYED_TASKS_KEY": ("redis.delayed_tasks_key", "later", "later"),
    "REDIS_CLIENT_NAME": ("redis.client_name", "me", "me"),
    "REDIS_MASTER_NAME": ("redis.master_name", "m", "m"),
    "REDIS_CLUSTER_MODE": ("redis.cluster_mode", "t", True),
    "REDIS_CLUSTER_ENABLED": ("redis.cluster_enabled", "true", True),
    "TASK_STATES_TABLE": ("dynamodb.task_states_table", "s", "s"),
    "GROUP_METAS_TABLE": ("dynamodb.group_metas_table", "g", "g"),
}


@pytest.mark.parametrize("name", MACHINERYS_VARIABLES)
def test_machinerys_variables_set_their_keys_and_nothing_else(name: str) -> None:
    path, text, value = MACHINERYS_VARIABLES[name]
    settings = from_env({name: text})
    assert settings.value(path) == value
    assert changed(Settings(), settings) == {path}
    if "." in path:
        prefixed = f"{path.partition('.')[0].upper()}_{name}"
        assert from_env({prefixed: text, name: "not looked at"}) == settings


def test_the_sentinels_password_comes_from_the_environment() -> None:
    settings = from_env({"REDIS_SENTINEL_PASSWORD": CANARY})
    assert settings.redis.sentinel_password.get_secret_value() == CANARY


def test_all_of_machinerys_variables_are_known() -> None:
    known = {name for setting in SETTINGS for name in setting.variables if not name.startswith("ASYNCQUEUE_")}
    assert known == {
        form
        for name, path in [
            *((name, path) for name, (path, _, _) in MACHINERYS_VARIABLES.items()),
            ("REDIS_SENTINEL_PASSWORD", "redis.sentinel_password"),
        ]
        for form in ([name, f"{path.partition('.')[0].upper()}_{name}"] if "." in path else [name])
    }


def test_ours_are_named_after_their_keys_and_win() -> None:
    settings = from_env(
        {
            "ASYNCQUEUE_WORKER_CONCURRENCY": "0",
            "ASYNCQUEUE_WORKER_QUEUES": "a, b",
            "ASYNCQUEUE_WORKER_THREAD_LIMIT": "4",
            "ASYNCQUEUE_LIMITS_MESSAGE_BYTES": "2048",
            "ASYNCQUEUE_GO_COMPAT": "true",
            "ASYNCQUEUE_BROKER": "memory://",
            "BROKER": "redis://h",
        }
    )
    assert settings.worker == WorkerSettings(concurrency=0, queues=("a", "b"), thread_limit=4)
    assert settings.limits.message_bytes == 2048
    assert settings.go_compat
    assert settings.broker == "memory://"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert from_env({"REDIS_MAX_IDLE": "", "BROKER": "", "AMQP_AMQP_EXCHANGE": "", "AMQP_EXCHANGE": "x"}) == (
        from_overrides({"amqp.exchange": "x"})
    )


def test_no_variable_turns_tls_on() -> None:
    settings = from_env({"BROKER": "redis://h", "ASYNCQUEUE_TLS_CA_FILE": "ca.pem"})
    assert settings.broker == "redis://h"
    assert settings.tls.ca_file == "ca.pem"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("REDIS_WAIT", "yes", "environment: REDIS_WAIT: expected one of 1, t, T"),
        ("REDIS_MAX_IDLE", "many", "environment: REDIS_MAX_IDLE: expected a whole number"),
        ("REDIS_MAX_IDLE", " 1", "environment: REDIS_MAX_IDLE: expected a whole number"),
        ("REDIS_MAX_IDLE", "-1", "environment: REDIS_MAX_IDLE: expected at least 0 connections, got -1"),
        ("REDIS_READ_TIMEOUT", "soon", "environment: REDIS_READ_TIMEOUT: expected seconds"),
        ("AMQP_QUEUE_BINDING_ARGS", "a", "environment: AMQP_QUEUE_BINDING_ARGS: expected pairs"),
        ("REDIS_MAX_IDLE", f"redis://u:{CANARY}@h", "environment: REDIS_MAX_IDLE: expected a whole number"),
    ],
)
def test_a_wrong_variable_is_named(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_env({name: text})
    assert str(caught.value).startswith(said)
    assert CANARY not in str(caught.value)


def test_a_misspelt_variable_is_mentioned_and_a_strangers_is_not(caplog: pytest.LogCaptureFixture) -> None:
    from_env({"ASYNCQUEUE_PORT": "tcp://10.0.0.1:80", "ASYNCQUEUE_WORKER_CONCURENCY": "3"})
    assert [record.getMessage() for record in caplog.records] == [
        "environment variable ASYNCQUEUE_WORKER_CONCURENCY is no setting; did you mean ASYNCQUEUE_WORKER_CONCURRENCY?"
    ]


# --- several sources


def test_overrides_win_over_the_environment_that_over_the_file_that_over_the_defaults(file: Path) -> None:
    file.write_text("default_queue: file\nlock: file\nbroker: file\nredis: {max_idle: 1, max_active: 1, wait: true}")
    environ = {"LOCK": "env", "BROKER": "env", "REDIS_MAX_ACTIVE": "2", "REDIS_MAX_IDLE": "2"}
    settings = load(file, environ, {"broker": "code", "redis.max_idle": 3, "redis": {"client_name": "code"}})
    assert (settings.default_queue, settings.lock, settings.broker) == ("file", "env", "code")
    assert (settings.redis.max_idle, settings.redis.max_active, settings.redis.wait) == (3, 2, True)
    assert settings.redis.client_name == "code"
    assert settings.result_backend == Settings().result_backend


def test_a_default_said_aloud_wins_over_a_weaker_layer() -> None:
    assert layered(Settings(default_queue="a"), Settings(default_queue="machinery_tasks")).default_queue == (
        "machinery_tasks"
    )


def test_layers_with_different_spellings_meet(file: Path) -> None:
    file.write_text("tlsconfig: {servername: file, ca_file: file}")
    settings = load(file, {"ASYNCQUEUE_TLS_SERVER_NAME": "env"})
    assert (settings.tls.server_name, settings.tls.ca_file) == ("env", "file")


def test_secrets_survive_the_layers(file: Path) -> None:
    file.write_text(f"redis: {{sentinel_password: {CANARY}}}")
    assert load(file, {}).redis.sentinel_password.get_secret_value() == CANARY


def test_the_processs_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_QUEUE", "from_the_process")
    assert load().default_queue == "from_the_process"
    assert load(environ={}).default_queue == "machinery_tasks"


def test_a_wrong_override_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'concurrency'"):
        load(environ={}, overrides={"worker.concurency": 3})


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)
YAML_KEYS = st.sampled_from([setting.path.rpartition(".")[2] for setting in SETTINGS]) | st.text()


@given(
    data=st.dictionaries(
        st.sampled_from(list(Settings.model_fields)) | st.text(), st.dictionaries(YAML_KEYS, YAML_VALUES) | YAML_VALUES
    )
)
@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_in_a_file_it_loads_or_is_a_config_error(data: dict[Any, Any]) -> None:
    content = yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass")
    try:
        settings = parse_yaml(content, "config.yaml")
    except ConfigError:
        return
    assert layered(settings) == settings


@given(content=st.binary(max_size=200) | st.text(":-[]{}&*!|>'\"%@`#,? \n\tab1", max_size=60).map(str.encode))
def test_whatever_bytes_a_file_has_it_loads_or_is_a_config_error(content: bytes) -> None:
    try:
        parse_yaml(content, "config.yaml")
    except ConfigError:
        return


# --- live reload


class Receiver:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[Settings, frozenset[str]]] = asyncio.Queue()

    async def __call__(self, settings: Settings, keys: frozenset[str]) -> None:
        self.told.put_nowait((settings, keys))

    def last(self) -> tuple[Settings, frozenset[str]]:
        return self.told.get_nowait()


def reloader(file: Path, receiver: Receiver, **more: Any) -> Reloader:
    environ = more.get("environ", {})
    settings = load(file, environ, more.get("overrides"))
    return Reloader(file, settings, receiver, **{"environ": {}, "settle": 0.0, **more})


async def test_a_changed_file_is_told_with_the_keys_that_changed(file: Path) -> None:
    receiver = Receiver()
    watch = reloader(file, receiver)
    assert await watch.look() == frozenset()
    file.write_text("default_queue: other\nworker: {concurrency: 3}")
    assert await watch.look() == {"default_queue", "worker.concurrency"}
    settings, keys = receiver.last()
    assert settings == watch.settings
    assert (settings.default_queue, settings.worker.concurrency) == ("other", 3)
    assert keys == {"default_queue", "worker.concurrency"}
    assert await watch.look() == frozenset()
    assert receiver.told.empty()


async def test_what_changed_between_loading_and_the_first_look_is_told(file: Path) -> None:
    receiver = Receiver()
    watch = reloader(file, receiver)
    file.write_text("default_queue: other")
    assert await watch.look() == {"default_queue"}


async def test_a_deleted_key_has_its_default_again(file: Path) -> None:
    receiver = Receiver()
    watch = reloader(file, receiver)
    file.write_text("lock: ''")
    await watch.look()
    assert receiver.last()[0].default_queue == "machinery_tasks"


async def test_a_comment_changes_nothing(file: Path) -> None:
    receiver = Receiver()
    watch = reloader(file, receiver)
    file.write_text("default_queue: q # the same\n")
    assert await watch.look() == frozenset()
    assert receiver.told.empty()


async def test_the_same_size_at_the_same_time_is_still_noticed(file: Path) -> None:
    watch = reloader(file, Receiver())
    await watch.look()
    before = file.stat()
    file.write_text("default_queue: p\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert await watch.look() == {"default_queue"}


async def test_environment_and_overrides_still_win_after_a_reload(file: Path) -> None:
    watch = reloader(file, Receiver(), environ={"LOCK": "env"}, overrides={"broker": "code"})
    file.write_text("lock: file\nbroker: file\ndefault_queue: file")
    assert await watch.look() == {"default_queue"}
    assert (watch.settings.lock, watch.settings.broker) == ("env", "code")


async def test_a_broken_file_changes_nothing_and_is_one_error_per_content(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver()
    watch = reloader(file, receiver)
    old = watch.settings

    async def errors_after(content: str | None) -> list[str]:
        caplog.clear()
        file.unlink(missing_ok=True) if content is None else file.write_text(content)
        for _ in range(3):
            assert await watch.look() == frozenset()
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    assert len(await errors_after(f"broker: [redis://u:{CANARY}@h")) == 1
    assert len(await errors_after("defalt_queue: other")) == 1
    assert await errors_after(f"broker: [redis://u:{CANARY}@h") == []
    (missing,) = await errors_after(None)
    assert missing.startswith("settings not reloaded, the old ones stay: ")
    assert str(file) in missing
    assert len(await errors_after("")) == 1
    assert CANARY not in caplog.text
    assert watch.settings is old
    assert receiver.told.empty()
    assert await errors_after("default_queue: q") == []
    assert len(await errors_after("defalt_queue: other")) == 1


async def test_what_needs_a_restart_is_warned_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text("broker: redis://u:a@h\nresult_backend: redis://u:a@h")
    watch = reloader(file, Receiver())
    file.write_text("broker: redis://u:b@h\nresult_backend: amqp://u:a@h\nworker: {queues: [a], concurrency: 2}")
    await watch.look()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["a restart is needed for: result_backend, worker.queues"]


async def test_a_receiver_that_fails_does_not_end_the_watch(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def fail(settings: Settings, keys: frozenset[str]) -> None:
        seen.append(settings.default_queue)
        raise RuntimeError("no")

    watch = Reloader(file, load(file, {}), fail, environ={}, settle=0.0)
    for queue in ("a", "b"):
        file.write_text(f"default_queue: {queue}")
        await watch.look()
    assert seen == ["a", "b"]
    assert "not all of them could be taken up" in caplog.text


async def test_a_file_is_believed_only_when_it_has_stopped_changing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = reloader(file, Receiver())
    await watch.look()
    contents = iter(["default_queue: q\nlo", "default_queue: whole", "default_queue: whole"])
    monkeypatch.setattr(watch, "_read", lambda: next(contents).encode())
    assert await watch.look() == {"default_queue"}
    assert watch.settings.default_queue == "whole"
    assert next(contents, None) is None


async def test_running_it_notices_by_itself_and_ends_when_cancelled(file: Path) -> None:
    receiver = Receiver()
    watch = reloader(file, receiver, interval=0.01)
    task = asyncio.create_task(watch.run())
    for queue in ("a", "b"):
        file.write_text(f"default_queue: {queue}")
        async with asyncio.timeout(30):
            settings, _ = await receiver.told.get()
        assert settings.default_queue == queue
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_every_key_says_when_a_change_takes_effect() -> None:
    assert set(EFFECT) == {setting.path for setting in SETTINGS}
    assert set(EFFECT.values()) == set(get_args(Effect))
    at_once = {"default_queue", "results_expire_in", "redis.normal_tasks_poll_period", "worker.concurrency"}
    at_once |= {"redis.delayed_tasks_poll_period", "worker.grace", "limits.message_bytes", "worker.unknown_task_after"}
    assert {EFFECT[path] for path in at_once} == {"at once"}
    assert {EFFECT[path] for path in ("redis.delayed_tasks_key", "worker.queues")} == {"never"}
    assert {EFFECT[path] for path in EFFECT if path.startswith("tls.")} == {"at reconnect"}


@pytest.mark.parametrize(
    ("old", "new", "when"),
    [
        ("redis://u:a@h/0", "redis://u:b@h/0", "at reconnect"),
        ("redis://h/0", "rediss://h/0", "never"),
        ("redis://h/0", "redis://h/1", "never"),
        ("redis://h/0", "amqp://h/0", "never"),
        ("amqp://a:b@h1/;amqp://a:b@h2/", "amqp://a:c@h1/;amqp://a:c@h2/", "at reconnect"),
    ],
)
def test_new_credentials_count_at_reconnect_and_another_place_never(old: str, new: str, when: Effect) -> None:
    for path in ("broker", "result_backend", "lock"):
        assert effect(path, Settings.parse({path: old}), Settings.parse({path: new})) == when


# --- documentation


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def test_the_documents_file_and_environment_say_the_same() -> None:
    (in_yaml,) = blocks("yaml")
    (in_env,) = blocks("env")
    environ = dict(line.split("=", 1) for line in in_env.splitlines())
    settings = parse_yaml(in_yaml.encode(), DOCUMENT)
    assert settings == from_env(environ)
    assert changed(Settings(), settings) == {
        "broker",
        "result_backend",
        "results_expire_in",
        "redis.connect_timeout",
        "redis.normal_tasks_poll_period",
        "amqp.queue_declare_args",
        "worker.concurrency",
        "worker.queues",
        "worker.grace",
    }


def test_the_documents_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("asyncqueue.yaml").write_text(blocks("yaml")[0])
    concurrency = []
    for code in blocks("python"):
        names: dict[str, Any] = {}
        exec(code, names)
        concurrency.append(names["settings"].worker.concurrency)
    assert concurrency == [100, 4, 4]


def test_the_documents_tables_are_in_step_with_the_code() -> None:
    documented = re.search(r"<!-- tables: begin[^\n]*\n(.*)<!-- tables: end -->", DOCUMENT.read_text(), re.DOTALL)
    assert documented is not None
    assert documented[1].strip() == markdown().strip(), "run `python -m asyncqueue.config.table` and paste its output"


def test_the_tables_can_be_printed() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "asyncqueue.config.table"], capture_output=True, text=True, check=True, timeout=60
    )
    assert printed.stdout == markdown()
