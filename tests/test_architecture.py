"""Dependencies point one way, and what only one module may touch is touched by that module alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "asyncqueue"

# layer: the modules in it (a prefix ends with a dot; the longest match counts), and the layers it may import from
LAYERS = {
    "vocabulary": "errors names redact models signature state arguments wire rfc3339 go_text retry schedule clock"
    " workflow go_compat compiling",
    # backends.waiting: lines that every backend needs, and no service has
    "contracts": "brokers.base backends.base backends.waiting locks.base migrating",
    "connections": "connections.",
    "drivers": "brokers. backends. locks.",
    "engine": "engine.",
    "config": "config.",
    "front": "__init__ builders foundation inspectable options server stores task worker result workflow_results urls",
    "edges": "__main__ cli. dashboard. contrib. testing.",
}
MAY_IMPORT = {
    "vocabulary": "vocabulary",
    "contracts": "vocabulary contracts",
    "connections": "vocabulary contracts connections",
    "drivers": "vocabulary contracts connections",
    "engine": "vocabulary contracts engine",
    "config": "vocabulary config",
    "front": "vocabulary contracts engine config front",
    "edges": "vocabulary contracts connections drivers engine config front edges",
}

# library: who may import it; one that is in no row may be imported by nobody
LIBRARIES = {
    "pydantic": "*",
    "pydantic_core": "*",
    "typing_extensions": "*",
    "anyio": "*",
    "cronsim": "schedule",
    "yaml": "config.",
    "click": "cli.",
    "uvloop": "cli. worker",
    "pytest": "testing.",
    "pytest_asyncio": "testing.",
    "sqlite3": "connections.sqlite brokers.sqlite backends.sqlite locks.sqlite",
    "redis": "connections.redis brokers.redis backends.redis locks.redis",
    "hiredis": "connections.redis",
    "aio_pika": "connections.amqp brokers.amqp",
    "aiormq": "connections.amqp connections.amqp_holding connections.amqp_results connections.amqp_results_hearing"
    " brokers.amqp",
    "yarl": "connections.amqp",
    "aiobotocore": "connections.aws brokers.sqs backends.dynamodb",
    "botocore": "connections.aws brokers.sqs backends.dynamodb",
    "google": "connections.pubsub",
    "grpc": "connections.pubsub",
    "aiomcache": "connections.memcache backends.memcache",
    "pymongo": "connections.mongo connections.mongo_groups connections.mongo_indexes backends.mongo locks.mongo",
    "bson": "connections.mongo connections.mongo_documents connections.mongo_groups backends.mongo locks.mongo",
    "dns": "connections.mongo",
    "fastapi": "contrib.fastapi",
    "aiohttp": "contrib.aiohttp",
    "starlette": "contrib.fastapi dashboard.",
    "opentelemetry": "contrib.opentelemetry",
    "prometheus_client": "contrib.prometheus",
    # of the standard library, what belongs to one place
    "json": "wire cli. dashboard. contrib. testing.",
    "signal": "worker cli. testing.",
    "pickle": "",
    "marshal": "",
    "shelve": "",
}

# what is called or read: who may
TOUCHES = {
    "time.time": "clock",
    "time.time_ns": "clock",
    "datetime.now": "clock",
    "datetime.utcnow": "clock",
    "datetime.today": "clock",
    "date.today": "clock",
    "os.environ": "config.",
    "os.getenv": "config.",
    "os.putenv": "",
    "loop.add_signal_handler": "worker cli.",
}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {_name(path): ast.parse(path.read_text(), str(path)) for path in sorted(PACKAGE.rglob("*.py"))}


def _covers(pattern: str, module: str) -> bool:
    return f"{module}.".startswith(pattern) if pattern.endswith(".") else pattern in ("*", module)


def _allowed(patterns: str, module: str) -> bool:
    return any(_covers(pattern, module) for pattern in patterns.split())


def _layer(module: str) -> str | None:
    matches = [
        (len(pattern), layer)
        for layer, patterns in LAYERS.items()
        for pattern in patterns.split()
        if _covers(pattern, module)
    ]
    return max(matches)[1] if matches else None


def _imports(module: str) -> Iterator[str]:
    """Every module that is imported anywhere in a module, in full; for `from a import b`, `a.b` where that is one."""
    for node in ast.walk(MODULES[module]):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=0, module=str(origin), names=names):
                inside = origin.removeprefix("asyncqueue").lstrip(".")
                for alias in names:
                    is_module = origin.startswith("asyncqueue") and f"{inside}.{alias.name}".lstrip(".") in MODULES
                    yield f"{origin}.{alias.name}" if is_module else origin
            case ast.ImportFrom():
                raise AssertionError(f"{module} line {node.lineno}: a relative import")


def _own(imported: str) -> str | None:
    """The module of ours that is meant, or None."""
    if imported == "asyncqueue":
        return "__init__"
    return imported.removeprefix("asyncqueue.") if imported.startswith("asyncqueue.") else None


def test_every_module_is_in_a_layer() -> None:
    assert [module for module in MODULES if _layer(module) is None] == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_the_layers_below_it(module: str) -> None:
    layer = _layer(module) or "?"
    imported = {own for name in _imports(module) if (own := _own(name))}
    wrong = [own for own in imported if own != module and _layer(own) not in MAY_IMPORT[layer].split()]
    assert wrong == [], f"{module} ({layer}) may import from: {MAY_IMPORT[layer]}"


@pytest.mark.parametrize("module", MODULES)
def test_a_library_is_imported_only_where_it_belongs(module: str) -> None:
    libraries = {name.partition(".")[0] for name in _imports(module)} - {"asyncqueue"}
    free = sys.stdlib_module_names - LIBRARIES.keys()
    wrong = [name for name in libraries - free if not _allowed(LIBRARIES.get(name, ""), module)]
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_clock_environment_and_signals_are_each_touched_in_one_place(module: str) -> None:
    found = [
        f"{name} in line {node.lineno}"
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.expr | ast.stmt)
        for name in _touched(node)
        if not _allowed(TOUCHES.get(name, "*"), module)
    ]
    assert found == []


def _touched(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Attribute(attr="add_signal_handler"):
            yield "loop.add_signal_handler"
        case (
            ast.Attribute(value=ast.Name(id=owner), attr=name)
            | ast.Attribute(value=ast.Attribute(attr=owner), attr=name)
        ):
            yield f"{owner}.{name}"
        case ast.ImportFrom(module=str(owner), names=names):
            yield from (f"{owner}.{alias.name}" for alias in names)


def test_a_prefix_covers_what_is_under_it_and_nothing_beside_it() -> None:
    assert _covers("cli.", "cli")
    assert _covers("cli.", "cli.main")
    assert not _covers("cli.", "client")
    assert not _covers("worker", "workers")
    assert _layer("brokers.base") == "contracts"
    assert _layer("brokers.redis") == "drivers"
