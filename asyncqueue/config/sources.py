"""Where settings come from: a YAML file, the environment, the caller; and who wins."""

from __future__ import annotations

import difflib
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from asyncqueue.config.settings import SETTINGS, Kind, Setting, Settings, parse_seconds
from asyncqueue.errors import ConfigError

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1_000_000
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_WHOLE = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+|0|[1-9][0-9]{0,39})")
_DECIMAL = re.compile(r"[+-]?[0-9]+\.[0-9]+")


def load(
    path: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Settings from all sources: ``overrides`` win over the environment, that over the file, that over defaults.

    ``environ`` is the process's environment if None; give ``{}`` to leave the environment out. ``overrides`` is plain
    data, nested or with dotted keys (``{"worker.concurrency": 4}``). Maps and lists are replaced, not mixed.

    Raises ``ConfigError`` that names the source and the key.
    """
    file = Settings() if path is None else from_yaml(path)
    return layered(file, from_env(environ), from_overrides(overrides or {}))


def from_yaml(path: str | os.PathLike[str]) -> Settings:
    """Settings of a YAML file: the whole file is read, and every key in it must be known.

    Raises ``ConfigError`` with the path in it for a file that is missing, empty, no mapping or larger than
    ``MAX_FILE_BYTES``, for YAML's aliases, anchors and tags, for a key given twice, and for unknown or wrong keys.
    """
    settings = parse_yaml(read_file(path), path)
    _warn_of_loose_permissions(path, settings)
    return settings


def from_env(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings of environment variables: Machinery's names, and ``ASYNCQUEUE_`` + key in capitals for every key.

    An empty variable counts as not set. ``environ`` is the process's environment if None.

    Raises ``ConfigError`` that names the variable.
    """
    variables = os.environ if environ is None else environ
    values: dict[str, object] = {}
    names: dict[str, str] = {}
    for setting in SETTINGS:
        name = next((name for name in setting.variables if variables.get(name)), None)
        if name is not None:
            values[setting.path] = _from_text(setting, name, variables[name])
            names[setting.path] = name
    _warn_of_near_misses(variables)
    return Settings.parse(_nested(values), "environment", names)


def pubsub_emulator(environ: Mapping[str, str] | None = None) -> str:
    """``host:port`` of the Pub/Sub emulator that ``PUBSUB_EMULATOR_HOST`` names, which all clients of Google heed,
    however else they are set up; empty: none. ``environ`` is the process's environment if None."""
    return (os.environ if environ is None else environ).get("PUBSUB_EMULATOR_HOST", "")


def from_overrides(values: Mapping[str, object]) -> Settings:
    """Settings that a caller gives, nested or with dotted keys. Raises ``ConfigError``."""
    return Settings.parse(_nested(values), "settings")


def layered(*layers: Settings) -> Settings:
    """One from several: a later layer wins wherever it sets a key at all, be it to the default."""
    said: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.model_dump(exclude_unset=True).items():
            said[name] = {**said.get(name, {}), **value} if name in Settings.sections() else value
    return Settings.parse(said)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a configuration file. Raises ``ConfigError`` if it cannot be read or is too large."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot read the configuration: {exc.strerror or exc}") from exc
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: the configuration is larger than {MAX_FILE_BYTES} bytes")
    return content


def parse_yaml(content: bytes, path: str | os.PathLike[str]) -> Settings:
    """Settings of a file's content; ``path`` is for messages. Raises ``ConfigError`` as ``from_yaml`` does."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 at byte {exc.start}") from None
    # read only now: a server that has no file does without PyYAML, which takes long to load
    from asyncqueue.config.document import parse

    data = parse(text, path)
    if data is None:
        raise ConfigError(f"{path}: the file is empty; expected a mapping of settings")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings (key: value), got one {type(data).__name__}")
    return Settings.parse(data, str(path))


def _from_text(setting: Setting, name: str, text: str) -> object:
    match setting.kind:
        case "text":
            return text
        case "flag" if text in _TRUE | _FALSE:
            return text in _TRUE
        case "whole number" if _WHOLE.fullmatch(text):
            return int(text, 0)
        case "seconds":
            try:
                return parse_seconds(text)
            except ValueError:
                pass  # said below, as for the other kinds
        case "list":
            return [item.strip() for item in text.split(",") if item.strip()]
        case "map":
            # Go's loader binds with texts; the declaration's numbers matter to RabbitMQ, and there Go's are lost
            plain = setting.path == "amqp.queue_binding_args"
            return dict(_pairs(name, text, plain=plain))
    raise ConfigError(f"environment: {name}: expected {_EXPECTED_TEXT[setting.kind]}")


_EXPECTED_TEXT: Mapping[Kind, str] = {
    "text": "text",
    "flag": "one of 1, t, T, TRUE, true, True, 0, f, F, FALSE, false, False",
    "whole number": "a whole number",
    "seconds": 'seconds, or a duration such as "1m30s"',
    "list": "texts joined by commas",
    "map": "pairs as in name:value,name:value",
}


def _pairs(name: str, text: str, *, plain: bool) -> Iterator[tuple[str, str | bool | int | float]]:
    for pair in text.split(","):
        key, colon, value = pair.partition(":")
        if not colon or not key.strip():
            raise ConfigError(f"environment: {name}: expected {_EXPECTED_TEXT['map']}")
        yield key.strip(), value if plain else _scalar(value.strip())


def _scalar(text: str) -> str | bool | int | float:
    if text in ("true", "false"):
        return text == "true"
    if _WHOLE.fullmatch(text):
        return int(text, 0)
    return float(text) if _DECIMAL.fullmatch(text) else text


def _nested(values: Mapping[str, object]) -> dict[str, object]:
    nested: dict[str, object] = {}
    for path, value in values.items():
        section, dot, name = path.partition(".")
        if not dot:
            nested[path] = {**_mapping(nested.get(path)), **value} if isinstance(value, Mapping) else value
            continue
        inside = nested[section] = _mapping(nested.get(section))
        inside[name] = value
    return nested


def _mapping(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, Mapping) else {}


def _warn_of_near_misses(variables: Mapping[str, str]) -> None:
    """Somebody else may own a name such as ASYNCQUEUE_PORT, so this is no error; a typing error is worth a line."""
    known = {name for setting in SETTINGS for name in setting.variables}
    for name in variables:
        if not name.startswith("ASYNCQUEUE_") or name in known:
            continue
        for near in difflib.get_close_matches(name, known, n=1, cutoff=0.9):
            log.warning("environment variable %s is no setting; did you mean %s?", name, near)


def _warn_of_loose_permissions(path: str | os.PathLike[str], settings: Settings) -> None:
    if not settings.has_secrets() or os.name != "posix":
        return
    with suppress(FileNotFoundError):  # replaced since we read it
        if Path(path).stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            log.warning("%s holds a password and can be changed by other users", path)
