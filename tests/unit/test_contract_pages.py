"""What a driver's page hears when it does not say what it is about."""

from __future__ import annotations

import re

import pytest

from asyncqueue.testing import (
    BackendContract,
    BrokerContract,
    GroupContract,
    InspectorContract,
    JointContract,
    JointGroupContract,
    LockContract,
    TurnLockContract,
)
from asyncqueue.testing.suite import Suite


@pytest.mark.parametrize(
    ("contract", "method", "returns"),
    [
        (BrokerContract, "make_broker", "a broker"),
        (InspectorContract, "make_broker", "a broker"),
        (BackendContract, "make_backend", "a backend"),
        (GroupContract, "make_backend", "a backend"),
        (JointContract, "make_backend", "a backend"),
        (JointGroupContract, "make_backend", "a backend"),
        (LockContract, "make_lock", "a lock"),
        (TurnLockContract, "make_lock", "a TurnLock"),
    ],
)
async def test_a_page_that_makes_nothing_hears_what_to_override_and_what_that_returns(
    contract: type[Suite], method: str, returns: str
) -> None:
    page = type("MyPage", (contract,), {})()
    with pytest.raises(NotImplementedError, match=re.escape(f"MyPage must override {method}: it returns {returns}, ")):
        await getattr(page, method)()
