"""`asyncqueue config`: what the settings are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from asyncqueue.cli.output import compact, json_option, one_line, print_json
from asyncqueue.config import Settings, load
from asyncqueue.errors import ConfigError
from asyncqueue.server import Server


class _Wrong(click.ClickException):
    """Settings that cannot work."""

    exit_code = 2


@click.group()
def config() -> None:
    """Look at the settings."""


@config.command()
@click.argument("file", required=False)
@json_option
def check(file: str | None, as_json: bool) -> None:
    """Read FILE and the environment, and print the settings that follow, without their passwords.

    Without FILE, the environment alone. The environment wins over the file. Nothing is connected. What cannot work is
    one line on stderr, and exit code 2.

    --json: an object of all settings, sections nested.
    """
    settings = _load(file)
    redacted = settings.redacted()
    if as_json:
        print_json(redacted)
        return
    for path, value in _flat(redacted):
        click.echo(f"{path}: {one_line(compact(value), 4_000)}")


def _load(file: str | None) -> Settings:
    try:
        settings = load(file)
        Server.from_settings(settings)  # knows which URLs can be what they are meant to be
    except ConfigError as exc:
        raise _Wrong(one_line(str(exc), 4_000)) from exc
    return settings


def _flat(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, object]]:
    sections = Settings.sections()
    for name, value in values.items():
        if not section and name in sections:
            yield from _flat(value, f"{name}.")
        else:
            yield section + name, value
