"""A pod wired by hand: a veth pair with addresses, and the result that a plugin before ours would have answered."""

from __future__ import annotations

import json
from typing import Any

from namespaces import Namespace, Pod


def wire(node: Namespace, name: str = "a", number: int = 1) -> tuple[Pod, dict[str, Any]]:
    """Make pod `name` with 10.9.NUMBER.2 and fd09:NUMBER::2 on eth0; the host's end vethNAME has .1 and ::1."""
    pod = node.add_pod(name)
    host_end = f"veth{name}"
    node.run(
        "ip", "-batch", "-",
        input=f"link add {host_end} type veth peer name eth0 netns {name}\n"
        f"address add 10.9.{number}.1/24 dev {host_end}\n"
        f"address add fd09:{number}::1/64 dev {host_end} nodad\n"
        f"link set {host_end} up\n",
    )  # fmt: skip
    pod.run(
        "ip", "-batch", "-",
        input=f"address add 10.9.{number}.2/24 dev eth0\n"
        f"address add fd09:{number}::2/64 dev eth0 nodad\n"
        "link set eth0 up\n"
        f"route add default via 10.9.{number}.1\n"
        f"route add default via fd09:{number}::1\n",
    )  # fmt: skip
    return pod, {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": host_end, "mac": link_of(node, host_end)["address"]},
            {"name": "eth0", "mac": link_of(pod, "eth0")["address"], "sandbox": pod.path},
        ],
        "ips": [
            {"address": f"10.9.{number}.2/24", "gateway": f"10.9.{number}.1", "interface": 1},
            {"address": f"fd09:{number}::2/64", "gateway": f"fd09:{number}::1", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {},
    }


def link_of(place: Namespace | Pod, name: str) -> dict[str, Any]:
    """A link as iproute2 sees it."""
    found = json.loads(place.run("ip", "-json", "-details", "address", "show", "dev", name).stdout)
    link = found[0]
    assert isinstance(link, dict)
    return link
