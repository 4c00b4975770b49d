"""The tasks that this server can run: a name, a function, and how its arguments travel."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncqueue import names
from asyncqueue.arguments import JSON, Codec, codec
from asyncqueue.engine.context import TaskContext
from asyncqueue.errors import ArgumentError, ConfigError, TaskNotRegistered
from asyncqueue.go_compat import GoCompat, problem_for_go
from asyncqueue.models import made
from asyncqueue.retry import Backoff, fibonacci
from asyncqueue.signature import Arg, Signature, header
from asyncqueue.state import TaskResult

KEYWORDS_HEADER = "aq-kw"
"""The header that says: arguments with a name bind to the parameter of that name."""

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How a task is sent and run.

    ``retries`` is written to ``RetryCount`` at send. ``retry_on`` are the exceptions that use a retry up, every other
    one fails at once. ``timeout`` is the time limit of one run in seconds. ``retry_later_limit`` caps how many runs
    a task that raises ``RetryTaskLater`` may have in all. ``queue`` and ``priority`` are defaults of its sends.
    """

    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    backoff: Backoff = fibonacci
    timeout: float | None = None
    retry_later_limit: int | None = None
    queue: str | None = None
    priority: int = 0
    ignore_when_not_registered: bool = False
    stop_task_deletion_on_error: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a task that takes arguments off the wire."""

    name: str
    codec: Codec
    required: bool


@dataclass(frozen=True, slots=True)
class Bound:
    """Arguments ready for a call."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Registered:
    """A task: its name, its function, and what its annotations say."""

    name: str
    function: Function
    options: TaskOptions
    parameters: tuple[Parameter, ...]
    named: tuple[Parameter, ...]  # those that take an argument by name only
    variadic: Codec | None
    variadic_keywords: Codec | None
    results: tuple[Codec, ...] | None
    is_async: bool
    context_parameter: str | None
    signature: inspect.Signature
    by_name: Mapping[str, Parameter] = field(default_factory=dict)
    required: int = 0
    asks_by_name: bool = False
    context_place: int | None = None  # among the positional parameters; None: its parameter is keyword-only

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Arg, ...], bool]:
        """Arguments for the wire, and whether some of them bind by name.

        Keyword arguments become positional ones where no gap is left, so that Go could run the task too. Missing ones
        are no error yet: a predecessor may add its results. Raises ``ArgumentError`` for what can never fit.
        """
        if not kwargs:
            return self._positional(args), False
        try:
            bound = self.signature.bind_partial(*args, **kwargs)
        except TypeError as exc:
            raise ArgumentError(f"task {self.name}{self._shown()}: {exc}") from None
        positional = list(self._positional(args))
        rest = {name: value for name, value in kwargs.items() if name in bound.arguments or name in kwargs}
        for parameter in self.parameters[len(positional) :]:
            if parameter.name not in rest:
                break
            positional.append(self._arg(parameter.name, parameter.codec, rest.pop(parameter.name)))
        named = [self._named(name, value) for name, value in rest.items()]
        return (*positional, *named), bool(named)

    def bind(self, signature: Signature) -> Bound:
        """Python values for a call, from a signature off the wire.

        Raises ``ArgumentError`` naming the task, the argument, and what was expected.
        """
        args = signature.args or ()
        if signature.headers and header(signature, KEYWORDS_HEADER) is not None:
            return self._bind_by_name(args)
        count = len(args)
        parameters = self.parameters
        if count < self.required or (count > len(parameters) and self.variadic is None) or self.asks_by_name:
            raise self._wrong_count(count)
        try:
            values = [
                parameter.codec.decode(arg.type, arg.value) for parameter, arg in zip(parameters, args, strict=False)
            ]
            if count > len(parameters) and self.variadic is not None:
                values.extend(self.variadic.decode(arg.type, arg.value) for arg in args[len(parameters) :])
        except ArgumentError as exc:
            raise self._which(args, exc) from exc
        return Bound(values, {})

    def with_context(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], context: TaskContext
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments of a call with the task's context where its parameter stands."""
        assert self.context_parameter is not None
        place = self.context_place
        if place is None or place > len(args):
            return args, {**kwargs, self.context_parameter: context}
        return (*args[:place], context, *args[place:]), dict(kwargs)

    def results_of(self, value: Any) -> tuple[TaskResult, ...]:
        """What a return value is on the wire: none, one, or several results. Raises ``ArgumentError``."""
        if self.results is None:
            return tuple(_infer_result(self.name, each) for each in (value if type(value) is tuple else _maybe(value)))
        if len(self.results) == 1:
            return (_result(self.name, self.results[0], value),)
        if not self.results:
            if value is not None:
                raise ArgumentError(f"task {self.name} is annotated `-> None` and returned {type(value).__name__}")
            return ()
        if not isinstance(value, tuple) or len(value) != len(self.results):
            shown = f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
            raise ArgumentError(f"task {self.name} must return a tuple of {len(self.results)} values, not {shown}")
        return tuple(_result(self.name, each, one) for each, one in zip(self.results, value, strict=True))

    def value_of(self, results: Sequence[TaskResult]) -> Any:
        """The Python value that results stand for: None, one value, or a tuple."""
        codecs = self.results
        if codecs is None or len(codecs) != len(results):
            return untyped_value_of(results)
        values = tuple(each.decode(result.type, result.value) for each, result in zip(codecs, results, strict=True))
        return values[0] if len(values) == 1 else values or None

    def _bind_by_name(self, args: Sequence[Arg]) -> Bound:
        positional: list[Arg] = [arg for arg in args if not arg.name]
        if len(positional) > len(self.parameters) and self.variadic is None:
            raise self._wrong_count(len(positional))
        values = [
            self._decode(self.parameters[index].codec if index < len(self.parameters) else self.variadic, index, arg)
            for index, arg in enumerate(positional)
        ]
        kwargs: dict[str, Any] = {}
        for index, arg in enumerate(args):
            if not arg.name:
                continue
            known = self.by_name.get(arg.name)
            if known is None and self.variadic_keywords is None:
                raise ArgumentError(f"task {self.name}{self._shown()} has no parameter {arg.name[:64]!r}")
            if arg.name in kwargs:
                raise ArgumentError(f"task {self.name}: argument {arg.name!r} is given twice")
            kwargs[arg.name] = self._decode(known.codec if known else self.variadic_keywords, index, arg)
        self._check_call(values, kwargs)
        return Bound(values, kwargs)

    def _check_call(self, values: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        context = {self.context_parameter: None} if self.context_parameter else {}
        try:
            self.signature.bind(*values, **kwargs)
        except TypeError as exc:
            raise ArgumentError(f"task {self.name}{self._shown()}: {exc}") from None
        if context.keys() & kwargs.keys():
            raise ArgumentError(f"task {self.name}: {self.context_parameter!r} is its context, not an argument")

    def _decode(self, each: Codec | None, index: int, arg: Arg) -> Any:
        assert each is not None
        try:
            return each.decode(arg.type, arg.value)
        except ArgumentError as exc:
            raise ArgumentError(f"task {self.name}, argument {arg.name or self._place(index)}: {exc}") from exc

    def _positional(self, args: Sequence[Any]) -> tuple[Arg, ...]:
        if len(args) > len(self.parameters) and self.variadic is None:
            raise self._wrong_count(len(args))
        count = len(self.parameters)
        return tuple(self._arg(index, self._codec_at(index, count), value) for index, value in enumerate(args))

    def _codec_at(self, index: int, count: int) -> Codec:
        if index < count:
            return self.parameters[index].codec
        assert self.variadic is not None
        return self.variadic

    def _named(self, name: str, value: Any) -> Arg:
        known = self.by_name.get(name)
        each = known.codec if known else self.variadic_keywords
        assert each is not None
        arg = self._arg(name, each, value)
        return Arg(name=name, type=arg.type, value=arg.value)

    def _arg(self, where: int | str, each: Codec, value: Any) -> Arg:
        try:
            type_name, wire = each.encode(value)
        except ArgumentError as exc:
            place = where if isinstance(where, str) else self._place(where)
            raise ArgumentError(f"task {self.name}, argument {place}: {exc}") from exc
        return made(Arg, name="", type=type_name, value=wire)

    def _place(self, index: int) -> str:
        return f"{index + 1} ({self.parameters[index].name})" if index < len(self.parameters) else f"{index + 1}"

    def _which(self, args: Sequence[Arg], error: ArgumentError) -> ArgumentError:
        """The same error, saying which argument it is about: found by trying again, since errors are rare."""
        for index, arg in enumerate(args):
            each = self.parameters[index].codec if index < len(self.parameters) else self.variadic
            try:
                self._decode(each, index, arg)
            except ArgumentError as exc:
                return exc
        return error

    def _wrong_count(self, count: int) -> ArgumentError:
        most = len(self.parameters)
        wanted = f"at least {self.required}" if self.variadic is not None else _range(self.required, most)
        by_name = f" and, by name, {', '.join(each.name for each in self.named)}" if self.named else ""
        return ArgumentError(f"task {self.name}{self._shown()} takes {wanted} arguments{by_name}, not {count}")

    def _shown(self) -> str:
        shown = [f"{parameter.name}: {parameter.codec.type_name}" for parameter in self.parameters]
        if self.variadic is not None:
            shown.append(f"*{self.variadic.type_name}")
        elif self.named:
            shown.append("*")
        shown += [f"{parameter.name}: {parameter.codec.type_name}" for parameter in self.named]
        return f"({', '.join(shown)})"


class Registry:
    """Names to tasks, one function for each."""

    def __init__(self) -> None:
        self._tasks: dict[str, Registered] = {}

    def add(self, *tasks: Registered) -> None:
        """Add all of them, or none. A function that is registered again, as by a module that is loaded again, replaces
        what it was. Raises ``ConfigError`` where another function has the name."""
        for task in tasks:
            known = self._tasks.get(task.name)
            if known is not None and not _is_same(known.function, task.function):
                raise ConfigError(
                    f"two functions are named task {task.name!r}: {_place(known.function)} and"
                    f" {_place(task.function)}; expected another name for one of them"
                )
        self._tasks.update({task.name: task for task in tasks})

    def find(self, name: str) -> Registered | None:
        """The task of that name, or None."""
        return self._tasks.get(name)

    def get(self, name: str) -> Registered:
        """The task of that name. Raises ``TaskNotRegistered``."""
        found = self._tasks.get(name)
        if found is None:
            known = ", ".join(sorted(self._tasks)[:10]) or "none"
            raise TaskNotRegistered(f"task {name!r} is not registered on this server (registered: {known})")
        return found

    def names(self) -> Sequence[str]:
        """The registered names, sorted."""
        return sorted(self._tasks)

    def problem_for_go(self, signature: Signature, go: GoCompat, default_queue: str) -> str | None:
        """What is wrong for Go with a signature that is about to be sent, as far as it is known here; or None."""
        return problem_for_go(
            signature,
            go,
            default_queue=default_queue,
            binds_by_name=self._binds_by_name,
            returns_json=self._returns_json,
        )

    def _binds_by_name(self, signature: Signature) -> bool:
        return header(signature, KEYWORDS_HEADER) is not None and self.find(signature.name) is None

    def _returns_json(self, signature: Signature) -> bool:
        registered = self.find(signature.name)
        return registered is not None and any(each.type_name == JSON for each in registered.results or ())


def register(name: str, function: Function, options: TaskOptions) -> Registered:
    """Read a function's parameters and annotations. Raises ``ConfigError`` where it cannot be a task."""
    problem = names.own_task_name_problem(name)
    if problem:
        raise ConfigError(problem)
    if not callable(function):
        raise ConfigError(f"task {name!r} must be a function, not {type(function).__name__}")
    inner = _inner(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigError(f"task {name!r} must return its result, and {inner.__name__} is a generator function")
    try:
        described = inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner).__call__
        hints = typing.get_type_hints(described, include_extras=True)
        signature = inspect.signature(function)
    except Exception as exc:
        raise ConfigError(f"task {name!r}: cannot read its annotations: {exc}") from exc
    if next(iter(signature.parameters), "") == "self":
        raise ConfigError(
            f"task {name!r}: nobody gives it its parameter 'self'; expected a bound method (object.{name}), or for the"
            " context of a run a parameter annotated with TaskContext"
        )
    context_parameter, context_place, signature = _without_context(signature, hints)
    parameters, named, variadic, variadic_keywords = _parameters(signature, hints)
    return Registered(
        name=name,
        function=function,
        options=options,
        parameters=parameters,
        named=named,
        variadic=variadic,
        variadic_keywords=variadic_keywords,
        results=_results(hints),
        is_async=inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__),
        context_parameter=context_parameter,
        signature=signature,
        by_name={parameter.name: parameter for parameter in (*parameters, *named)},
        required=sum(parameter.required for parameter in parameters),
        asks_by_name=any(parameter.required for parameter in named),
        context_place=context_place,
    )


def _inner(function: Function) -> Function:
    """The function itself, beneath decorators or a ``partial``."""
    return function.func if isinstance(function, functools.partial) else inspect.unwrap(function)


def _is_same(one: Function, other: Function) -> bool:
    """Whether one definition made both: a module that is loaded again, or as ``__main__`` as well, makes new ones."""
    return one is other or not _identities(one).isdisjoint(_identities(other))


def _identities(function: Function) -> frozenset[str]:
    module, name, file, line = _origin(function)
    if name.endswith("<lambda>"):
        name += str(line)  # all of them have one name
    return frozenset({f"{module}.{name}", f"{file}:{name}"})


def _origin(function: Function) -> tuple[str, str, str, int]:
    inner = _inner(function)
    code = getattr(inner, "__code__", None)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return inner.__module__, name, code.co_filename if code else "", code.co_firstlineno if code else 0


def _place(function: Function) -> str:
    module, name, file, line = _origin(function)
    return f"{module}.{name} ({file}:{line})" if file else f"{module}.{name}"


def untyped_value_of(results: Sequence[TaskResult]) -> Any:
    """The Python value that results stand for, read by their own type names."""
    values = tuple(_ANYTHING.decode(result.type, result.value) for result in results)
    return values[0] if len(values) == 1 else values or None


_ANYTHING = codec(inspect.Parameter.empty)


def untyped_args(values: Sequence[Any]) -> tuple[Arg, ...]:
    """Arguments for a task that is not known here: type names are inferred. Raises ``ArgumentError``."""
    args: list[Arg] = []
    for index, value in enumerate(values):
        try:
            type_name, wire = _ANYTHING.encode(value)
        except ArgumentError as exc:
            raise ArgumentError(f"argument {index + 1}: {exc}") from exc
        args.append(Arg(type=type_name, value=wire))
    return tuple(args)


def _without_context(
    signature: inspect.Signature, hints: dict[str, Any]
) -> tuple[str | None, int | None, inspect.Signature]:
    """The name and place of the context's parameter, and the signature without it."""
    parameters = list(signature.parameters.values())
    for place, parameter in enumerate(parameters):
        if hints.get(parameter.name) is TaskContext:
            rest = signature.replace(parameters=parameters[:place] + parameters[place + 1 :])
            return parameter.name, None if parameter.kind is inspect.Parameter.KEYWORD_ONLY else place, rest
    return None, None, signature


def _parameters(
    signature: inspect.Signature, hints: dict[str, Any]
) -> tuple[tuple[Parameter, ...], tuple[Parameter, ...], Codec | None, Codec | None]:
    parameters: list[Parameter] = []
    named: list[Parameter] = []
    variadic: Codec | None = None
    variadic_keywords: Codec | None = None
    for parameter in signature.parameters.values():
        each = codec(hints.get(parameter.name, inspect.Parameter.empty))
        match parameter.kind:
            case inspect.Parameter.VAR_POSITIONAL:
                variadic = each
            case inspect.Parameter.VAR_KEYWORD:
                variadic_keywords = each
            case kind:
                own = Parameter(parameter.name, each, parameter.default is inspect.Parameter.empty)
                (named if kind is inspect.Parameter.KEYWORD_ONLY else parameters).append(own)
    return tuple(parameters), tuple(named), variadic, variadic_keywords


def _results(hints: dict[str, Any]) -> tuple[Codec, ...] | None:
    if "return" not in hints:
        return None
    hint = hints["return"]
    if hint is None or hint is type(None):
        return ()
    if hint is typing.Any:
        return None
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and inner and inner[-1] is not Ellipsis:
        return tuple(codec(each) for each in inner)
    return (codec(hint),)


def _maybe(value: Any) -> tuple[Any, ...]:
    return () if value is None else (value,)


def _result(name: str, each: Codec, value: Any) -> TaskResult:
    try:
        type_name, wire = each.encode(value)
    except ArgumentError as exc:
        if inspect.iscoroutine(value):
            value.close()
            raise ArgumentError(f"task {name} returned a coroutine that was not awaited; expected its result") from None
        raise ArgumentError(f"the result of task {name}: {exc}") from exc
    return made(TaskResult, type=type_name, value=wire)


def _infer_result(name: str, value: Any) -> TaskResult:
    return _result(name, _ANYTHING, value)


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"
