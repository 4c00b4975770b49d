"""One call of one task, as Machinery writes it.

The field names of the wire are Go's (``UUID``, ``RoutingKey``, …) and are the aliases here. ``wire.py`` turns these
models into bytes and back; nothing else knows the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, Self, TypeVar
from uuid import uuid4

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from asyncqueue import rfc3339
from asyncqueue.clock import to_nanoseconds
from asyncqueue.errors import ArgumentError
from asyncqueue.models import changed

R = TypeVar("R")
H_co = TypeVar("H_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)

MAX_PRIORITY = 255


def _moment(value: object, info: ValidationInfo) -> object:
    """Accept what people and wires write for a moment: unix nanoseconds, an aware datetime, RFC 3339 text."""
    if isinstance(value, str):
        return rfc3339.parse(value)
    if info.mode == "json":
        raise ValueError("expected RFC 3339 text")  # a number is no moment to Go
    if isinstance(value, datetime):
        return to_nanoseconds(value)
    return value


Moment = Annotated[int, BeforeValidator(_moment), Field(ge=rfc3339.ZERO, le=rfc3339.LAST)]
"""Unix nanoseconds, years 1 to 9999. Aware datetimes and RFC 3339 text are accepted and converted; naive ones are
refused."""

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
"""The range of Go's ``int``."""

MODEL = ConfigDict(frozen=True, populate_by_name=True, extra="ignore", strict=False, protected_namespaces=())


class Arg(BaseModel):
    """One argument: a type name of Machinery's 29 (or ``json``) and the value in its JSON form.

    ``name`` binds the argument to a parameter only where the signature says so with the header ``aq-kw``;
    Go writes names too and ignores them.
    """

    model_config = MODEL | ConfigDict(extra="forbid")

    name: str = Field(default="", validation_alias="Name")
    type: str = Field(default="", validation_alias="Type")
    value: Any = Field(default=None, validation_alias="Value")


class Signature(BaseModel):
    """One call of one task: Machinery's ``Signature``, every field.

    ``eta`` is unix nanoseconds (an aware ``datetime`` or RFC 3339 text is converted). ``retry_count`` is how many
    retries are left, ``retry_timeout`` the last wait in seconds. ``args``, ``headers``, ``on_success`` and
    ``on_error`` tell ``None`` from empty, because Go writes ``null`` and ``[]`` apart.
    """

    model_config = MODEL | ConfigDict(extra="forbid")

    uuid: str = Field(default="", validation_alias="UUID")
    name: str = Field(default="", validation_alias="Name")
    routing_key: str = Field(default="", validation_alias="RoutingKey")
    eta: Moment | None = Field(default=None, validation_alias="ETA")
    group_uuid: str = Field(default="", validation_alias="GroupUUID")
    group_task_count: int = Field(default=0, ge=0, le=INT64_MAX, validation_alias="GroupTaskCount")
    args: tuple[Arg, ...] | None = Field(default=None, validation_alias="Args")
    headers: dict[str, Any] | None = Field(default=None, validation_alias="Headers")
    priority: int = Field(default=0, ge=0, le=MAX_PRIORITY, validation_alias="Priority")
    immutable: bool = Field(default=False, validation_alias="Immutable")
    retry_count: int = Field(default=0, ge=INT64_MIN, le=INT64_MAX, validation_alias="RetryCount")
    retry_timeout: int = Field(default=0, ge=INT64_MIN, le=INT64_MAX, validation_alias="RetryTimeout")
    on_success: tuple[Signature, ...] | None = Field(default=None, validation_alias="OnSuccess")
    on_error: tuple[Signature, ...] | None = Field(default=None, validation_alias="OnError")
    chord_callback: Signature | None = Field(default=None, validation_alias="ChordCallback")
    broker_message_group_id: str = Field(default="", validation_alias="BrokerMessageGroupId")
    sqs_receipt_handle: str = Field(default="", validation_alias="SQSReceiptHandle")
    stop_task_deletion_on_error: bool = Field(default=False, validation_alias="StopTaskDeletionOnError")
    ignore_when_task_not_registered: bool = Field(default=False, validation_alias="IgnoreWhenTaskNotRegistered")

    def with_changes(self, **changes: Any) -> Self:
        """A copy in which the named fields (Python names) have other values. The values are not validated again. Raises
        ``ArgumentError`` for a field that there is not."""
        if not changes.keys() <= self.__dict__.keys():
            unknown = ", ".join(map(repr, changes.keys() - self.__dict__.keys()))
            raise ArgumentError(f"task {self.name}: a signature has no field {unknown}")
        return changed(self, changes)

    if TYPE_CHECKING:

        def _typed(self) -> Typed[Any, Any, Any]: ...


class Typed(Generic[R, H_co, T_contra]):
    """What a type checker knows of a part of a workflow: its result, what it hands on, what it takes. There are none at
    run time."""


class Call(Signature):
    """A signature that was made here, with what is never written.

    ``takes_nothing``: as a successor it is to be given none of the results before it. On the wire that is the
    predecessor's ``Immutable``, set where the two are brought together. ``sender`` is the server of its task.
    """

    takes_nothing: bool = False
    sender: Any = Field(default=None, exclude=True, repr=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """A part of a workflow that is too big for a message and is kept in the backend: what follows one task.

    ``signatures`` are its successors, and what follows them is inside of those, or in a plan of its own. ``ids`` are
    the UUIDs of all tasks, groups and plans in it, at any depth. ``not_before`` (unix seconds) is when the workflow is
    due, where that is later than now; it is never written.
    """

    plan_id: str
    signatures: tuple[Signature, ...]
    ids: tuple[str, ...]
    not_before: float | None = None


def new_task_id() -> str:
    """A fresh task UUID in Machinery's form, ``task_<uuid4>``."""
    return f"task_{uuid4()}"


def new_group_id() -> str:
    """A fresh group UUID in Machinery's form, ``group_<uuid4>``."""
    return f"group_{uuid4()}"


def header(signature: Signature, name: str) -> str | None:
    """The header of that name if it is there and is text; headers that are no text are other people's business."""
    if not signature.headers:
        return None
    value = signature.headers.get(name)
    return value if isinstance(value, str) else None


def with_headers(signature: Signature, headers: Mapping[str, str]) -> Signature:
    """A copy that has these headers too."""
    return signature.with_changes(headers={**(signature.headers or {}), **headers})


def nested(signature: Signature) -> Sequence[Signature]:
    """The signatures directly inside this one: successors, error handlers, chord callback."""
    callback = (signature.chord_callback,) if signature.chord_callback else ()
    return (*(signature.on_success or ()), *(signature.on_error or ()), *callback)
