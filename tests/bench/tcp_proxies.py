"""TCP through meshproxy and through Envoy: `python tests/bench/tcp_proxies.py`. Needs iperf3.

Round trips are of 64 bytes on one connection, by a blocking client (its own cost is in them, the same for all); bulk is
one iperf3 stream from the client to the endpoint. `cpu` is the proxy's, for a round trip and for a gigabyte. Rounds
take turns: believe the medians, within one run.
"""

from __future__ import annotations

import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.proxies import child_of, cpu_s, start
from tests.bench.proxy_peers import free_ports

ROUNDS = 5
ROUND_TRIPS = 5_000
BULK_S = 2
MESSAGE = b"x" * 64


def envoy_config(pairs: list[tuple[int, int]]) -> str:
    """A TCP proxy for each pair of a port and the endpoint's port."""
    listeners, clusters = [], []
    for port, endpoint in pairs:
        address = "{socket_address: {address: 127.0.0.1, port_value: %d}}"
        proxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
        config = f'{{"@type": {proxy}, stat_prefix: t, cluster: c{endpoint}}}'
        listeners.append(
            f"  - address: {address % port}\n    filter_chains: [{{filters: "
            f"[{{name: envoy.filters.network.tcp_proxy, typed_config: {config}}}]}}]"
        )
        clusters.append(
            f"  - {{name: c{endpoint}, type: STATIC, load_assignment: {{cluster_name: c{endpoint}, "
            f"endpoints: [{{lb_endpoints: [{{endpoint: {{address: {address % endpoint}}}}}]}}]}}}}"
        )
    return "\n".join(["static_resources:", "  listeners:", *listeners, "  clusters:", *clusters, ""])


def meshproxy_config(pairs: list[tuple[int, int]]) -> str:
    lines = ["admin: null", "listeners:"]
    for port, endpoint in pairs:
        lines.append(f"  - {{name: l{port}, address: 127.0.0.1, port: {port}, protocol: tcp, cluster: c{endpoint}}}")
    lines.append("clusters:")
    lines += [f"  - {{name: c{endpoint}, endpoints: ['127.0.0.1:{endpoint}']}}" for _, endpoint in pairs]
    return "\n".join([*lines, ""])


def echo_forever(listening: socket.socket) -> None:
    while True:
        connection, _ = listening.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(65_536):
                connection.sendall(data)


def round_trip_us(port: int) -> float:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(MESSAGE)
        client.recv(64, socket.MSG_WAITALL)
        before = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            client.sendall(MESSAGE)
            client.recv(64, socket.MSG_WAITALL)
        return (time.perf_counter() - before) / ROUND_TRIPS * 1e6


def bulk_gbit(port: int) -> tuple[float, float]:
    """Gigabits a second, and gigabytes in all."""
    command = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-t", str(BULK_S), "-J"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    received = json.loads(done.stdout)["end"]["sum_received"]
    return received["bits_per_second"] / 1e9, received["bytes"] / 1e9


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            subprocess.run(["sleep", "0.05"], check=True)
    raise SystemExit(f"nothing listens on port {port}")


def main() -> int:
    if shutil.which("iperf3") is None:
        raise SystemExit("iperf3 is needed")
    with tempfile.TemporaryDirectory(prefix="meshproxy-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=echo_forever, args=(listening,), daemon=True).start()
        echo = int(listening.getsockname()[1])
        iperf, *ports = free_ports(5)
        start(stack, ["iperf3", "-s", "-p", str(iperf)])
        (folder / "envoy.yaml").write_text(envoy_config([(ports[0], echo), (ports[1], iperf)]), encoding="ascii")
        (folder / "mesh.yaml").write_text(meshproxy_config([(ports[2], echo), (ports[3], iperf)]), encoding="ascii")
        binary = str(Path(sys.prefix) / "bin" / "envoy")
        options = ["--concurrency", "1", "--base-id", str(ports[0]), "-l", "off"]
        envoy = start(stack, [binary, "-c", str(folder / "envoy.yaml"), *options])
        command = [sys.executable, "-m", "meshproxy.cli", "run", "--config", str(folder / "mesh.yaml")]
        mesh = start(stack, command)
        for port in ports:
            wait_for(port)
        ways = {
            "direct": (0, echo, iperf),
            "envoy": (child_of(envoy.pid), ports[0], ports[1]),
            "meshproxy": (child_of(mesh.pid), ports[2], ports[3]),
        }
        found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (pid, small, big) in ways.items():
                before = cpu_s(pid) if pid else 0
                trip = round_trip_us(small)
                between = cpu_s(pid) if pid else 0
                gbit, gigabytes = bulk_gbit(big)
                after = cpu_s(pid) if pid else 0
                per_trip = (between - before) * 1e6 / ROUND_TRIPS
                found[name].append((trip, per_trip, gbit, (after - between) / gigabytes))
    print("            trip us  cpu us  Gbit/s  cpu s/GB")
    for name, rounds in found.items():
        trip, per_trip, gbit, per_gb = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name:10} {trip:8.1f} {per_trip:7.1f} {gbit:7.1f} {per_gb:9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
