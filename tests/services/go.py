"""Programs in Go for the tests, built from sources beside them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.services.server import SERVICES, Program, ServiceMissing

GO = Program("go", "golang-go", "Go")

ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "", "GO111MODULE": "on", "GOWORK": "off"}


@dataclass(frozen=True, slots=True)
class GoBuild:
    """A program in Go, whose modules Go fetches from wherever it is set up to, and checks by their ``go.sum``.

    ``folder_of_module`` has ``go.mod`` and ``go.sum``; ``shared`` are sources that lie elsewhere, in which the first
    part of ``imports`` is replaced by the second.
    """

    name: str
    folder_of_module: Path
    module: str
    serves: str
    shared: Sequence[Path] = ()
    imports: tuple[str, str] = ("", "")

    @property
    def title(self) -> str:
        """Its name, and the module that it is about."""
        return f"{self.name} ({self.module} {self._said_of(self.module)})"

    @property
    def folder(self) -> Path:
        """Where the program is kept: one for each version of its source. ``make clean`` removes it."""
        text = "".join(f"{name}\n{source}" for name, source in sorted(self._sources().items()))
        return SERVICES / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def is_here(self) -> bool:
        """Whether it was built before."""
        return self.folder.is_dir()

    def require(self) -> str:
        """Its path; raises ``ServiceMissing``."""
        if self.is_here:
            return str(self.folder / self.name)
        raise ServiceMissing(f"{self.serves} needs {self.title}: python -m tests.services install")

    def fetch(self) -> None:
        """Build it; raises ``ServiceMissing``."""
        SERVICES.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SERVICES) as folder:
            sources, built = Path(folder, "sources"), Path(folder, "built")
            sources.mkdir()
            for name, text in self._sources().items():
                (sources / name).write_text(text)
            go = _compiler(self._said_of("go"))
            print(f"building {self.title} with Go, which takes minutes where its modules must be fetched", flush=True)
            options = ["-mod=readonly", "-trimpath", "-buildvcs=false"]
            command = [go, "build", *options, "-o", str(built / self.name), "."]
            environment = os.environ | ENVIRONMENT | {"GOTOOLCHAIN": "local"}
            if go != GO.path:
                environment["GOROOT"] = str(Path(go).parents[1])  # not that of the installed one
            if subprocess.run(command, cwd=sources, env=environment, stdin=subprocess.DEVNULL, check=False).returncode:
                raise ServiceMissing(f"{self.serves}: Go could not build {self.title}")
            built.rename(self.folder)

    def _sources(self) -> dict[str, str]:
        beside = [path for path in self.folder_of_module.iterdir() if path.suffix in {".go", ".mod", ".sum"}]
        return {path.name: path.read_text() for path in beside} | {
            path.name: path.read_text().replace(*self.imports) for path in self.shared
        }

    def _said_of(self, name: str) -> str:
        """What ``go.mod`` says of a module, or of ``go``."""
        text = (self.folder_of_module / "go.mod").read_text()
        found = re.search(rf"^(?:require)?\s*{re.escape(name)} (\S+)", text, re.MULTILINE)
        assert found is not None, f"{self.folder_of_module}/go.mod does not name {name}"
        return found[1]


TOOLCHAIN = "1.24.13"
"""The Go that is fetched where the installed one is too old, as that of Debian 12 is for some modules."""


def _compiler(least: str) -> str:
    """A Go that is not older; raises ``ServiceMissing``."""
    installed = GO.require()
    said = subprocess.run([installed, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    if _numbers(said) >= _numbers(least):
        return installed
    return _fetched_compiler(installed, said.strip(), least)


def _fetched_compiler(installed: str, version: str, least: str) -> str:
    """The toolchain is a module like any other, which every Go can fetch."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    module = f"golang.org/toolchain@v0.0.1-go{TOOLCHAIN}.{platform.system().lower()}-{machine}"
    print(f"{version} is older than {least}: fetching Go {TOOLCHAIN}", flush=True)
    environment = os.environ | ENVIRONMENT | {"GOTOOLCHAIN": "local"}
    asked = subprocess.run(
        [installed, "mod", "download", "-json", module],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise ServiceMissing(f"Go {least} is needed, {version} is here, and {module} could not be fetched")
    root = Path(json.loads(asked.stdout)["Dir"])
    for program in (*root.glob("bin/*"), *root.glob("pkg/tool/*/*")):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)  # the files of a module are no programs
    return str(root / "bin" / "go")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
