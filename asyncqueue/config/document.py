"""The YAML of a configuration: plain data, and nothing clever."""

from __future__ import annotations

import os
from typing import Any

import yaml

from asyncqueue.config.settings import shown_key
from asyncqueue.errors import ConfigError

_MAX_NESTING = 16

# libyaml's loader where PyYAML was built with it
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse(text: str, path: str | os.PathLike[str]) -> object:
    """What a YAML text says, as plain data; ``path`` is for messages.

    Raises ``ConfigError``, also for aliases, anchors, tags, deep nesting and a key given twice.
    """
    try:
        _refuse_cleverness(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as exc:
        # only what is wrong and where: the excerpt in PyYAML's own message could hold a password
        mark = getattr(exc, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        said = (getattr(exc, "context", None), getattr(exc, "problem", None) or getattr(exc, "reason", None))
        problem = ", ".join(part for part in said if part) or "cannot be read"
    except ValueError:
        line, problem = "", "a number or date that cannot be"
    raise ConfigError(f"{path}: not the YAML of a configuration: {problem}{line}")


class _Loader(_Base):  # type: ignore[misc]  # which base it is depends on how PyYAML was built
    """A safe loader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        mapping: dict[object, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused("a key is a mapping or a list", key_node)
            key = self.construct_object(key_node)
            if key in mapping:
                raise _Refused(f"key {shown_key(key)!r} is given twice", key_node)
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping


class _Refused(yaml.YAMLError):
    """YAML that we do not take."""

    def __init__(self, problem: str, at: Any) -> None:
        super().__init__(problem)
        self.problem = problem
        self.problem_mark = at.start_mark


_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node))


def _refuse_cleverness(text: str) -> None:
    """Look at the parser's events before anything is built: aliases can blow up, tags name types, depth recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _Refused("aliases and anchors are not allowed (quote a text that begins with * or &)", event)
        if getattr(event, "tag", None) is not None:
            raise _Refused("tags are not allowed (quote a text that begins with !)", event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_NESTING:
            raise _Refused(f"nested deeper than {_MAX_NESTING} levels", event)
