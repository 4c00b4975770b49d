"""Java programs, fetched by Maven from wherever it is set up to, and checked."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.services.server import SERVICES, Program, ServiceMissing

JAVA = Program("java", "default-jre-headless", "SQS, DynamoDB")
MAVEN = Program("mvn", "maven", "SQS, DynamoDB")


@dataclass(frozen=True, slots=True)
class Jars:
    """A Java program and all that it needs: a folder of jars, which Maven fetches from wherever it is set up to.

    ``sha256`` is that of the lines ``<name> <sha256 of the file>`` of all of them, sorted.
    """

    group: str
    artifact: str
    version: str
    main: str
    sha256: str
    serves: str

    @property
    def folder(self) -> Path:
        """Where they are kept; ``make clean`` removes them."""
        return SERVICES / f"{self.artifact}-{self.version}"

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.artifact} {self.version}"

    @property
    def is_here(self) -> bool:
        """Whether they were fetched before."""
        return self.folder.is_dir()

    def require(self) -> str:
        """Their class path; raises ``ServiceMissing``."""
        if self.is_here:
            return f"{self.folder}/*"
        raise ServiceMissing(f"{self.serves} needs {self.title}: python -m tests.services install")

    def fetch(self) -> None:
        """Fetch and check them; raises ``ServiceMissing``. They are all there afterwards, or none is."""
        maven = MAVEN.require()
        print(f"fetching {self.title} with Maven", flush=True)
        SERVICES.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SERVICES) as folder:
            pom, jars = Path(folder, "pom.xml"), Path(folder, "jars")
            pom.write_text(_POM.format(jars=self))
            command = [maven, "-q", "-B", "--strict-checksums", "-f", str(pom), _COPY_DEPENDENCIES]
            command.append(f"-DoutputDirectory={jars}")
            if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
                raise ServiceMissing(f"{self.serves}: Maven could not fetch {self.title}")
            if (found := _sha256_of(jars)) != self.sha256:
                raise ServiceMissing(f"{self.title}: the sha256 is {found}, expected {self.sha256}")
            jars.rename(self.folder)


_COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_POM = """\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>asyncqueue.tests</groupId>
  <artifactId>jars</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>{jars.group}</groupId>
      <artifactId>{jars.artifact}</artifactId>
      <version>{jars.version}</version>
    </dependency>
  </dependencies>
</project>
"""


def _sha256_of(folder: Path) -> str:
    """One checksum for the names and contents of all files in a folder."""
    lines = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in sorted(folder.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
