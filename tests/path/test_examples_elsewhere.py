"""The examples print the same on every broker: each is run with nothing changed but its server's stores and queue."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import sys
import traceback
from pathlib import Path

import pytest

from tests import matrix
from tests.path.bench import Stores
from tests.path.conftest import FAR, FORMS, stores_of
from tests.test_examples import NUMBERED, promised, run

SERVER = re.compile(r'Server\("(sqlite|memory):[^"]*"\)')
MOVABLE = [example for example in NUMBERED if SERVER.search(example.read_text())]
UNSEEN = "the service shows no message before it is due"
"""Why 03_delays, which looks at what is delayed, is refused by some."""


pytestmark = pytest.mark.long  # two dozen programs for each broker


@pytest.fixture(params=("redis", *FAR, *FORMS))
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    return stores_of(request.param, request, tmp_path)


def test_examples_print_what_their_pages_say(elsewhere: Stores, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for example in MOVABLE:
        settings = f"__import__('asyncqueue.config').config.Settings(default_queue='{example.stem}')"
        # on Pub/Sub, the subscription in the URL is that of one queue
        broker = elsewhere.broker.replace("/workers?", f"/of-{example.stem}?")
        stores = f"Server(broker={broker!r}, backend={elsewhere.backend!r}, settings={settings})"
        (tmp_path / example.name).write_text(SERVER.sub(stores, example.read_text()))
    ran = run(["-m", "tests.path.test_examples_elsewhere", str(tmp_path)], Path.cwd())
    assert ran.returncode == 0, ran.stderr
    found = {stem: (lines, error) for stem, lines, error in map(json.loads, ran.stdout.splitlines())}
    refused = [stem for stem, (_, error) in found.items() if "Refused" in error and "delayed" in error]
    driver = elsewhere.kind.partition("+")[0]
    for example in MOVABLE:
        reason = UNSEEN if example.stem in refused else ""
        matrix.note(request.node, "examples", example.stem, driver, reason)
    assert set(refused) <= {"03_delays"}
    assert {stem: each for stem, each in found.items() if stem not in refused} == {
        example.stem: (promised(example), "") for example in MOVABLE if example.stem not in refused
    }


def run_all(folder: Path) -> None:
    """Run every example in a folder, one after the other in this process, which imports what they need but once; write
    a line of JSON for each: its name, the lines it printed, and its traceback if it failed."""
    os.chdir(folder)
    for example in sorted(folder.glob("*.py")):
        printed, error = io.StringIO(), ""
        with contextlib.redirect_stdout(printed):
            try:
                runpy.run_path(str(example), run_name="__main__")
            except Exception:
                error = traceback.format_exc()
        print(json.dumps([example.stem, printed.getvalue().splitlines(), error]), flush=True)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
