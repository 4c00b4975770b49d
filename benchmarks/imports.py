"""What does ``import asyncqueue`` cost, and what does it load?"""

from __future__ import annotations

import json
import subprocess
import sys

_CHILD = """
import json, sys, time
began = time.process_time()
import asyncqueue
spent = time.process_time() - began
known = ("redis", "aio_pika", "aiormq", "sqlite3", "pymongo", "aiobotocore", "google.pubsub_v1")
clients = sorted(name for name in known if name in sys.modules)
began = time.process_time()
from asyncqueue import Server
print(json.dumps({"import_ms": spent * 1e3, "server_ms": (time.process_time() - began) * 1e3, "clients": clients}))
"""


def run(rounds: int = 5) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU for ``import asyncqueue`` and for the first use of ``Server`` after it: the best of some."""
    seen = [json.loads(subprocess.run([sys.executable, "-c", _CHILD], check=True, capture_output=True).stdout)]
    seen += [
        json.loads(subprocess.run([sys.executable, "-c", _CHILD], check=True, capture_output=True).stdout)
        for _ in range(rounds - 1)
    ]
    return {
        "import asyncqueue": {"cpu_ms": round(min(each["import_ms"] for each in seen), 1)},
        "asyncqueue.Server, after that": {"cpu_ms": round(min(each["server_ms"] for each in seen), 1)},
        "client libraries loaded by the import": {"count": len(seen[0]["clients"])},
    }
