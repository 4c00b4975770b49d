"""Real servers for the tests, by hand and from the Makefile.

    python -m tests.services install            install what is missing (root on Debian), else say what and how
    python -m tests.services status             what is here and what would be skipped
    python -m tests.services run -- COMMAND …   start every server and run COMMAND with their URLs in its environment
    python -m tests.services certificates DIR   make the certificates of the TLS servers there

Runs before there is an environment, so it needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.services import VARIABLES
from tests.services.certificates import OPENSSL, make_certificates
from tests.services.dynamodb import DYNAMODB_LOCAL, DynamoServer
from tests.services.go import GO
from tests.services.machinery import MACHINERY
from tests.services.maven import JAVA, MAVEN
from tests.services.memcached import MEMCACHED, Memcacheds
from tests.services.mongo import SECANTUS, MongoServer
from tests.services.pubsub import PSTEST, PubSubServer
from tests.services.rabbit import RABBITMQ, RabbitServer
from tests.services.redis import REDIS, RedisServer
from tests.services.server import Fetched, Program, ServiceMissing, StartFailed, started
from tests.services.sqs import ELASTICMQ, ElasticServer

PROGRAMS: Sequence[Program] = (REDIS, OPENSSL, RABBITMQ, MEMCACHED, JAVA, MAVEN, GO)
FETCHED: Sequence[Fetched] = (ELASTICMQ, DYNAMODB_LOCAL, PSTEST, SECANTUS, *MACHINERY.values())


def install() -> int:
    """Install what is missing; 0 when the tests can go on (at home they skip what is missing)."""
    if _missing_programs() and os.geteuid() == 0 and shutil.which("apt-get"):
        _apt_install([program.package for program in _missing_programs()])
    with ThreadPoolExecutor() as pool:  # one waits for the network while another compiles
        for trouble in pool.map(_trouble_with, [fetched for fetched in FETCHED if not fetched.is_here]):
            if trouble:
                print(trouble, file=sys.stderr)
    if not _is_anything_missing():
        return 0
    status()
    return 1 if os.environ.get("CI") == "true" else 0


def _trouble_with(fetched: Fetched) -> str:
    try:
        fetched.fetch()
    except ServiceMissing as exc:
        return str(exc)
    return ""


def _missing_programs() -> list[Program]:
    return [program for program in PROGRAMS if program.path is None]


def _is_anything_missing() -> bool:
    return bool(_missing_programs()) or not all(fetched.is_here for fetched in FETCHED)


def _apt_install(packages: Sequence[str]) -> None:
    print(f"installing {' '.join(packages)} with apt-get", flush=True)
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        if subprocess.run([*apt, *command], env=environment, check=False).returncode:
            print(f"apt-get {command[0]} failed", file=sys.stderr)


def status() -> int:
    """Print what is here; 0 when nothing is missing."""
    missing = _missing_programs()
    for program in PROGRAMS:
        print(f"{program.serves:8} {program.path or f'MISSING: {program.command} (package {program.package})'}")
    for fetched in FETCHED:
        print(f"{fetched.serves:8} {fetched.folder if fetched.is_here else f'MISSING: {fetched.title}'}")
    for variable, meaning in VARIABLES.items():
        print(f"{variable:23} {'is set' if os.environ.get(variable) else f'is not set ({meaning})'}")
    if missing:
        print(f"\nTests of {', '.join(program.serves for program in missing)} are skipped. As root on Debian:")
        print(f"    apt-get install {' '.join(program.package for program in missing)}")
        print("or start the servers with `docker compose up` and set the variables above; tests that kill a server")
        print("need the programs themselves.")
    for fetched in FETCHED:
        if not fetched.is_here:
            print(f"\nTests of {fetched.serves} are skipped without {fetched.title}:")
            print("    python -m tests.services install")
    return 1 if _is_anything_missing() else 0


def run(command: Sequence[str]) -> int:
    """Run a command beside every server, with the URLs in its environment; returns its exit code."""
    # SIGTERM must not leave the servers behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    servers = (
        RabbitServer(tls=True),
        ElasticServer(),
        DynamoServer(),
        PubSubServer(),
        MongoServer(),
        RedisServer(tls=True, databases=64),
    )
    with started(*servers), Memcacheds() as memcacheds:
        urls = {variable: url for server in servers for variable, url in server.variables().items()}
        urls |= memcacheds.variables()
        print(*(f"{variable}={url}" for variable, url in urls.items()), sep="\n", flush=True)
        return subprocess.run(command, env=os.environ | urls, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.services", description="Real servers for the tests.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("install", help="install what is missing, or say how")
    verbs.add_parser("status", help="what is here and what is missing")
    verbs.add_parser("run", help="run a command beside every server").add_argument("command", nargs="+")
    verbs.add_parser("certificates", help="make certificates").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        match arguments.verb:
            case "install":
                return install()
            case "status":
                return status()
            case "run":
                return run(arguments.command)
            case _:
                make_certificates(arguments.folder)
                return 0
    except (ServiceMissing, StartFailed) as exc:
        print(exc, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
