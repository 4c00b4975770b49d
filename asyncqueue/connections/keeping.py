"""For how long entries are kept, in stores that see to it themselves. Moments are unix seconds, times are seconds."""

from __future__ import annotations

LEAST_GAIN = 0.25
"""What would be kept longer by less than this part of its time is not touched."""


def kept_until(keep: float, now: float, not_before: float | None) -> float:
    """Until when an entry is kept that is written now, and due then."""
    return max(now, not_before or now) + keep
