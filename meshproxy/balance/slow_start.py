"""How much of its share a new endpoint gets: more from moment to moment, so that cold caches are not flooded."""

from __future__ import annotations

MINIMUM_WARMTH = 0.1  # Envoy's: without any traffic nothing warms up


def warmth(age_s: float, *, window_s: float) -> float:
    """Return the part of its weight that an endpoint of this age gets, up to 1."""
    return 1.0 if age_s >= window_s else max(MINIMUM_WARMTH, age_s / window_s)
