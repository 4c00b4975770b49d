"""The peers in Go, built from tests/interop/go: clients and workers of both versions of Machinery."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.services.go import GoBuild

_SOURCES = Path(__file__).resolve().parents[1] / "interop" / "go"


def _peer(version: str, module: str) -> GoBuild:
    return GoBuild(
        f"peer-{version}",
        _SOURCES / version,
        module,
        "Machinery",
        shared=tuple(_SOURCES / name for name in ("peer.go", "tasks.go", "places.go")),
        imports=("machinery/v2", f"machinery/{version}"),
    )


MACHINERY: Mapping[str, GoBuild] = {
    "v1": _peer("v1", "github.com/RichardKnop/machinery"),
    "v2": _peer("v2", "github.com/RichardKnop/machinery/v2"),
}
"""The programs, by Machinery's version."""
