"""The configuration of a bridge network for tests: what most people have, and what a test changes of it."""

from __future__ import annotations

from typing import Any

V4: dict[str, Any] = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]}
DUAL: dict[str, Any] = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]}
GATEWAY_V4, GATEWAY_V6 = "10.1.0.1", "fd01::1"


def bridge_config(**keys: Any) -> dict[str, Any]:
    """A bridge network with these keys replaced; None leaves a key out."""
    config = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "isDefaultGateway": True,
        "ipam": V4,
        **keys,
    }
    return {key: value for key, value in config.items() if value is not None}
