"""When an endpoint is taken out for its answers, and for how long: arithmetic on counts. cluster.py does it.

As Envoy's consecutive errors, with two differences. One endpoint may always go, however few there are; and one that
comes back is on probation: its first failure takes it out again, so that an endpoint that stays broken costs one
attempt a time and not five.
"""

from __future__ import annotations

from meshproxy.config import OutlierDetection

# google.rpc's mapping to HTTP: what report() takes, for a call that failed in its trailers.
STATUS_OF_GRPC = {
    0: 200,
    1: 499,
    2: 500,
    3: 400,
    4: 504,
    5: 404,
    6: 409,
    7: 403,
    8: 429,
    9: 400,
    10: 409,
    11: 400,
    12: 501,
    13: 500,
    14: 503,
    15: 500,
    16: 401,
}


def status_of_grpc(grpc_status: int) -> int:
    """Return the HTTP status that counts for the endpoint; a status nobody knows is its fault."""
    return STATUS_OF_GRPC.get(grpc_status, 500)


def is_outlier(detection: OutlierDetection, *, consecutive_5xx: int, consecutive_gateway_failures: int) -> bool:
    """Return whether so many failures in a row are too many; a threshold of 0 is none."""
    return 0 < detection.consecutive_5xx <= consecutive_5xx or (
        0 < detection.consecutive_gateway_failure <= consecutive_gateway_failures
    )


def may_eject(detection: OutlierDetection, *, ejected: int, total: int) -> bool:
    """Return whether one more of `total` endpoints may go."""
    return ejected == 0 or (ejected + 1) * 100 <= detection.max_ejection_percent * total


def ejection_s(detection: OutlierDetection, *, count: int) -> float:
    """Return how long it stays out the `count`th time in a row, from 1."""
    return min(detection.max_ejection_s, detection.base_ejection_s * count)
