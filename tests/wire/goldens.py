"""The golden data, as tests want it: the JSON texts that Machinery wrote, and the vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ("v1", "v2")


@dataclass(frozen=True, slots=True)
class Vector:
    """One line of ``reflect.jsonl``: ``arg`` and ``encoded`` are JSON texts as they stand in the file."""

    arg: str
    type: str
    accepted: bool
    go_type: str = ""
    encoded: str = ""

    def __str__(self) -> str:
        return self.arg


def scenarios() -> list[Path]:
    """Every recorded scenario of both versions."""
    return sorted(GOLDEN.glob("v*/redis/*/*.json"))


def memcache_scenarios() -> list[Path]:
    """Every scenario of both versions whose results are in Memcached."""
    return sorted(GOLDEN.glob("v*/memcache/*.json"))


def texts(path: Path, start: str) -> list[str]:
    """The JSON texts within a scenario that begin so, each once."""
    found = dict.fromkeys(text for text in _strings(json.loads(path.read_text())) if text.startswith(start))
    return list(found)


def commands(path: Path) -> list[list[Any]]:
    """The commands that the Redis server saw, without time and connection."""
    return [row[2:] for row in json.loads(path.read_text())["monitor"]["rows"]]


def encode_vectors(version: str) -> list[tuple[str, str]]:
    """What Go read and what it wrote then."""
    lines = (GOLDEN / version / "vectors" / "encode.jsonl").read_text().splitlines()
    return [(vector["in"], vector["out"]) for vector in map(json.loads, lines)]


def reflect_vectors(version: str) -> list[Vector]:
    """Arguments off the wire, and what Go made of them."""
    return [_vector(line) for line in (GOLDEN / version / "vectors" / "reflect.jsonl").read_text().splitlines()]


def _vector(line: str) -> Vector:
    parsed = json.loads(line)
    start = line.index('"in":') + len('"in":')
    _, end = json.JSONDecoder().raw_decode(line, start)
    accepted = "error" not in parsed
    encoded = line[end + len(',"json":') : -1] if "json" in parsed else ""
    return Vector(line[start:end], parsed["in"]["Type"], accepted, parsed.get("go_type", ""), encoded)


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for element in value:
                yield from _strings(element)
        case dict():
            for element in value.values():
                yield from _strings(element)
