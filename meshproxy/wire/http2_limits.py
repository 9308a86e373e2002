"""What a peer may do that costs us more than it costs the peer: so much at once, and so much each second.

Every flood ends in GOAWAY with ENHANCE_YOUR_CALM. No clock here: whoever owns the connection calls `refill` once a
second. The numbers leave honest peers an order of magnitude (gRPC probes with some ten pings a second).
"""

from __future__ import annotations

from typing import Final, Literal

from meshproxy.wire.http2_frames import Code, ConnectionFault

Kind = Literal["pings", "settings", "empty data", "resets", "faults", "priorities"]

# At once, and each second.
_LIMITS: Final[dict[Kind, tuple[int, int]]] = {
    "pings": (200, 100),  # CVE-2019-9512
    "settings": (20, 2),  # CVE-2019-9515: each walks over all streams
    "empty data": (100, 50),  # CVE-2019-9518
    "resets": (200, 100),  # CVE-2023-44487, rapid reset: a request carried to an endpoint for one frame
    "faults": (100, 50),  # CVE-2025-8671, made you reset: the same, by making us reset
    "priorities": (1000, 500),  # ignored, but read
}


class Allowance:
    """What one peer has left."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = {kind: at_once for kind, (at_once, _) in _LIMITS.items()}

    def __repr__(self) -> str:
        return f"Allowance({self._left})"

    def spend(self, kind: Kind) -> None:
        """Count one. Raises ConnectionFault."""
        left = self._left[kind] - 1
        if left < 0:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"too many {kind}")
        self._left[kind] = left

    def refill(self) -> None:
        """A second has passed."""
        left = self._left
        for kind, (at_once, each_second) in _LIMITS.items():
            left[kind] = min(at_once, left[kind] + each_second)
