"""An editor sees what tasks take and return, and workflows hand on: shown by mypy on pages of right and wrong uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = Path(__file__).with_name("tasks.py")
PAGES = [PAGE, Path(__file__).with_name("workflows.py")]


def _mypy(page: Path) -> subprocess.CompletedProcess[str]:
    """mypy with nothing but ``--strict``: as a user of the package runs it."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--explicit-package-bases", str(page)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_type_checker_sees_parameters_and_results_and_finds_every_mistake(page: Path) -> None:
    checked = _mypy(page)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_mistake_that_is_not_marked_is_reported(tmp_path: Path) -> None:
    marked = PAGE.read_text()
    page = tmp_path / "tasks.py"
    page.write_text(marked.replace("  # type: ignore[arg-type]  # text for an int", "", 1))
    checked = _mypy(page)
    assert checked.returncode == 1
    assert 'Argument 2 to "send" of "Task" has incompatible type "str"; expected "int"' in checked.stdout
