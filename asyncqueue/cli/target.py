"""Which server is meant: MODULE:SERVER, or what options, a file and the environment say."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any

import click

from asyncqueue.config import load
from asyncqueue.errors import AsyncQueueError, ConfigError
from asyncqueue.redact import redact_url
from asyncqueue.server import Server
from asyncqueue.task import Task

_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*(\.[^\W\d]\w*)*)?")


@dataclass(frozen=True, slots=True)
class Address:
    """What a verb was told beside MODULE:SERVER."""

    broker: str | None
    backend: str | None
    config: str | None

    @property
    def told(self) -> Sequence[str]:
        """The options that were given."""
        return [f"--{name}" for name in ("broker", "backend", "config") if getattr(self, name) is not None]

    def server(self, target: str | None) -> Server:
        """The server that is meant. Raises ``ConfigError``, or a usage error where it is said twice or not at all."""
        told = self.told
        if target is not None:
            if told:
                raise click.UsageError(
                    f"MODULE:SERVER ({redact_url(target)}) and {told[0]} both say which server: give one."
                )
            return load_server(target)
        urls = {"broker": self.broker, "result_backend": self.backend}
        settings = load(self.config, overrides={key: url for key, url in urls.items() if url is not None})
        if self.config is None and "broker" not in settings.model_fields_set:
            raise click.UsageError(
                "Which server? Give MODULE:SERVER, --broker URL or --config FILE, or set BROKER in the environment."
            )
        return Server.from_settings(settings)


def addressed(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that stand for MODULE:SERVER, as an argument ``address``."""

    @click.option("--broker", metavar="URL", help="The broker, in place of MODULE:SERVER.")
    @click.option("--backend", metavar="URL", help="The result backend; the broker's store if not given.")
    @click.option("--config", metavar="FILE", help="A YAML file with settings, in place of MODULE:SERVER.")
    @wraps(command)
    def with_address(*args: Any, broker: str | None, backend: str | None, config: str | None, **kwargs: Any) -> None:
        command(*args, address=Address(broker, backend, config), **kwargs)

    return with_address


def split(words: Sequence[str], *names: str) -> tuple[str | None, Sequence[str]]:
    """MODULE:SERVER, where it was given, and the words called ``names``. Raises a usage error for any other number."""
    match len(words) - len(names):
        case 0:
            return None, words
        case 1:
            return words[0], words[1:]
        case _:
            expected = " ".join(("[MODULE:SERVER]", *names))
            raise click.UsageError(f"Expected {expected}, got {' '.join(map(redact_url, words)) or 'nothing'}.")


def split_ids(words: Sequence[str], address: Address) -> tuple[str | None, Sequence[str]]:
    """MODULE:SERVER, where the first word looks like one and no option stands for it, and any number of ids."""
    if words and not address.told and _TARGET.fullmatch(words[0]):
        return words[0], words[1:]
    return None, words


def load_server(target: str) -> Server:
    """The server that MODULE:SERVER names. Raises ``ConfigError`` that says what is there instead."""
    module_name, colon, path = target.partition(":")
    if not _TARGET.fullmatch(target) or module_name.endswith(".py"):
        raise ConfigError(f"{redact_url(target)!r} is not of the form MODULE:SERVER, such as app:server{_hint(target)}")
    module = _import(module_name)
    if not colon:
        return _only_server(module)
    return _server(target, _attribute(module, path))


def _import(name: str) -> ModuleType:
    here = os.getcwd()
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{name}.".startswith(f"{exc.name}."):
            raise ConfigError(
                f"there is no module {exc.name!r}: looked in the current directory ({here}) and where Python looks"
            ) from exc
        raise _broken(f"module {name!r} cannot be imported", exc) from exc
    except AsyncQueueError:
        raise
    except (Exception, SystemExit) as exc:
        raise _broken(f"module {name!r} cannot be imported", exc) from exc


def _attribute(module: ModuleType, path: str) -> object:
    value: object = module
    for name in path.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            raise ConfigError(f"module {module.__name__!r} has no {path!r}; {_what_is_there(module)}") from None
    return value


def _server(target: str, value: object) -> Server:
    if isinstance(value, Server):
        return value
    if isinstance(value, type | Task) or not callable(value):
        kind = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise ConfigError(f"{target} is {kind}, not a Server or a function that makes one")
    try:
        made = value()
    except AsyncQueueError:
        raise
    except (Exception, SystemExit) as exc:
        raise _broken(f"{target}() failed", exc) from exc
    if inspect.iscoroutine(made):
        made.close()
        raise ConfigError(f"{target} is a coroutine function; what makes a Server must be a plain function")
    if not isinstance(made, Server):
        raise ConfigError(f"{target}() made a {type(made).__name__}, not a Server")
    return made


def _only_server(module: ModuleType) -> Server:
    servers = {id(value): value for value in vars(module).values() if isinstance(value, Server)}
    if len(servers) != 1:
        raise ConfigError(f"{module.__name__} does not say which Server: {_what_is_there(module)}")
    return next(iter(servers.values()))


def _what_is_there(module: ModuleType) -> str:
    found = [f"{module.__name__}:{name}" for name, value in vars(module).items() if isinstance(value, Server)]
    return f"the servers in it are {', '.join(found)}" if found else "there is no Server in it"


def _broken(what: str, exc: Exception | SystemExit) -> ConfigError:
    """One line of an error in the user's own code: what, and the last place that is his."""
    frames = traceback.extract_tb(exc.__traceback__)
    place = next(
        (f" ({each.filename}:{each.lineno})" for each in reversed(frames) if "<frozen" not in each.filename), ""
    )
    said = str(exc)
    if isinstance(exc, SyntaxError):
        place, said = f" ({exc.filename}:{exc.lineno})", exc.msg
    said = re.sub(r"\S+://\S+", lambda url: redact_url(url[0]), said)
    return ConfigError(f"{what}: {type(exc).__name__}: {said}{place}; --debug shows more")


def _hint(target: str) -> str:
    if "://" in target:
        return "; a URL is given as --broker URL"
    file, colon, server = target.partition(":")
    if not file.endswith(".py"):
        return ""
    return f"; did you mean {file.removesuffix('.py').strip('./').replace('/', '.')}{colon}{server}?"
