"""Live reload: notice that the configuration file says something else, and tell what that changes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from asyncqueue.config.settings import SETTINGS, Effect, Settings
from asyncqueue.config.sources import from_env, from_overrides, layered, parse_yaml, read_file
from asyncqueue.errors import ConfigError
from asyncqueue.redact import without_credentials

log = logging.getLogger(__name__)

EFFECT: Mapping[str, Effect] = MappingProxyType({setting.path: setting.effect for setting in SETTINGS})
"""When a change of each key takes effect in a running process.

"at once": with the next task, look or timer. "at reconnect": with the next connection to the service. "never": at the
next start. For the URLs see ``effect``.
"""

_URLS = frozenset(setting.path for setting in SETTINGS if setting.show == "as a URL")

OnChange = Callable[[Settings, frozenset[str]], Awaitable[None]]


def changed(old: Settings, new: Settings) -> frozenset[str]:
    """The dotted keys in which two settings differ."""
    return frozenset(setting.path for setting in SETTINGS if old.value(setting.path) != new.value(setting.path))


def effect(path: str, old: Settings, new: Settings) -> Effect:
    """When the change of ``path`` from ``old`` to ``new`` takes effect.

    As ``EFFECT`` says, but for URLs: new credentials are used at the next connection, while another kind of store or
    another place needs a restart, since tasks and results would otherwise be split between two stores.
    """
    if path not in _URLS:
        return EFFECT[path]
    before, after = str(old.value(path)), str(new.value(path))
    return "at reconnect" if without_credentials(before) == without_credentials(after) else "never"


def taken_up(old: Settings, new: Settings) -> Settings:
    """``new``, but for what a running process never takes up: that stays as ``old`` has it."""
    kept = {path: old.value(path) for path in changed(old, new) if effect(path, old, new) == "never"}
    return layered(new, from_overrides(kept)) if kept else new


class Reloader:
    """Looks at a configuration file every ``interval`` seconds and calls back when its settings have changed.

    ``on_change`` gets the new settings and the dotted keys in which they differ from the last good ones; it is for
    the receiver to leave alone what ``effect`` says is never taken up, and a warning names those keys. The environment
    (as it is when the reloader is made) and ``overrides`` win over the file, as in ``load``. A key that was deleted
    has its default again. A file that is broken or missing changes nothing and is one error in the log, until it
    changes again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Settings,
        on_change: OnChange,
        *,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, object] | None = None,
        interval: float = 10.0,
        settle: float = 0.2,
    ) -> None:
        self.settings = settings
        self._path = path
        self._on_change = on_change
        self._above = layered(from_env(environ), from_overrides(overrides or {}))
        self._interval = interval
        self._settle = settle
        self._seen: bytes | str | None = None
        self._complained_of: set[bytes | str] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval)

    async def look(self) -> frozenset[str]:
        """Look once; returns the keys that changed, after ``on_change`` was called with them."""
        content = await self._content()
        if content == self._seen:
            return frozenset()
        self._seen = content
        try:
            new = await asyncio.to_thread(self._parse, content)
        except ConfigError as exc:
            self._complain(content, exc)
            return frozenset()
        self._complained_of.clear()
        keys = changed(self.settings, new)
        if keys:
            await self._tell(new, keys)
        return keys

    async def _content(self) -> bytes | str:
        """What the file holds, or why it cannot be read; once it has stopped changing under our eyes.

        A file that is being written may read as a shorter one, in which keys seem to have been deleted.
        """
        content = await asyncio.to_thread(self._read)
        while content != self._seen:
            await asyncio.sleep(self._settle)
            before, content = content, await asyncio.to_thread(self._read)
            if content == before:
                break
        return content

    def _read(self) -> bytes | str:
        try:
            return read_file(self._path)
        except ConfigError as exc:
            return str(exc)

    def _parse(self, content: bytes | str) -> Settings:
        if isinstance(content, str):
            raise ConfigError(content)
        return layered(parse_yaml(content, self._path), self._above)

    def _complain(self, content: bytes | str, error: ConfigError) -> None:
        seen_before = content in self._complained_of
        self._complained_of.add(content)
        if not seen_before:
            log.error("settings not reloaded, the old ones stay: %s", error)

    async def _tell(self, new: Settings, keys: frozenset[str]) -> None:
        old, self.settings = self.settings, new
        log.info("settings reloaded: %s", ", ".join(sorted(keys)), extra={"keys": sorted(keys)})
        waiting = sorted(path for path in keys if effect(path, old, new) == "never")
        if waiting:
            log.warning("a restart is needed for: %s", ", ".join(waiting), extra={"keys": waiting})
        try:
            await self._on_change(new, keys)
        except Exception:
            # the receiver's failure must not end the watch: the next change may well repair it
            log.exception("settings reloaded, but not all of them could be taken up")
