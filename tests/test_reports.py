"""What the tests report can be handed from one process to another, whatever they print."""

from __future__ import annotations

import pytest


def test_half_a_character_in_a_report_is_escaped(request: pytest.FixtureRequest) -> None:
    print("half a character: \ud83d")  # in several processes, this test's own report goes that way
    report = pytest.TestReport(
        "test_it", ("tests", 1, "test_it"), {}, "failed", "not \udc80", "call", sections=[("Captured stdout", "\ud83d")]
    )
    data = request.config.hook.pytest_report_to_serializable(config=request.config, report=report)
    assert (data["longrepr"], data["sections"]) == (r"not \udc80", [("Captured stdout", r"\ud83d")])
    again = request.config.hook.pytest_report_from_serializable(config=request.config, data=data)
    assert again.outcome == "failed"
