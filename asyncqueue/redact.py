"""URLs as people may see them: without their passwords.

What cannot be told apart from a password is masked: losing a host name in a log line is better than showing a secret.
"""

from __future__ import annotations

import re

_MASK = "***"

# Lists of URLs are joined by a separator that users choose, so the only mark of a new one is a scheme that we know.
_URL_START = re.compile(
    r"(?:amqps?|rediss?(?:\+socket)?|memcached?|mongodb(?:\+srv)?|gcppubsub|sqlite|https?)://", re.IGNORECASE
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NO_LOGIN = frozenset({"sqlite", "gcppubsub", "memory", "eager", "null"})
_LONE_LOGIN_IS_USER = frozenset({"amqp", "amqps", "mongodb", "mongodb+srv"})
_HOST_WITH_PORT = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.%]+\]):\d{1,5}(?=[/?#\s;|]|$)")
_HOST = re.compile(r"(?:[^:/?#]*|\[[0-9A-Fa-f:.%]+\])(?::\d{0,5})?(?=[/?#\s;|]|$)")
_SECRET_PARAMETER = re.compile(
    r"""(?P<name>[?&;\#]
        (?: [^=&;\#?]*
            (?:pass|pwd|secret|token|credential|signature|api[_-]?key|access[_-]?key|authmechanismproperties)
            [^=&;\#?]*
          | key | auth | sig
        ) = ) [^&]*""",
    re.IGNORECASE | re.VERBOSE,
)


def redact_url(url: str) -> str:
    """``url`` with every password replaced by ``***``; users, hosts, paths and harmless parameters stay.

    Takes what configurations hold: one URL, several hosts with a login each, several URLs joined by any separator,
    passwords in the query, passwords that should have been percent-encoded and are not, and text that is no URL.
    A login without a colon is a password to Redis, and is masked; AMQP and MongoDB read a user name, which stays.
    """
    return _rewrite(url, show_user=True)


def without_credentials(url: str) -> str:
    """``url`` without logins and secret parameters: equal for two URLs that lead to the same place."""
    return _rewrite(url, show_user=False)


def _rewrite(text: str, *, show_user: bool) -> str:
    starts = [match.start() for match in _URL_START.finditer(text)]
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    urls = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    return "".join(_rewrite_one(url, show_user=show_user) for url in urls)


def _rewrite_one(url: str, *, show_user: bool) -> str:
    start = _SCHEME.match(url)
    scheme, rest = url[: start.end()] if start else "", url[start.end() if start else 0 :]
    kind = scheme.removesuffix("://").lower()
    parameter = _SECRET_PARAMETER.search(rest)
    if parameter and "@" in rest[parameter.start() :] and kind not in _NO_LOGIN:
        # a secret parameter with "@" in its value, or a password with "?password=" in it: nothing is safe to show
        return scheme + _MASK
    rest = _SECRET_PARAMETER.sub(rf"\g<name>{_MASK}", rest)
    if kind in _NO_LOGIN or (not scheme and "@" not in rest):
        return scheme + rest
    # Only Redis gives each of its comma-separated hosts a login; elsewhere a comma may belong to the one password.
    places = rest.split(",") if kind.startswith("redis") or "@" not in rest else [rest]
    last_login = max((index for index, place in enumerate(places) if "@" in place), default=-1)
    shown = (
        _place(place, kind, show_user=show_user, login_follows=index < last_login) for index, place in enumerate(places)
    )
    return scheme + ",".join(shown)


def _place(place: str, kind: str, *, show_user: bool, login_follows: bool) -> str:
    login, at, host = place.rpartition("@")
    if login_follows and not _HOST_WITH_PORT.match(host):
        # perhaps no host at all, but the beginning of a password with a comma in it
        return f"{_login(login or host, kind)}@{_MASK}" if at else _login(host, "redis")
    if not at:
        return host if _HOST.match(host) else _login(host, kind)
    return f"{_login(login, kind)}@{host}" if show_user and login else host


def _login(login: str, kind: str) -> str:
    user, colon, _ = login.partition(":")
    if colon:
        return f"{user}:{_MASK}"
    return login if kind in _LONE_LOGIN_IS_USER else _MASK
