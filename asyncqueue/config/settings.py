"""The settings: what can be set, with units, defaults and the names it goes by."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from asyncqueue import names
from asyncqueue.errors import ConfigError
from asyncqueue.redact import redact_url

Effect = Literal["at once", "at reconnect", "never"]
Kind = Literal["text", "flag", "whole number", "seconds", "list", "map"]

_TEN_YEARS = 315_360_000
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Key:
    """What a setting says of itself beside type, default and description.

    ``effect`` is when a change of it takes effect in a running process. ``env`` are Machinery's names for its
    environment variable, strongest first; ``also`` are other spellings in a file. ``show`` says how its value may be
    shown: as it is, as a URL without passwords, or not at all.
    """

    effect: Effect
    unit: str = ""
    env: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    show: Literal["plainly", "as a URL", "never"] = "plainly"


def parse_seconds(text: str) -> float:
    """Seconds of a number (``"2.5"``) or of a duration as Go writes it (``"1h30m"``, ``"500ms"``).

    Raises ``ValueError`` for anything else.
    """
    if re.fullmatch(r"-?\d+(\.\d*)?", text, re.ASCII):
        return float(text)
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("not a duration")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def _seconds(value: object) -> object:
    return parse_seconds(value) if isinstance(value, str) else value


def shown_key(key: object) -> str:
    """A key of a file as it may be shown: without a missing space in ``password:secret``, what follows is a secret."""
    text = str(key)
    word = re.match(r"[\w.-]{0,80}", text)
    shown = word[0] if word else ""
    return shown if shown == text else f"{shown}…"


def _queue(name: str) -> str:
    if not names.valid_key(name):
        raise ValueError("a queue's name has 1 to 200 of the characters A-Z a-z 0-9 _ . : { } / -")
    if names.reserved(name):
        raise ValueError("stores keep something of their own under this name; expected another one")
    return name


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=_TEN_YEARS)]
SomeSeconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=_TEN_YEARS)]
Queue = Annotated[str, AfterValidator(_queue)]
Queues = Annotated[tuple[Queue, ...], BeforeValidator(_listed)]
ArgumentTable = Mapping[str, str | bool | int | float]


class Section(BaseModel):
    """A group of settings. Immutable; types are strict; shown without secrets."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        spelled = {other: name for name, key in cls.notes() for other in key.also}
        chosen: dict[object, object] = {}
        for given, value in values.items():
            name = spelled.get(given, given)
            if name in chosen:
                raise ValueError(f"{name} is set twice, under two spellings")
            # a section with nothing under it is an empty section
            chosen[name] = {} if value is None and name in cls.sections() else value
        return chosen

    @classmethod
    def notes(cls) -> Iterator[tuple[str, Key]]:
        """The fields that carry a ``Key``, by name."""
        for name, field in cls.model_fields.items():
            for note in field.metadata:
                if isinstance(note, Key):
                    yield name, note

    @classmethod
    def sections(cls) -> Mapping[str, type[Section]]:
        """The fields that are sections themselves, by name."""
        return {
            name: field.annotation
            for name, field in cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        }

    def redacted(self) -> dict[str, Any]:
        """All values as plain data, with passwords masked: for people, logs and ``asyncqueue config check``."""
        keys = dict(self.notes())
        return {name: _shown(value, keys.get(name)) for name, value in self}

    def __repr_args__(self) -> Iterator[tuple[str, object]]:
        keys = dict(self.notes())
        for name, value in self:
            yield name, value if isinstance(value, Section) else _shown(value, keys.get(name))


class AMQPSettings(Section):
    """RabbitMQ: exchange, binding, prefetch."""

    exchange: Annotated[
        str, Field(description="Exchange that tasks are published to."), Key("at reconnect", env=("AMQP_EXCHANGE",))
    ] = "machinery_exchange"
    exchange_type: Annotated[
        str,
        Field(min_length=1, description="Type of the exchange: direct, topic, fanout, headers or a plugin's."),
        Key("at reconnect", env=("AMQP_EXCHANGE_TYPE",)),
    ] = "direct"
    queue_declare_args: Annotated[
        ArgumentTable,
        Field(description="Arguments of the queues' declaration, e.g. x-max-priority: 10."),
        Key("at reconnect", env=("AMQP_QUEUE_DECLARE_ARGS",)),
    ] = {}
    queue_binding_args: Annotated[
        ArgumentTable,
        Field(description="Arguments of the queues' binding. From the environment they are texts, as in Go."),
        Key("at reconnect", env=("AMQP_QUEUE_BINDING_ARGS",)),
    ] = {}
    binding_key: Annotated[
        str,
        Field(description="Key that binds the default queue to the exchange."),
        Key("at reconnect", env=("AMQP_BINDING_KEY",)),
    ] = "machinery_task"
    prefetch_count: Annotated[
        int,
        Field(
            ge=0,
            le=65_535,
            description="How many messages of a queue a worker holds; not set, or 0: as many as it runs.",
        ),
        Key("at reconnect", unit="messages", env=("AMQP_PREFETCH_COUNT",)),
    ] = 3
    auto_delete: Annotated[
        bool,
        Field(description="Whether delay queues delete themselves when unused."),
        Key("at reconnect", env=("AMQP_AUTO_DELETE",)),
    ] = False
    delayed_queue: Annotated[
        str,
        Field(
            description="One queue for all delayed tasks of the default queue; empty: some for each range of delays."
        ),
        Key("at reconnect", env=("AMQP_DELAYED_QUEUE",)),
    ] = ""


class SQSSettings(Section):
    """Amazon SQS: waiting and visibility."""

    receive_wait_time_seconds: Annotated[
        int,
        Field(
            ge=0, le=20, description="How long a receive waits at least where it may wait: cheaper, and slower to stop."
        ),
        Key("never", unit="s", env=("SQS_WAIT_TIME_SECONDS",)),
    ] = 0
    receive_visibility_timeout: Annotated[
        int | None,
        Field(ge=0, le=43_200, description="How long a received message stays hidden; none or 0: worker.lease."),
        Key("never", unit="s", env=("SQS_VISIBILITY_TIMEOUT",)),
    ] = None
    visibility_hearth_beat: Annotated[
        bool,
        Field(description="Keeping hidden what is worked on (Go's spelling): of no meaning here, that is always done."),
        Key("never", env=("SQS_VISIBILITY_HEARTBEAT",), also=("visibility_heart_beat", "visibility_heartbeat")),
    ] = False
    create_queues: Annotated[
        bool,
        Field(description="Whether a queue that is not there is made when it is first used."),
        Key("never"),
    ] = True


class RedisSettings(Section):
    """Redis: connections, poll periods, Sentinel and Cluster."""

    max_idle: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="Unused connections: of no meaning here, they are as many as were needed at once.",
        ),
        Key("at reconnect", unit="connections", env=("REDIS_MAX_IDLE",)),
    ] = 3
    max_active: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="How many connections the broker, and the results, have in use at once; 0: 8 each. Waiting for"
            " messages and results takes up to 6 more.",
        ),
        Key("never", unit="connections", env=("REDIS_MAX_ACTIVE",)),
    ] = 0
    max_idle_timeout: Annotated[
        Seconds,
        Field(description="Unused connections: of no meaning here, one that rested is asked for a sign of life."),
        Key("at reconnect", unit="s", env=("REDIS_IDLE_TIMEOUT",)),
    ] = 240.0
    wait: Annotated[
        bool,
        Field(description="With all connections in use: of no meaning here, a call always waits for one."),
        Key("at reconnect", env=("REDIS_WAIT",)),
    ] = False
    read_timeout: Annotated[
        Seconds,
        Field(
            description="How long to wait for a reply; 0: no limit. For the broker at most a third of the lease, or 5."
        ),
        Key("at reconnect", unit="s", env=("REDIS_READ_TIMEOUT",)),
    ] = 15.0
    write_timeout: Annotated[
        Seconds,
        Field(description="Sending: of no meaning here, read_timeout spans sending and reply."),
        Key("at reconnect", unit="s", env=("REDIS_WRITE_TIMEOUT",)),
    ] = 15.0
    connect_timeout: Annotated[
        Seconds,
        Field(
            description="How long connecting may take; 0: no limit. For the broker at most a third of the lease, or 5."
        ),
        Key("at reconnect", unit="s", env=("REDIS_CONNECT_TIMEOUT",)),
    ] = 15.0
    normal_tasks_poll_period: Annotated[
        int,
        Field(ge=0, le=3_600_000, description="How long one look at a queue waits for a task; 0: 1000."),
        AfterValidator(lambda value: value or 1000),
        Key("at once", unit="ms", env=("REDIS_NORMAL_TASKS_POLL_PERIOD",)),
    ] = 1000
    delayed_tasks_poll_period: Annotated[
        int,
        Field(ge=0, le=3_600_000, description="How often to look for delayed tasks that are due; 0: 500."),
        AfterValidator(lambda value: value or 500),
        Key("at once", unit="ms", env=("REDIS_DELAYED_TASKS_POLL_PERIOD",)),
    ] = 500
    delayed_tasks_key: Annotated[
        str,
        Field(description="Redis key of the delayed tasks; empty: delayed_tasks."),
        Key("never", env=("REDIS_DELAYED_TASKS_KEY",)),
    ] = ""
    client_name: Annotated[
        str,
        Field(description="Name of our connections in CLIENT LIST."),
        Key("at reconnect", env=("REDIS_CLIENT_NAME",)),
    ] = ""
    master_name: Annotated[
        str,
        Field(description="Name of the master that sentinels watch, whose addresses are in the URL; empty: none do."),
        Key("never", env=("REDIS_MASTER_NAME",)),
    ] = ""
    cluster_mode: Annotated[
        bool,
        Field(description="Whether a URL with one address leads to a cluster, as one with several always does."),
        Key("never", env=("REDIS_CLUSTER_MODE",)),
    ] = False
    cluster_enabled: Annotated[
        bool,
        Field(description="The same as cluster_mode (Machinery v2's name)."),
        Key("never", env=("REDIS_CLUSTER_ENABLED",)),
    ] = False
    sentinel_password: Annotated[
        SecretStr,
        Field(description="Password of the sentinels themselves; the URL's is the master's."),
        Key("at reconnect", env=("REDIS_SENTINEL_PASSWORD",), show="never"),
    ] = SecretStr("")
    wait_for_replicas: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="How many replicas must have what is sent or recorded before that counts as done; 0: none.",
        ),
        Key("at reconnect", unit="replicas"),
    ] = 0


class DynamoDBSettings(Section):
    """Amazon DynamoDB: tables."""

    task_states_table: Annotated[
        str,
        Field(min_length=1, description="Table of task states."),
        Key("never", env=("TASK_STATES_TABLE",)),
    ] = "task_states"
    group_metas_table: Annotated[
        str,
        Field(min_length=1, description="Table of groups."),
        Key("never", env=("GROUP_METAS_TABLE",)),
    ] = "group_metas"
    locks_table: Annotated[
        str,
        Field(min_length=1, description="Table of locks, which Machinery has none of."),
        Key("never"),
    ] = "aq_locks"


class GCPPubSubSettings(Section):
    """Google Pub/Sub: leases, topics and subscriptions."""

    max_extension: Annotated[
        Seconds,
        Field(description="How long in all a message's lease is extended; 0: as long as its task runs."),
        Key("never", unit="s"),
    ] = 0.0
    create_topics: Annotated[
        bool,
        Field(description="Whether a topic or a subscription that is not there is made when it is first used."),
        Key("never"),
    ] = True


class MongoDBSettings(Section):
    """MongoDB: database and collections."""

    database: Annotated[
        str,
        Field(description="Database of results; empty: the one in the URL's path, else machinery."),
        Key("never"),
    ] = ""
    tasks_collection: Annotated[
        str,
        Field(min_length=1, description="Collection of task states; Go knows no other name than tasks."),
        Key("never"),
    ] = "tasks"
    group_metas_collection: Annotated[
        str,
        Field(min_length=1, description="Collection of groups; Go knows no other name than group_metas."),
        Key("never"),
    ] = "group_metas"
    locks_collection: Annotated[
        str,
        Field(min_length=1, description="Collection of locks, which Machinery has none of."),
        Key("never"),
    ] = "aq_locks"


class TLSSettings(Section):
    """How TLS is spoken where a URL asks for it. None of these turns TLS on; a scheme such as rediss:// does."""

    ca_file: Annotated[
        str,
        Field(description="Path of a PEM file with the authorities to trust; empty: the system's."),
        Key("at reconnect"),
    ] = ""
    cert_file: Annotated[
        str,
        Field(description="Path of a PEM file with our own certificate; empty: none."),
        Key("at reconnect"),
    ] = ""
    key_file: Annotated[
        str,
        Field(description="Path of a PEM file with our certificate's key; empty: it stands in cert_file."),
        Key("at reconnect"),
    ] = ""
    insecure_skip_verify: Annotated[
        bool,
        Field(description="Believe whoever answers: no certificate and no host name is verified. For trials only."),
        Key("at reconnect", also=("insecureskipverify",)),
    ] = False
    server_name: Annotated[
        str,
        Field(description="Host name that the certificate must carry; empty: the URL's."),
        Key("at reconnect", also=("servername",)),
    ] = ""


class WorkerSettings(Section):
    """What a worker process takes on, and how it lets go."""

    concurrency: Annotated[
        int,
        Field(ge=0, le=1_000_000, description="How many tasks run at once; 1: one after the other; 0: unlimited."),
        Key("at once", unit="tasks"),
    ] = 10
    queues: Annotated[
        Queues,
        Field(description="Queues to consume; none: the default queue."),
        Key("never"),
    ] = ()
    prefetch: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="How many tasks a worker of unlimited concurrency holds at most."),
        Key("at once", unit="tasks"),
    ] = 1000
    grace: Annotated[
        Seconds,
        Field(description="How long running tasks may go on after the first SIGTERM before they are cancelled."),
        Key("at once", unit="s"),
    ] = 25.0
    lease: Annotated[
        SomeSeconds,
        Field(description="After how long without a sign of life a worker's tasks go to others."),
        Key("never", unit="s"),
    ] = 15.0
    max_deliveries: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="How often a message is shown before it goes to the dead letter."),
        Key("at once", unit="deliveries"),
    ] = 5
    unknown_task_after: Annotated[
        Seconds,
        Field(description="At what age a message whose task no worker knows goes to the dead letter."),
        Key("at once", unit="s"),
    ] = 86_400.0
    thread_limit: Annotated[
        int | None,
        Field(ge=1, le=10_000, description="How many plain functions run in threads at once; none: as concurrency."),
        Key("never", unit="threads"),
    ] = None


class LimitSettings(Section):
    """What is refused, when sent and when received."""

    message_bytes: Annotated[
        int,
        Field(ge=1024, le=1_000_000_000, description="Largest message."),
        Key("at once", unit="bytes"),
    ] = 1_000_000
    depth: Annotated[
        int,
        Field(ge=8, le=900, description="How deep the JSON of a message may nest."),
        Key("at once", unit="levels"),
    ] = 256


class Settings(Section):
    """All settings. Immutable.

    ``Settings(broker=..., worker=WorkerSettings(concurrency=4))`` builds one in code; ``Settings.parse`` takes plain
    data and explains in a ``ConfigError`` what is wrong with it.
    """

    broker: Annotated[
        str,
        Field(min_length=1, description="URL of the broker, or several joined by multiple_broker_separator."),
        Key("at reconnect", env=("BROKER",), show="as a URL"),
    ] = "sqlite:///asyncqueue.db"
    result_backend: Annotated[
        str,
        Field(
            min_length=1, description="URL of the store of results; not set at all: the broker's; null://: keep none."
        ),
        Key("at reconnect", env=("RESULT_BACKEND",), show="as a URL"),
    ] = "sqlite:///asyncqueue.db"
    lock: Annotated[
        str,
        Field(description="URL of the locks of periodic tasks; empty: the broker's."),
        Key("at reconnect", env=("LOCK",), show="as a URL"),
    ] = ""
    program: Annotated[
        str,
        Field(description="Name in the locks of periodic tasks; for Go on one lock: the base name of its executable."),
        Key("never"),
    ] = "asyncqueue"
    multiple_broker_separator: Annotated[
        str,
        Field(description="What joins several broker URLs (AMQP); empty: there is one."),
        Key("never", env=("MULTIPLE_BROKEN_SEPARATOR", "MULTIPLE_BROKER_SEPARATOR")),
    ] = ""
    default_queue: Annotated[
        Queue,
        Field(description="Queue of tasks that name none. A worker goes on consuming the queues it started with."),
        Key("at once", env=("DEFAULT_QUEUE",)),
    ] = "machinery_tasks"
    results_expire_in: Annotated[
        Seconds,
        Field(description="How long a result is kept after its task is due; 0: 3600."),
        AfterValidator(lambda value: value or 3600.0),
        Key("at once", unit="s", env=("RESULTS_EXPIRE_IN",)),
    ] = 3600.0
    no_unix_signals: Annotated[
        bool,
        Field(description="Whether a worker leaves SIGTERM and SIGINT to the program around it."),
        Key("never", env=("NO_UNIX_SIGNALS",)),
    ] = False
    publish_timeout: Annotated[
        SomeSeconds,
        Field(
            description="How long sending a task may take, with all attempts, and how long a wait for its result goes"
            " on while the results are away."
        ),
        Key("at once", unit="s"),
    ] = 15.0
    go_compat: Annotated[
        bool,
        Field(description="Whether Go workers share our queues: what they could not run is refused when sent."),
        Key("never"),
    ] = False
    go_queues: Annotated[
        Queues,
        Field(description="With go_compat, the queues that Go workers are on; empty: they may be on any."),
        Key("never"),
    ] = ()
    amqp: AMQPSettings = AMQPSettings()
    sqs: SQSSettings = SQSSettings()
    redis: RedisSettings = RedisSettings()
    dynamodb: DynamoDBSettings = DynamoDBSettings()
    gcppubsub: GCPPubSubSettings = GCPPubSubSettings()
    mongodb: MongoDBSettings = MongoDBSettings()
    tls: Annotated[TLSSettings, Key("at reconnect", also=("tlsconfig",))] = TLSSettings()
    worker: WorkerSettings = WorkerSettings()
    limits: LimitSettings = LimitSettings()

    @classmethod
    def parse(
        cls, values: Mapping[str, object], source: str = "settings", names: Mapping[str, str] | None = None
    ) -> Self:
        """Settings from plain data: sections are mappings, unset keys keep their defaults.

        Raises ``ConfigError`` that starts with ``source`` and names each wrong key, what was expected and, for an
        unknown key, the nearest known one. It never shows a value that could be a secret. ``names`` are the names
        under which the user knows keys, where those are not the dotted ones.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as exc:
            complaints = dict.fromkeys(_complaint(detail, names or {}) for detail in _details(exc))
        # raised outside the except block: the original carries the values, secrets among them, into tracebacks
        raise ConfigError(f"{source}: {'; '.join(complaints)}")

    def has_secrets(self) -> bool:
        """Whether any URL holds a password, or any other secret is set."""
        urls = (self.broker, self.result_backend, self.lock)
        return bool(self.redis.sentinel_password.get_secret_value()) or any(url != redact_url(url) for url in urls)

    def value(self, path: str) -> object:
        """The value of a dotted key. Raises ``KeyError`` for an unknown one."""
        if path not in _BY_PATH:
            raise KeyError(path)
        section, dot, name = path.rpartition(".")
        return getattr(getattr(self, section) if dot else self, name)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as a fact: its dotted ``path`` and all that is known of it.

    ``variables`` are the environment variables that set it, strongest first; ``also`` other spellings of ``path``.
    """

    path: str
    kind: Kind
    default: object
    description: str
    unit: str
    effect: Effect
    variables: tuple[str, ...]
    also: tuple[str, ...]
    show: Literal["plainly", "as a URL", "never"]


def _settings(model: type[Section], section: str = "") -> Iterator[Setting]:
    inner = model.sections()
    for name, key in model.notes():
        if name in inner:
            continue
        field = model.model_fields[name]
        path = f"{section}.{name}" if section else name
        also = tuple(f"{section}.{other}" if section else other for other in key.also)
        # Go's loader takes the section as a prefix of the whole name too, and that form wins there
        machinery = (*(f"{section.upper()}_{env}" for env in key.env if section), *key.env)
        yield Setting(
            path=path,
            kind=_kind(field.annotation, field.metadata),
            default=field.default,
            description=field.description or "",
            unit=key.unit,
            effect=key.effect,
            variables=(*(f"ASYNCQUEUE_{one.upper().replace('.', '_')}" for one in (path, *also)), *machinery),
            also=also,
            show=key.show,
        )
    for name, nested in inner.items():
        yield from _settings(nested, name)


def _kind(annotation: Any, notes: list[Any]) -> Kind:
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (option for option in get_args(annotation) if option is not type(None))
    if annotation is bool:
        return "flag"
    if annotation is int:
        return "whole number"
    if annotation is float:
        return "seconds"
    if get_origin(annotation) is tuple:
        return "list"
    if get_origin(annotation) is get_origin(ArgumentTable):
        return "map"
    return "text"


SETTINGS: tuple[Setting, ...] = tuple(_settings(Settings))
_BY_PATH = {setting.path: setting for setting in SETTINGS}
_EXPECTED: Mapping[Kind, str] = {
    "text": "text",
    "flag": "true or false",
    "whole number": "a whole number",
    "seconds": 'seconds, or a duration such as "1m30s"',
    "list": "a list of texts",
    "map": "a mapping of names to texts, numbers, true or false",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
}


def _details(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False)


def _complaint(detail: ErrorDetails, names: Mapping[str, str]) -> str:
    at = [str(part) for part in detail["loc"]]
    if detail["type"] in ("extra_forbidden", "invalid_key") and ".".join(at[:-1]) not in _BY_PATH:
        return _unknown(at)
    setting = _BY_PATH.get(".".join(at[:2])) or _BY_PATH.get(at[0] if at else "")
    given = detail["input"]
    if setting is None:
        where = f"{'.'.join(at)}: " if at else ""
        if detail["type"] == "value_error":
            return where + str(detail["ctx"]["error"])
        return f"{where}expected a section with keys of its own, got {_what(given)}"
    name = names.get(setting.path, setting.path)
    if detail["type"] in _BOUNDS:
        bound, word = _BOUNDS[detail["type"]]
        return f"{name}: expected {word} {detail['ctx'][bound]}{_counted(setting)}, got {_number(given)}"
    if detail["type"] == "string_too_short":
        return f"{name}: expected a text that is not empty"
    if detail["type"] == "value_error" and setting.kind != "seconds":
        return f"{name}: {detail['ctx']['error']}"
    return f"{name}: expected {_expected(setting)}, got {_what(given)}"


def _unknown(at: list[str]) -> str:
    *sections, given = at
    section = ".".join(sections)
    shown = shown_key(given)
    given = shown.rstrip("…")
    if not sections and "." in given and given in _BY_PATH:
        home, _, name = given.partition(".")
        return f"unknown key {shown!r}; it is key {name!r} in section {home!r}"
    model = Settings.sections().get(section, Settings)
    near = difflib.get_close_matches(given, list(model.model_fields), n=1)
    if not near:
        last_words = {path.rpartition(".")[2]: path for path in reversed(_BY_PATH)}
        near = [
            last_words[word]
            for word in difflib.get_close_matches(given.rpartition(".")[2], last_words, n=1, cutoff=0.8)
        ]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown key {shown!r}{f' in section {section!r}' if section else ''}{hint}"


def _counted(setting: Setting) -> str:
    return f" {setting.unit}" if setting.unit else ""


def _expected(setting: Setting) -> str:
    of_what = f" of {setting.unit}" if setting.unit and setting.kind == "whole number" else ""
    return _EXPECTED[setting.kind] + of_what


def _number(value: object) -> str:
    return str(value) if isinstance(value, int | float) and abs(value) < 1e15 else "something else"


def _what(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return f"a value of type {type(value).__name__}"


def _shown(value: object, key: Key | None) -> object:
    if isinstance(value, Section):
        return value.redacted()
    if isinstance(value, SecretStr):
        return "***" if value.get_secret_value() else ""
    if key is not None and key.show == "as a URL" and isinstance(value, str):
        return redact_url(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
