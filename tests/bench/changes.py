"""What a change costs those who are waiting: `python -m tests.bench.changes`.

A cluster of 200 endpoints (Maglev), a steady load on it, and in every other round ten reloads a second, each of which
takes an endpoint away or brings it back. Latencies in milliseconds, with changes and without in turns: what a machine
does besides is in both, so believe their difference, in the median of many rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-fixtures"))

from tests.bench.proxies import FIELDS, SCRIPT, load, start, wait_for
from tests.bench.proxy_peers import free_ports, nginx_config
from tests.meshproxy.live.processes import ProxyProcess

ENDPOINTS = 200
CHANGE_EVERY_S = 0.1
CONFIG = """
admin: {port: 0}
access_log: off
listeners:
  - name: web
    port: 0
    routes:
      - cluster: web
        hash: [{header: x-user}]
clusters:
  - name: web
    balancing: {policy: POLICY}
    endpoints: [ENDPOINTS]
"""


def config(ports: Sequence[int], policy: str) -> str:
    listed = ", ".join(f"127.0.0.1:{port}" for port in ports)
    return CONFIG.replace("ENDPOINTS", listed).replace("POLICY", policy)


class Changes:
    """While inside, an endpoint leaves or comes back, again and again. `count`: how often so far."""

    def __init__(self, proxy: ProxyProcess, ports: Sequence[int], policy: str) -> None:
        self.count = 0
        self._proxy, self._ports, self._policy = proxy, ports, policy
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(CHANGE_EVERY_S):
            self.count += 1
            gone = self.count % len(self._ports) if self.count % 2 else len(self._ports)
            self._proxy.rewrite(config([p for i, p in enumerate(self._ports) if i != gone], self._policy))
            answer = self._proxy.admin("/reload", method="POST")
            if answer != "taken\n":
                raise SystemExit(f"a reload was refused: {answer}")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "changes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10, help="of a round; ten changes in each")
    parser.add_argument("--policy", default="maglev")
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = free_ports(ENDPOINTS)
        (folder / "nginx.conf").write_text(nginx_config(folder, ports), encoding="ascii")
        start(stack, ["nginx", "-e", "stderr", "-c", str(folder / "nginx.conf")])
        wait_for(ports[-1])
        proxy = stack.enter_context(ProxyProcess(folder, config(ports, options.policy)))
        paced = folder / "paced.lua"
        paced.write_text(SCRIPT % ("\\r\\n".join(FIELDS), "delay = function() return 10 end"), encoding="ascii")
        load(proxy.port, paced, seconds=2)  # warm
        quiet, changed, count = [], [], 0
        for _ in range(options.rounds):
            quiet.append(load(proxy.port, paced, seconds=options.seconds))
            with Changes(proxy, ports, options.policy) as changes:
                changed.append(load(proxy.port, paced, seconds=options.seconds))
            count += changes.count
    print("latency, ms       p50     p99   p99.9")
    for name, results in (("quiet", quiet), (f"{count} changes", changed)):
        values = [statistics.median(result[key] for result in results) / 1000 for key in ("p50", "p99", "p999")]
        print(f"{name:12}  {values[0]:7.2f} {values[1]:7.2f} {values[2]:7.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
