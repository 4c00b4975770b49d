"""All settings as a Markdown table, for the documentation: ``python -m asyncqueue.config.table``."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import SecretStr

from asyncqueue.config.settings import SETTINGS, Setting


def markdown() -> str:
    """One table per section: key, environment variables, default, unit, effect of live reload, meaning."""
    sections: dict[str, list[Setting]] = {}
    for setting in SETTINGS:
        sections.setdefault(setting.path.rpartition(".")[0], []).append(setting)
    return "\n\n".join(_table(section, settings) for section, settings in sections.items()) + "\n"


def _table(section: str, settings: list[Setting]) -> str:
    lines = [
        f"### {f'Section `{section}`' if section else 'Top level'}",
        "",
        "| key | environment | default | unit | a change counts | meaning |",
        "|---|---|---|---|---|---|",
        *(_row(setting) for setting in settings),
    ]
    return "\n".join(lines)


def _row(setting: Setting) -> str:
    cells = [
        "<br>".join(f"`{path.rpartition('.')[2]}`" for path in (setting.path, *setting.also)),
        "<br>".join(f"`{name}`" for name in setting.variables),
        _default(setting.default),
        setting.unit,
        setting.effect,
        setting.description.replace("|", "\\|"),
    ]
    return f"| {' | '.join(cells)} |"


def _default(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case float():
            return f"`{value:g}`"
        case SecretStr() | "" | ():
            return "empty"
        case Mapping():
            return "empty"
        case _:
            return f"`{value}`"


if __name__ == "__main__":
    print(markdown(), end="")
