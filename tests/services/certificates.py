"""Certificates for servers on loopback, made by openssl for two days."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.services.server import Program, StartFailed

OPENSSL = Program("openssl", "openssl", "TLS")


def make_certificates(folder: Path) -> None:
    """Write ``ca.crt``, ``server.crt`` and ``server.key``, for localhost and 127.0.0.1, ``client.crt`` and
    ``client.key``, for two days."""
    openssl = OPENSSL.require()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "openssl.cnf").write_text(_OPENSSL_CONFIG)
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "openssl.cnf"]
    authority = ["-x509", "-days", "2", "-subj", "/CN=asyncqueue tests", "-extensions", "authority"]
    signing = ["-days", "2", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "openssl.cnf"]
    for arguments in (
        ["req", *new_key, *authority, "-keyout", "ca.key", "-out", "ca.crt"],
        ["req", *new_key, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr"],
        ["x509", "-req", "-in", "server.csr", *signing, "-extensions", "server", "-out", "server.crt"],
        ["req", *new_key, "-subj", "/CN=client", "-keyout", "client.key", "-out", "client.csr"],
        ["x509", "-req", "-in", "client.csr", *signing, "-extensions", "client", "-out", "client.crt"],
    ):
        done = subprocess.run([openssl, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartFailed(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
    # in compose it is another user who reads it
    (folder / "server.key").chmod(0o644)


_OPENSSL_CONFIG = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = asyncqueue tests
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
