"""The pages are true: their Python runs, their commands print what they show, their links lead somewhere.

In every page, in order, in one empty folder per page:

- a `python` block is run; one whose first line is a comment with a file name (`# app.py`) is saved under that name
  instead, for the blocks after it, and so is a `yaml` block;
- the `python part NAME` blocks of a page are pieces of one program for each NAME, run last; they may `await`;
- a `python no-run` block is compiled only: a fragment that needs something a test cannot have;
- a `yaml` block configures a server, and so does an `env` block: those of a page say the same, one by one, and on the
  page of a broker they lead to the broker that its Python imports;
- a `console` block is a shell session: its lines that start with `$ ` are run in one shell, and the other lines must be
  what they print on standard output. What it left in the background is stopped when it ends;
- every other block (`sh`, plain) is only looked at.

A page that reads `REDIS_URL` from the environment finds an empty database of a Redis there.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from asyncqueue import Server

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
DEADLINE = 120

_FENCE = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_BROKER = re.compile(r"^from asyncqueue\.brokers\.\w+ import \w+$", re.MULTILINE)
_FILE = re.compile(r"# (?P<name>[\w/]+\.(?:py|yaml))$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    where: str
    kind: str
    text: str


def _blocks(page: Path) -> list[Block]:
    source = page.read_text()
    return [
        Block(
            f"{page.relative_to(ROOT)}:{source.count(chr(10), 0, found.start()) + 1}",
            found["kind"].strip(),
            found["text"],
        )
        for found in _FENCE.finditer(source)
    ]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_the_blocks_of_a_page_do_what_they_show(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "REDIS_URL" in page.read_text():
        monkeypatch.setenv("REDIS_URL", request.getfixturevalue("redis_url"))
    programs: dict[str, list[Block]] = {}
    for block in _blocks(page):
        match block.kind.split():
            case ["python", "no-run"]:
                compile(block.text, block.where, "exec")
            case ["python", "part", name]:
                programs.setdefault(name, []).append(block)
            case ["python"]:
                _run_python(block, tmp_path)
            case ["yaml"]:
                _save(block, tmp_path)
            case ["console"]:
                _run_session(block, tmp_path)
            case [kind, *_] if kind.startswith(("python", "console")):
                pytest.fail(f"{block.where}: unknown kind of block {block.kind!r}")
    for pieces in programs.values():
        _run_pieces(pieces, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    prose = _FENCE.sub("", page.read_text())
    targets = [found["target"] for found in _LINK.finditer(prose)]
    local = [target.partition("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_and_environments_of_a_page_configure_the_same_servers(page: Path, tmp_path: Path) -> None:
    files, environments = (
        [_server(block, tmp_path) for block in _blocks(page) if block.kind == kind] for kind in ("yaml", "env")
    )
    assert [server.settings for server in files] == [server.settings for server in environments]
    for server in (*files, *environments):
        server._stores.make()  # drivers that are not open: whatever there is to find fault with, they find here


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "brokers").glob("*.md")), ids=_name)
def test_the_page_of_a_broker_leads_to_it_by_a_file_and_by_the_environment(page: Path, tmp_path: Path) -> None:
    imported = set(_BROKER.findall(page.read_text()))
    assert len(imported) == 1, f"{page.name} is to show which broker it is about"
    for kind in ("yaml", "env"):
        blocks = [block for block in _blocks(page) if block.kind == kind]
        brokers = [type(_server(block, tmp_path)._stores.make()[0]) for block in blocks]
        assert {f"from {broker.__module__} import {broker.__name__}" for broker in brokers} == imported, kind


def _server(block: Block, folder: Path) -> Server:
    """The server that a block of settings makes, not connected."""
    if block.kind == "env":
        return Server.from_env(dict(line.split("=", 1) for line in block.text.splitlines() if line))
    path = folder / "settings.yaml"
    path.write_text(block.text)
    return Server.from_yaml(path)


def _run_python(block: Block, folder: Path) -> None:
    compile(block.text, block.where, "exec")
    if not _save(block, folder):
        _run([sys.executable, "-c", block.text], block, folder)


_PROGRAM = """
import ast, asyncio, inspect, sys

async def main(names, texts):
    for name, text in zip(names, texts, strict=True):
        code = compile(text, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = eval(code, globals())
        if inspect.iscoroutine(waiting):
            await waiting

asyncio.run(main(sys.argv[1::2], sys.argv[2::2]))
"""


def _run_pieces(pieces: list[Block], folder: Path) -> None:
    for piece in pieces:
        compile(piece.text, piece.where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    arguments = [each for piece in pieces for each in (piece.where, piece.text)]
    _run([sys.executable, "-c", _PROGRAM, *arguments], pieces[0], folder)


def _save(block: Block, folder: Path) -> bool:
    """Save a block that names its file; whether it does."""
    named = _FILE.match(block.text.partition("\n")[0])
    if named is None:
        return False
    path = folder / named["name"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)
    return True


def _run_session(block: Block, folder: Path) -> None:
    lines = block.text.splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    expected = [line for line in lines if not line.startswith("$ ")]
    printed = _run(["bash", "-ec", "\n".join(commands)], block, folder)
    assert printed.splitlines() == expected, f"{block.where} shows other output"


def _run(command: list[str], block: Block, folder: Path) -> str:
    """What it printed; fails with all it said when it ended badly or not at all."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with (folder / "stdout").open("w+") as stdout, (folder / "stderr").open("w+") as stderr:
        # files and not pipes: what stays in the background would keep a pipe open
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stdout, stderr=stderr, start_new_session=True
        )
        try:
            code: int | str = process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            code = f"nothing within {DEADLINE} s"
        finally:
            _stop_group(process)
    said = (folder / "stdout").read_text()
    assert code == 0, f"{block.where} ended with {code}\n{said}\n{(folder / 'stderr').read_text()}"
    return said


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # nothing was left in the background
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
