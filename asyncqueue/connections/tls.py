"""A TLS context from settings: certificates are verified unless somebody says, in so many words, not to."""

from __future__ import annotations

import logging
import ssl

from asyncqueue.errors import ConfigError

log = logging.getLogger(__name__)


def tls_context(
    *, ca_file: str = "", cert_file: str = "", key_file: str = "", insecure_skip_verify: bool = False
) -> ssl.SSLContext:
    """TLS 1.2 or newer, with the authorities of ``ca_file`` (empty: the system's), and our own certificate if there is
    one. Raises ``ConfigError`` for files that cannot be read."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigError(f"the TLS certificates cannot be read: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if insecure_skip_verify:
        log.warning("TLS certificates are not verified (insecure_skip_verify): whoever answers is believed")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
