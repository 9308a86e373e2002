"""`python -m cni_plugins.demo`: three pods get a network, in namespaces of their own, and nothing is left of it.

Tells what a runtime and an operator see, with the plugins as installed and the command `netloom`. Runs as root, or as
an ordinary user where user namespaces are allowed; needs Python and pyroute2 alone. Exit codes: 0 all went as told,
1 a step failed, 130 interrupted. The hosts and pods are in demo_stage.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TextIO, TypeVar

from .demo_stage import (
    BIN_DIR,
    BRIDGE,
    NETWORK,
    NOTHING,
    PORT,
    Stage,
    StepFailed,
    ask,
    count,
    flush_by_hand,
    open_stage,
)
from .errors import CniError

T = TypeVar("T")

_WIDTH = 100  # where the times stand
_QUOTED_WIDTH = 112
_STYLES = {"bold": "1", "dim": "2", "red": "31;1", "green": "32"}

HOST_PORT = 8080
NODE = ("192.0.2.1", "2001:db8:1::1")  # netns-fixtures/topologies/node.toml
OUTSIDE = ("198.51.100.2", "2001:db8:2::2")
PODS = ("web", "api", "job")
PORTS = json.dumps({"portMappings": [{"hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp"}]})

DRAWING = """\
     web       api       job        three pods: 10.87.0.0/16, fd87::/64
      |         |         |
   ===+=========+=========+===      dual0, the bridge: 10.87.0.1, fd87::1
                |
              node ---- outside     192.0.2.1 ---- 192.0.2.2; the outside knows no way to pods
"""


class Teller:
    """Prints the story: coloured on a terminal that wants it, plain elsewhere."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        # https://no-color.org: present and not empty, whatever its value
        plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
        self._is_coloured = stream.isatty() and not plain
        self._step = 0

    def __repr__(self) -> str:
        return f"<Teller step={self._step} coloured={self._is_coloured}>"

    def paint(self, style: str, text: str) -> str:
        """`text` in a style, where there are colours."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._is_coloured else text

    def say(self, text: str = "", *, style: str = "") -> None:
        """A line."""
        self._write((self.paint(style, text) if style else text) + "\n")

    def step(self, title: str) -> None:
        """A chapter begins."""
        self._step += 1
        self._write("\n" + self.paint("bold", f"{self._step}. {title}") + "\n")

    def run(self, command: str, act: Callable[[], T]) -> T:
        """Show a command, then run it, then how long it took."""
        self._write(f"   {self.paint('dim', '$ ' + command)}")
        started = time.perf_counter()
        done = act()
        self._end_line(len(command) + 5, time.perf_counter() - started)
        return done

    def claim(self, words: str, answer: Callable[[], str], expected: str) -> None:
        """Ask; say what came back. Raises StepFailed where it is something else."""
        started = time.perf_counter()
        found = answer()
        if re.fullmatch(expected, found) is None:
            raise StepFailed(f"{words}: expected {expected!r}, found {found!r}")
        text = f"{words:<46}{found}"
        self._write(f"   {self.paint('green', 'ok')} {text}")
        self._end_line(len(text) + 6, time.perf_counter() - started)

    def quote(self, text: str) -> None:
        """Lines that a program printed; long ones are wrapped."""
        for line in text.rstrip("\n").splitlines():
            indent = " " * (len(line) - len(line.lstrip()) + 5)
            wrapped = textwrap.wrap(
                line, _QUOTED_WIDTH, initial_indent="     ", subsequent_indent=indent,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
            for part in wrapped:
                self.say(part)

    def _end_line(self, length: int, seconds: float) -> None:
        gap = " " * max(2, _WIDTH - length)
        self._write(gap + self.paint("dim", f"{_seconds(seconds):>9}") + "\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


class Story:
    """The chapters, in order. Each raises StepFailed where the machine tells another story."""

    def __init__(self, stage: Stage, teller: Teller) -> None:
        self.stage = stage
        self.teller = teller
        self.addresses: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"<Story {self.stage} {self.teller}>"

    def tell(self) -> None:
        """All chapters."""
        self._install()
        self._explain()
        self._add()
        self._talk()
        self._host_ports()
        self._refuse()
        self._check()
        self._kill()
        self._delete()

    def _netloom(self, *arguments: str) -> str:
        return self.teller.run(_shown(arguments), lambda: self.stage.netloom(*arguments))

    def _refusal(self, *arguments: str) -> str:
        return self.teller.run(_shown(arguments), lambda: self.stage.refusal(*arguments))

    def _expect(self, words: str, found: object, otherwise: str) -> None:
        if not found:
            raise StepFailed(otherwise)
        self.teller.say(f"   {self.teller.paint('green', 'ok')} {words}")

    def _install(self) -> None:
        self.teller.step("Install the plugins")
        lines = self._netloom("install", "--bin-dir", BIN_DIR).splitlines()
        names = [os.path.basename(line.partition(":")[0]) for line in lines]
        self._expect(", ".join(names), "bridge" in names, "netloom install wrote no bridge")

    def _explain(self) -> None:
        self.teller.step("Ask what an ADD would do; it touches nothing")
        self.stage.add_pod("web")
        text = self._netloom("add", "--explain", NETWORK, "web", "--cap-args", PORTS)
        lines = text.splitlines()
        commands = [line for line in lines if line.startswith(("host# ip ", "pod#  ip ", "host# bridge "))][:9]
        elements = [
            line for line in lines if line.startswith("add element") and (" pods4 " in line or " ports4 " in line)
        ]
        self.teller.quote(_cut("\n".join([*commands, *elements])))
        rest = len(lines) - len(commands) - len(elements)
        self.teller.say(f"     ... and {rest} more lines: sysctls, the nft tables with their rules", style="dim")
        self._expect(f"the node holds {count(self.stage.node)}", count(self.stage.node) == NOTHING, "it did touch")

    def _add(self) -> None:
        self.teller.step("Three pods get a network")
        for name in PODS:
            if name not in self.stage.pods:
                self.stage.add_pod(name)
            ports = ("--cap-args", PORTS) if name == "web" else ()
            result = json.loads(self._netloom("add", NETWORK, name, *ports))
            self.addresses[name] = tuple(ip["address"].partition("/")[0] for ip in result["ips"])
            self.stage.serve(name, self.stage.pods[name])
            both = len(self.addresses[name]) == 2
            self._expect(f"{name} has {' and '.join(self.addresses[name])}", both, f"{name} has not both families")
        self.stage.serve("outside", self.stage.outside)

    def _talk(self) -> None:
        pods = self.stage.pods
        self.teller.step("Pods talk: with their own addresses among themselves, with the node's to the outside")
        for version, web, api in zip((4, 6), self.addresses["web"], self.addresses["api"], strict=True):
            self.teller.claim(f"api -> web, IPv{version}", partial(ask, pods["api"], web), f"web saw {api}")
        for version, there, node in zip((4, 6), OUTSIDE, NODE, strict=True):
            self.teller.claim(f"job -> outside, IPv{version}", partial(ask, pods["job"], there), f"outside saw {node}")

    def _host_ports(self) -> None:
        stage, web = self.stage, self.stage.pods["web"]
        self.teller.step(f"Host port {HOST_PORT} leads to web, from everywhere")
        for address in NODE:
            words = f"outside -> {_with_port(address)}"
            self.teller.claim(words, partial(ask, stage.outside, address, HOST_PORT), "web saw .*")
        self.teller.claim(
            f"node -> {_with_port('127.0.0.1')}", partial(ask, stage.node, "127.0.0.1", HOST_PORT), "web saw .*"
        )
        for address in NODE:
            words = f"web -> {_with_port(address)}, itself"
            self.teller.claim(words, partial(ask, web, address, HOST_PORT), "web saw .*")

    def _refuse(self) -> None:
        self.teller.step("A second pod wants the same host port: refused, and nothing of it stays")
        before = count(self.stage.node)
        self.stage.add_pod("late")
        error = self._refusal("add", NETWORK, "late", "--cap-args", PORTS)
        self.teller.quote(error)
        self._expect("the error names the port", str(HOST_PORT) in error, "the error does not name the port")
        self._expect(f"before and after: {before}", count(self.stage.node) == before, "the failed ADD left something")
        self.teller.claim("web still answers", partial(ask, self.stage.node, NODE[0], HOST_PORT), "web saw .*")

    def _check(self) -> None:
        stage = self.stage
        self.teller.step("Somebody removes rules by hand: CHECK tells, GC repairs")
        self._netloom("check", NETWORK, "job")
        self.teller.run(
            "nft flush chain inet netloom_masquerade postrouting",
            lambda: flush_by_hand(stage.node, "netloom_masquerade", "postrouting"),
        )
        self.teller.quote(self._refusal("check", NETWORK, "job"))
        self._netloom("gc", NETWORK, "--yes")
        self._netloom("check", NETWORK, "job")
        self.teller.claim(
            "job -> outside, as before", partial(ask, stage.pods["job"], OUTSIDE[0]), f"outside saw {NODE[0]}"
        )

    def _kill(self) -> None:
        stage = self.stage
        self.teller.step("A pod dies without a DEL: GC finds what it left")
        stage.kill_pod("job")
        left = count(stage.node)
        self.teller.say(f"      job is dead; the node holds {left}")
        self.teller.quote(_cut(self._netloom("gc", NETWORK, "--yes"), lines=6))
        now = count(stage.node)
        fewer = now.addresses == left.addresses - 2 and now.elements < left.elements and now.files == left.files - 1
        self._expect(f"the node holds {now}", fewer, f"GC left something of job: {now}")
        self.teller.claim(
            "api -> web, as before", partial(ask, stage.pods["api"], self.addresses["web"][0]), "web saw .*"
        )

    def _delete(self) -> None:
        self.teller.step("DEL, twice: it leaves nothing, and nothing to do is no error")
        for name in ("web", "api", "api"):
            self._netloom("del", NETWORK, name)
        left = count(self.stage.node)
        self._expect(f"the node holds {left} (and the bridge {BRIDGE})", left == NOTHING, f"DEL left {left}")


def _shown(arguments: tuple[str, ...]) -> str:
    """A command as a person would type it, folders left out (they are in the environment)."""
    words = [f"'{word}'" if any(c in word for c in " {;") else word for word in arguments]
    return _cut(" ".join(("netloom", *words)), width=88)


def _with_port(address: str) -> str:
    return f"[{address}]:{HOST_PORT}" if ":" in address else f"{address}:{HOST_PORT}"


def _cut(text: str, *, width: int = 104, lines: int = 0) -> str:
    """Lines short enough for a terminal; with `lines`, the first ones only."""
    found = text.rstrip("\n").splitlines()
    kept = found[:lines] if lines else found
    more = [f"... {len(found) - len(kept)} more lines"] if len(found) > len(kept) else []
    return "\n".join(line if len(line) <= width else line[: width - 4] + " ..." for line in (*kept, *more))


def _end(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Tell the story; returns the exit code."""
    teller = Teller(sys.stdout, os.environ)
    signal.signal(signal.SIGTERM, _end)  # as Ctrl-C: everything is undone on the way out
    started = time.perf_counter()
    try:
        with open_stage() as stage:
            teller.say("netloom gives pods a network. All of this happens in namespaces of its own.\n", style="bold")
            teller.say(DRAWING.rstrip("\n"))
            Story(stage, teller).tell()
    except (StepFailed, CniError, AssertionError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # whoever read us has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        teller.say(f"\n   {teller.paint('red', 'FAILED')} {error}")
        return 1
    except KeyboardInterrupt:
        teller.say("\n   interrupted; nothing is left")
        return 130
    teller.say(
        f"\nAll of it in {_seconds(time.perf_counter() - started)}; nothing is left on this machine.", style="bold"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
