"""The pytest plugin costs nothing until a fixture of it is used."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

USES_ALL = """
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.testing import with_faults

def test_the_fixtures_go_together(manual_clock, memory_store, faults):
    broker = with_faults(MemoryBroker(memory_store, clock=manual_clock), faults)
    assert broker.address == f"memory://{memory_store.name}"
    assert faults.calls["publish"] == 0
"""
LOADED = """
import sys
import pytest
before = set(sys.modules)
import asyncqueue.testing.plugin
heavy = {"pydantic", "pytest_asyncio", "asyncqueue.wire", "asyncqueue.brokers.memory"}
print(sorted(heavy & (set(sys.modules) - before)))
"""


async def _run(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_its_fixtures_are_there_when_it_is_switched_on(tmp_path: Path) -> None:
    page = tmp_path / "test_page.py"
    page.write_text(USES_ALL)
    code, output = await _run("-m", "pytest", "-q", "-p", "asyncqueue.testing.plugin", "-c", "/dev/null", str(page))
    assert code == 0, output
    assert "1 passed" in output


async def test_loading_it_loads_no_driver_and_no_model() -> None:
    assert await _run("-c", LOADED) == (0, "[]\n")
