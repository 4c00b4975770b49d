"""Where Redis is: one server, a master that sentinels watch, or a cluster; and the URLs that say so."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote

from asyncqueue.errors import ConfigError
from asyncqueue.redact import redact_url

PORT = 6379
SENTINEL_PORT = 26_379


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where one server is, and who we are there. ``path`` is a unix socket, and wins over host and port."""

    host: str = "localhost"
    port: int = PORT
    path: str = ""
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"

    def at(self, host: str, port: int) -> RedisAddress:
        """Another server, where we are the same."""
        return replace(self, host=host, port=port)


@dataclass(frozen=True, slots=True)
class Alone:
    """One server."""

    server: RedisAddress

    @property
    def like(self) -> RedisAddress:
        """Who we are there."""
        return self.server

    def __str__(self) -> str:
        return str(self.server)


@dataclass(frozen=True, slots=True)
class Watched:
    """The master of this name, whichever server that is now: the sentinels know. ``like`` is who we are there."""

    sentinels: tuple[RedisAddress, ...]
    master_name: str
    like: RedisAddress

    def __str__(self) -> str:
        return f"{_listed(self.sentinels)} ({self.master_name})"


@dataclass(frozen=True, slots=True)
class Clustered:
    """A cluster, and some of its nodes, of which one at least should answer."""

    seeds: tuple[RedisAddress, ...]

    @property
    def like(self) -> RedisAddress:
        """Who we are at each node."""
        return self.seeds[0]

    def __str__(self) -> str:
        return _listed(self.seeds)


Place: TypeAlias = Alone | Watched | Clustered

_LOGIN = "[[user:]password@]"
_FORMS = {
    "redis": f"redis://{_LOGIN}host[:port][,host[:port]...][/db][?option=value&...]",
    "rediss": f"rediss://{_LOGIN}host[:port][,host[:port]...][/db][?option=value&...]",
    "redis+socket": f"redis+socket://{_LOGIN}/path[:/db]",
}
_OPTIONS = ("master_name", "cluster")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def parse_url(
    url: str,
    tls: ssl.SSLContext | None = None,
    *,
    cluster: bool = False,
    master_name: str = "",
    sentinel_password: str = "",
) -> Place:
    """The place in a URL of one of the forms ``redis://``, ``rediss://`` or ``redis+socket://``.

    One address is a server, or with ``cluster`` a node of a cluster; several are nodes of a cluster; with a
    ``master_name`` they are sentinels, who are given the ``sentinel_password``. Login, db and TLS are for all of them.
    The URL's own ``?master_name=`` and ``?cluster=true`` win.

    Logins are percent-decoded; one without a colon is a password. ``rediss://`` verifies the server's certificate and
    name; ``tls`` is a context to use instead of the one that the URL's options make, and turns TLS on by itself.
    Raises ``ConfigError``, which never shows the password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _FORMS:
        raise ConfigError(f"{redact_url(url)!r} is no URL of a Redis server: expected {' or '.join(_FORMS.values())}")
    try:
        if scheme == "redis+socket":
            if master_name or cluster:
                raise ValueError("neither sentinels nor clusters are behind a unix socket")
            return Alone(_parse_socket(rest))
        _check_order(rest)
        options = _options(rest.partition("?")[2], scheme)
        master_name = options.get("master_name", master_name)
        if "cluster" in options:
            cluster = _flag(options["cluster"])
        if scheme == "rediss" and tls is None:
            tls = _tls_context(options)
        addresses = _parse_tcp(rest, tls, SENTINEL_PORT if master_name else PORT)
        return _arranged(addresses, cluster, master_name, sentinel_password)
    except ValueError as exc:
        raise ConfigError(f"{redact_url(url)!r}: {exc}; expected {_FORMS[scheme]}") from None


def _arranged(addresses: tuple[RedisAddress, ...], cluster: bool, master_name: str, sentinel_password: str) -> Place:
    first = addresses[0]
    if master_name:
        if cluster:
            raise ValueError("it cannot be both a cluster and, by its master_name, watched by sentinels")
        sentinels = (replace(each, db=0, username=None, password=sentinel_password or None) for each in addresses)
        return Watched(tuple(sentinels), master_name, first)
    if not cluster and len(addresses) == 1:
        return Alone(first)
    if first.db:
        raise ValueError(f"a cluster has no database but 0, and this asks for {first.db}")
    return Clustered(addresses)


def _parse_socket(rest: str) -> RedisAddress:
    rest, _, query = rest.partition("?")
    if query:
        raise ValueError("a unix socket has no options")
    login, slash, path = ("", "/", rest[1:]) if rest.startswith("/") else rest.partition("@/")
    if not slash:
        raise ValueError("the path must begin with a slash")
    path, _, db = path.partition(":/")
    if not path:
        raise ValueError("the path is missing")
    username, password = _login(login)
    return RedisAddress(path=f"/{path}", db=_db(db), username=username, password=password)


def _check_order(rest: str) -> None:
    """Raise ``ValueError`` where something stands in a place that is not its own: it may be a part of a password."""
    authority, remainder = _split(rest)
    login = authority.rpartition("@")[0]
    if "://" in rest:
        raise ValueError("the scheme stands once, before the first address")
    if "@" in remainder:
        raise ValueError("a password with / ? # or @ in it must be percent-encoded")
    if "," in remainder.partition("?")[0]:
        raise ValueError("the db stands once, behind the last address")
    if "@" in login and "," in login:
        raise ValueError("the login stands once, before the first address")


def _split(rest: str) -> tuple[str, str]:
    """Login and addresses, and what follows them."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return authority, rest[len(authority) :]


def _parse_tcp(rest: str, tls: ssl.SSLContext | None, default_port: int) -> tuple[RedisAddress, ...]:
    authority, remainder = _split(rest)
    path = remainder.partition("?")[0]
    login, _, places = authority.rpartition("@")
    username, password = _login(login)
    db = _db(path.removeprefix("/").partition("/")[0])
    return tuple(
        RedisAddress(host=host, port=port, db=db, username=username, password=password, tls=tls)
        for host, port in (_host_and_port(place, default_port) for place in places.split(","))
    )


def _login(login: str) -> tuple[str | None, str | None]:
    if not login:
        return None, None
    user, colon, password = login.partition(":")
    if not colon:
        return None, unquote(user)
    return unquote(user) or None, unquote(password) or None


def _host_and_port(place: str, default_port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]]*))(?::(\d{0,5}))?", place)
    if found is None or not 0 < (port := int(found[3] or default_port)) < 65_536:
        raise ValueError("host or port cannot be read")
    return found[1] or found[2] or "localhost", port


def _db(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError("the db must be a number")
    return int(text or 0)


def _options(query: str, scheme: str) -> Mapping[str, str]:
    known = (*_OPTIONS, *_TLS_OPTIONS) if scheme == "rediss" else _OPTIONS
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - set(known)):
        raise ValueError(f"unknown option {unknown[0]!r} (known: {', '.join(known)})")
    return options


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("cluster must be true or false")
    return text == "true"


def _tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile"))
    except OSError as exc:  # ssl.SSLError is one
        raise ValueError(f"the certificates cannot be read: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _listed(addresses: tuple[RedisAddress, ...]) -> str:
    return ",".join(map(str, addresses))
