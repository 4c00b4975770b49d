"""No password is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncqueue.redact import redact_url, without_credentials

CANARY = "c4n4ry"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/1", "redis://localhost:6379/1"),
        ("redis://user:c4n4ry@localhost:6379/1", "redis://user:***@localhost:6379/1"),
        ("redis://:c4n4ry@localhost", "redis://:***@localhost"),
        ("redis://c4n4ry@localhost", "redis://***@localhost"),
        ("rediss://u:c4n4ry@[::1]:6379/0", "rediss://u:***@[::1]:6379/0"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://u:c4n4ry@h1:6379,h2:6379/0", "redis://u:***@h1:6379,h2:6379/0"),
        ("redis://a:c4n4ry@h1:1,b:c4n4ry@h2:2/0", "redis://a:***@h1:1,b:***@h2:2/0"),
        ("redis://h1:1,b:c4n4ry@h2:2", "redis://h1:1,b:***@h2:2"),
        ("redis+socket://u:c4n4ry@/run/redis.sock:/1", "redis+socket://u:***@/run/redis.sock:/1"),
        ("redis+socket:///run/redis.sock:/1", "redis+socket:///run/redis.sock:/1"),
        ("redis://h/0?password=c4n4ry&timeout=3", "redis://h/0?password=***&timeout=3"),
        ("redis://h/0?timeout=3&sentinel_password=c4n4ry", "redis://h/0?timeout=3&sentinel_password=***"),
        ("amqp://guest:c4n4ry@localhost:5672/", "amqp://guest:***@localhost:5672/"),
        ("amqp://guest@localhost:5672/vhost", "amqp://guest@localhost:5672/vhost"),
        ("amqp://a:c4n4ry@h1/;amqps://b:c4n4ry@h2/", "amqp://a:***@h1/;amqps://b:***@h2/"),
        ("amqp://a:c4n4ry@h1/ AND amqp://h2:5672/", "amqp://a:***@h1/ AND amqp://h2:5672/"),
        ("mongodb://u:c4n4ry@h1,h2:27018/db?authSource=admin", "mongodb://u:***@h1,h2:27018/db?authSource=admin"),
        (
            "mongodb+srv://h/?authMechanismProperties=AWS_SESSION_TOKEN:c4n4ry&w=1",
            "mongodb+srv://h/?authMechanismProperties=***&w=1",
        ),
        ("https://c4n4ry@sqs.eu-west-1.amazonaws.com/1/q", "https://***@sqs.eu-west-1.amazonaws.com/1/q"),
        ("https://dynamodb?X-Amz-Signature=c4n4ry", "https://dynamodb?X-Amz-Signature=***"),
        ("memcache://10.0.0.1:11211,10.0.0.2:11211", "memcache://10.0.0.1:11211,10.0.0.2:11211"),
        ("sqlite:////srv/me@home:x/tasks.db", "sqlite:////srv/me@home:x/tasks.db"),
        ("gcppubsub://project/subscription", "gcppubsub://project/subscription"),
        ("eager", "eager"),
        ("memory://", "memory://"),
        ("", ""),
        ("what://u:c4n4ry@host", "what://u:***@host"),
        ("redis:/u:c4n4ry@host", "redis:***@host"),
        ("u:c4n4ry@host", "u:***@host"),
        ("redis://u:c4n4ry/0", "redis://u:***"),
        ("redis://h/0?password=c4n4@ry", "redis://***"),
    ],
)
def test_a_url_shows_its_user_and_place_and_never_its_password(url: str, shown: str) -> None:
    assert redact_url(url) == shown


# where a password stands alone, a colon in it would make its first part a user name, to every reader of URLs
ALONE = ["rediss://{}@host:1,host:2", "https://{}@host/x"]
TEMPLATES = [
    *ALONE,
    "redis://user:{}@host:6379/0",
    "redis://:{}@host",
    "redis://a:{}@h1:1,b:{}@h2:2",
    "redis+socket://:{}@/run/redis.sock",
    "amqp://user:{}@host:5672/vhost",
    "amqp://user:{}@h1/;amqp://user:{}@h2/",
    "mongodb://user:{}@h1,h2/db",
    "https://user:{}@dynamodb",
    "strange://user:{}@host",
    "user:{}@host",
    "redis://host/0?password={}",
    "mongodb://host/?a=b&tlsCertificateKeyFilePassword={}",
]


@pytest.mark.parametrize("template", TEMPLATES)
@given(noise=st.text("/?#@:%[]= \\'\"ä-._~!$", max_size=6), more=st.text("/?#@:%[]= x1.", max_size=4))
def test_whatever_stands_in_a_password_none_of_it_is_shown(template: str, noise: str, more: str) -> None:
    password = f"{CANARY}{noise}{CANARY}{more}{CANARY}"
    if template in ALONE:
        password = password.replace(":", "")
    assert CANARY not in redact_url(template.replace("{}", password))


@pytest.mark.parametrize("template", [template for template in TEMPLATES if "@" in template])
@pytest.mark.parametrize("inside", [",", "&", ",&", "://", "?password=", ";"])
def test_a_separator_inside_a_password_shows_nothing_of_it(template: str, inside: str) -> None:
    password = f"{CANARY}{inside}{CANARY}{inside}{CANARY}"
    if template in ALONE:
        password = password.replace(":", "")
    assert CANARY not in redact_url(template.replace("{}", password))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("redis://a:b@h:1/0", "redis://c:d@h:1/0", True),
        ("redis://h:1/0", "redis://pw@h:1/0", True),
        ("amqp://a:b@h1/;amqp://a:b@h2/", "amqp://a:c@h1/;amqp://a:c@h2/", True),
        ("redis://h/0?password=a", "redis://h/0?password=b", True),
        ("redis://h:1/0", "redis://h:1/1", False),
        ("redis://h:1/0", "rediss://h:1/0", False),
        ("redis://a:b@h1:1/0", "redis://a:b@h2:1/0", False),
        ("sqlite:///a.db", "sqlite:///b.db", False),
    ],
)
def test_urls_to_the_same_place_are_equal_without_credentials(one: str, other: str, same: bool) -> None:
    assert (without_credentials(one) == without_credentials(other)) is same
