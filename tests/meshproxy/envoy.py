"""A real Envoy to be held against: its process, with endpoints from files that are replaced while it runs.

Hermetic: ports by the kernel, a base id of its own, files in one folder, and the process ends with the `with` block.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meshproxy.config import EndpointConfig
from waiting import wait_until

BINARY = Path(sys.executable).parent / "envoy"
START_S = 30
KEY_HEADER = "x-key"
CLUSTER_HEADER = "x-cluster"

Json = dict[str, Any]

BY_HEADERS: Json = {
    "match": {"prefix": "/"},
    "route": {"cluster_header": CLUSTER_HEADER, "hash_policy": [{"header": {"header_name": KEY_HEADER}}]},
}


class Envoy:
    """A running Envoy: `port` takes HTTP/1 requests, which CLUSTER_HEADER directs and KEY_HEADER hashes."""

    def __init__(self, folder: Path, policies: Mapping[str, Json], routes: Sequence[Json] = ()) -> None:
        self.folder = folder
        self.policies = policies
        self.routes = list(routes) or [BY_HEADERS]
        self.port = 0
        self.admin = ""
        self._versions = 0

    def set_endpoints(self, cluster: str, endpoints: Sequence[EndpointConfig]) -> None:
        """Replace the file the cluster is discovered from, as a deployment would: by renaming."""
        self._versions += 1
        assignment = {
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": cluster,
            "endpoints": [
                {
                    "lb_endpoints": [
                        {
                            "load_balancing_weight": one.weight,
                            "endpoint": {
                                "address": {"socket_address": {"address": one.address, "port_value": one.port}}
                            },
                        }
                        for one in endpoints
                    ]
                }
            ],
        }
        content = {"version_info": str(self._versions), "resources": [assignment]}
        path = self._endpoints_of(cluster)
        path.with_suffix(".new").write_text(json.dumps(content), encoding="utf-8")
        path.with_suffix(".new").replace(path)

    def members(self, cluster: str) -> set[str]:
        """Return the endpoints that Envoy's main thread knows of the cluster."""
        statuses = json.loads(self._ask("/clusters?format=json")).get("cluster_statuses", [])
        return {
            f"[{where['address']}]:{where['port_value']}"
            if ":" in where["address"]
            else f"{where['address']}:{where['port_value']}"
            for status in statuses
            if status["name"] == cluster
            for where in (host["address"]["socket_address"] for host in status.get("host_statuses", []))
        }

    def _ask(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def _endpoints_of(self, cluster: str) -> Path:
        return self.folder / f"{cluster}.json"

    def _cluster(self, name: str, policy: Json) -> Json:
        return {
            "name": name,
            "type": "EDS",
            "connect_timeout": "5s",
            # A change of weights is taken up at once, not after a second.
            "common_lb_config": {"update_merge_window": "0s"},
            "eds_cluster_config": {
                "eds_config": {
                    "resource_api_version": "V3",
                    "path_config_source": {
                        "path": str(self._endpoints_of(name)),
                        "watched_directory": {"path": str(self.folder)},
                    },
                }
            },
            **policy,
        }

    def _config(self) -> Json:
        local = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
        http = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network."
            "http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "test",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": self.routes}]},
            "http_filters": [
                {
                    "name": "router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }
            ],
        }
        return {
            "node": {"id": "test", "cluster": "test"},
            "admin": {"address": local},
            "static_resources": {
                "listeners": [
                    {
                        "name": "in",
                        "address": local,
                        "filter_chains": [{"filters": [{"name": "http", "typed_config": http}]}],
                    }
                ],
                "clusters": [self._cluster(name, policy) for name, policy in self.policies.items()],
            },
        }

    def start(self) -> subprocess.Popen[bytes]:
        for name in self.policies:
            self.set_endpoints(name, ())
        config = self.folder / "envoy.yaml"
        config.write_text(json.dumps(self._config()), encoding="utf-8")  # YAML holds JSON
        admin = self.folder / "admin"
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(str(BINARY), "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id"),
                    *("--admin-address-path", str(admin), "--log-level", "warning", "--disable-hot-restart"),
                ],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ.get("PATH", "")},
            )
        try:
            wait_until(lambda: self._is_ready(process, admin), within=START_S)
            listeners = json.loads(self._ask("/listeners?format=json"))["listener_statuses"]
            self.port = listeners[0]["local_address"]["socket_address"]["port_value"]
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def _is_ready(self, process: subprocess.Popen[bytes], admin: Path) -> bool:
        if process.poll() is not None:
            raise RuntimeError((self.folder / "log").read_text(encoding="utf-8"))
        if not admin.exists():
            return False
        self.admin = admin.read_text(encoding="utf-8").strip()
        try:
            return bool(self.admin) and self._ask("/ready").strip() == "LIVE"
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def running_envoy(folder: Path, policies: Mapping[str, Json], *, routes: Sequence[Json] = ()) -> Iterator[Envoy]:
    """Run an Envoy with a cluster for each of these load balancing policies, without endpoints yet."""
    envoy = Envoy(folder, policies, routes)
    process = envoy.start()
    try:
        yield envoy
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
