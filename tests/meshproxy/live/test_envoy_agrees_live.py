"""Both proxies as processes, one request to each: the same endpoint answers, whatever the key is made of."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.meshproxy.addresses import answers, endpoint_server
from tests.meshproxy.clusters import endpoints
from tests.meshproxy.envoy import BINARY, Envoy, Json, running_envoy
from tests.meshproxy.live.processes import ProxyProcess

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"no Envoy at {BINARY}")

KEYS = 2000
HEADER: Json = {"header": {"header_name": "x-user"}}
QUERY: Json = {"query_parameter": {"name": "user"}}
COOKIE: Json = {"cookie": {"name": "sid"}}
# Path: the key in Envoy's words and in ours.
POLICIES: dict[str, tuple[list[Json], str]] = {
    "/header": ([HEADER], "[{header: x-user}]"),
    "/query": ([QUERY], "[{query: user}]"),
    "/cookie": ([COOKIE], "[{cookie: sid}]"),
    "/several": ([HEADER, QUERY, COOKIE], "[{header: x-user}, {query: user}, {cookie: sid}]"),
    "/terminal": ([HEADER | {"terminal": True}, QUERY], "[{header: x-user, terminal: true}, {query: user}]"),
    "/source": ([{"connection_properties": {"source_ip": True}}], "[{source_address: true}]"),
}


def requests(path: str) -> list[bytes]:
    return [
        f"GET {path}?a=1&user=q{number * 7}%20x&b=2 HTTP/1.1\r\nhost: a\r\nx-user: h{number}\r\n"
        f"cookie: other=1; sid=c{number * 3}; last=2\r\n\r\n".encode()
        for number in range(KEYS if path != "/source" else 10)
    ]


async def compare(envoy: Envoy, folder: Path) -> dict[str, int]:
    """Return how many keys of each path go elsewhere."""
    async with endpoint_server() as port:
        members = endpoints(range(30), port=port, weights=[1 + number % 3 for number in range(30)])
        envoy.set_endpoints("web", members)
        listed = "".join(f"      - {{address: {one.address}, port: {port}, weight: {one.weight}}}\n" for one in members)
        routed = "".join(
            f"      - {{name: {path[1:]}, match: {{path: {{prefix: {path}}}}}, cluster: web, hash: {ours}}}\n"
            for path, (_, ours) in POLICIES.items()
        )
        config = (
            f"listeners:\n  - name: in\n    port: 0\n    address: 127.0.0.1\n    routes:\n{routed}"
            f"clusters:\n  - name: web\n    balancing: {{policy: maglev}}\n    endpoints:\n{listed}"
            "admin: {port: 0}\n"
        )
        keys = {one.key for one in members}
        async with asyncio.timeout(10):
            while await asyncio.to_thread(envoy.members, "web") != keys:
                await asyncio.sleep(0.01)
        proxy = await asyncio.to_thread(ProxyProcess, folder, config)
        with proxy:
            differing = {}
            for path in POLICIES:
                theirs = await answers(envoy.port, requests(path))
                ours = await answers(proxy.port, requests(path))
                assert set(ours) <= keys
                differing[path] = sum(one != other for one, other in zip(theirs, ours, strict=True))
            return differing


def test_both_proxies_send_each_key_to_the_same_endpoint(tmp_path: Path) -> None:
    routes = [
        {"match": {"prefix": path}, "route": {"cluster": "web", "hash_policy": theirs}}
        for path, (theirs, _) in POLICIES.items()
    ]
    with running_envoy(tmp_path, {"web": {"lb_policy": "MAGLEV"}}, routes=routes) as envoy:
        assert asyncio.run(compare(envoy, tmp_path)) == dict.fromkeys(POLICIES, 0)
