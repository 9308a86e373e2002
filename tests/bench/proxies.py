"""meshproxy beside Envoy and HAProxy, HTTP/1.1, one core each: `python tests/bench/proxies.py`.

How to read it. `cpu` is user and system time of the proxy's process over the requests it carried, in microseconds; the
proxies take turns, round by round, so a busy machine slows all of them: believe the medians and the ratios. A request
has 8 fields of which one, the hash key, differs each time; the answer has 1 KB. All hash by that header (Maglev, or
HAProxy's consistent hash) over 3 endpoints, retry once, time out, detect outliers and count; no access log. `paced`
are the latencies where each of 32 connections waits 3 ms between requests: the same load for all, about half of what
Envoy bears. `rss` is the proxy's memory with the connections of the run. Latencies compare within one run only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.proxy_peers import ENDPOINTS, envoy_config, free_ports, haproxy_config, nginx_config

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = 32
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

FIELDS = (
    "Host: web.example.com",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64)",
    "Accept: text/html,application/json",
    "Accept-Encoding: gzip, deflate, br",
    "Accept-Language: en-US,en;q=0.9",
    "Cookie: session=0123456789abcdef",
    "Cache-Control: no-cache",
)
SCRIPT = """
local n = 0
local first = "GET /api/items/17?page=1 HTTP/1.1\\r\\n%s\\r\\nX-User: user-"
request = function()
  n = n + 1
  return first .. n .. "\\r\\n\\r\\n"
end
%s
done = function(summary, latency)
  io.write(string.format('{"requests": %%d, "seconds": %%f, "errors": %%d, "p50": %%f, "p99": %%f, "p999": %%f}',
    summary.requests, summary.duration / 1e6,
    summary.errors.status + summary.errors.read + summary.errors.timeout + summary.errors.connect,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""


@dataclass(slots=True)
class Measured:
    """What the rounds of one proxy gave."""

    cpu_us: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    paced_p50_us: list[float] = field(default_factory=list)
    paced_p99_us: list[float] = field(default_factory=list)
    rss_mb: float = 0


@dataclass(slots=True)
class Running:
    """One proxy that runs."""

    name: str
    pid: int
    port: int


def cpu_s(pid: int) -> float:
    """User and system time of a process, its ended children excluded."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / CLOCK_TICKS


def rss_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else 0


def load(port: int, script: Path, *, seconds: int) -> dict[str, float]:
    """Run wrk once; latencies in microseconds."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout[done.stdout.index("{") :])
    if result["errors"]:
        raise SystemExit(f"port {port}: {result['errors']:g} requests failed")
    return result


def wait_for(port: int) -> None:
    """Until the port answers with our 1 KB."""
    for _ in range(200):
        command = ["curl", "-s", "--retry", "0", "--max-time", "1", f"http://127.0.0.1:{port}/"]
        if len(subprocess.run(command, capture_output=True, check=False).stdout) == 1024:
            return
        subprocess.run(["sleep", "0.05"], check=True)
    raise SystemExit(f"nothing answers on port {port}")


def start(stack: ExitStack, command: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, start_new_session=True
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


def start_all(stack: ExitStack, folder: Path, names: Sequence[str]) -> list[Running]:
    """The endpoints, then each proxy that is there."""
    ports = free_ports(ENDPOINTS + 2)
    endpoints, (envoy_port, haproxy_port) = ports[:ENDPOINTS], ports[ENDPOINTS:]

    def file(name: str, text: str) -> str:
        (folder / name).write_text(text, encoding="ascii")
        return str(folder / name)

    start(stack, ["nginx", "-e", "stderr", "-c", file("nginx.conf", nginx_config(folder, endpoints))])
    for port in endpoints:
        wait_for(port)

    def meshproxy() -> tuple[int, int]:
        addresses = [part for port in endpoints for part in ("--endpoint", f"127.0.0.1:{port}")]
        options = ["--upstream", "http1", "--hash-header", "x-user", "--retry-on", "5xx", "reset", "connect-failure"]
        process = start(stack, [sys.executable, "-m", "tests.meshproxy.one_route", *addresses, *options])
        assert process.stdout is not None
        return process.pid, int(process.stdout.readline())

    def envoy() -> tuple[int, int]:
        config = file("envoy.yaml", envoy_config(envoy_port, endpoints))
        binary = Path(sys.prefix) / "bin" / "envoy"
        base = str(envoy_port)
        process = start(stack, [str(binary), "-c", config, "--concurrency", "1", "--base-id", base, "-l", "off"])
        return process.pid, envoy_port

    def haproxy() -> tuple[int, int]:
        process = start(stack, ["haproxy", "-db", "-f", file("haproxy.cfg", haproxy_config(haproxy_port, endpoints))])
        return process.pid, haproxy_port

    starters: dict[str, Callable[[], tuple[int, int]]] = {"meshproxy": meshproxy, "envoy": envoy, "haproxy": haproxy}
    running = []
    for name in names:
        if name == "haproxy" and shutil.which("haproxy") is None:
            continue
        pid, port = starters[name]()
        wait_for(port)
        running.append(Running(name, child_of(pid), port))
    return running


def child_of(pid: int) -> int:
    """The process that works: a wrapper's only child, or itself."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(children[0]) if len(children) == 1 else pid


def measure(running: list[Running], folder: Path, *, rounds: int, seconds: int) -> dict[str, Measured]:
    """Rounds in turns, full load and paced."""
    lines = "\\r\\n".join(FIELDS)
    full, paced = folder / "full.lua", folder / "paced.lua"
    full.write_text(SCRIPT % (lines, ""), encoding="ascii")
    paced.write_text(SCRIPT % (lines, "delay = function() return 3 end"), encoding="ascii")
    found = {proxy.name: Measured() for proxy in running}
    for proxy in running:
        load(proxy.port, full, seconds=1)  # warm
    for _ in range(rounds):
        for proxy in running:
            mine = found[proxy.name]
            before = cpu_s(proxy.pid)
            result = load(proxy.port, full, seconds=seconds)
            mine.cpu_us.append((cpu_s(proxy.pid) - before) * 1e6 / result["requests"])
            mine.per_s.append(result["requests"] / result["seconds"])
            mine.p99_us.append(result["p99"])
            mine.rss_mb = max(mine.rss_mb, rss_mb(proxy.pid))
            result = load(proxy.port, paced, seconds=max(1, seconds // 2))
            mine.paced_p50_us.append(result["p50"])
            mine.paced_p99_us.append(result["p99"])
    return found


def table(found: dict[str, Measured]) -> str:
    median = statistics.median
    envoy = median(found["envoy"].cpu_us) if "envoy" in found else 0
    rows = ["            cpu us  /envoy  req/s   p99 us  paced p50  paced p99  rss MB"]
    for name, mine in found.items():
        cpu = median(mine.cpu_us)
        ratio = f"{cpu / envoy:6.2f}" if envoy else "     -"
        rows.append(
            f"{name:10} {cpu:7.1f}  {ratio}  {median(mine.per_s):6.0f}  {median(mine.p99_us):6.0f}"
            f"  {median(mine.paced_p50_us):9.0f}  {median(mine.paced_p99_us):9.0f}  {mine.rss_mb:6.1f}"
        )
    return "\n".join(rows)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=["meshproxy", "envoy", "haproxy"])
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="meshproxy-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        running = start_all(stack, folder, options.only)
        print(table(measure(running, folder, rounds=options.rounds, seconds=options.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
