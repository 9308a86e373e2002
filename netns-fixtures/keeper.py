"""A topology kept up in the background, between `up` and `down`.

The keeper is a process that brings the topology up, says so, and waits for SIGTERM; the holders live as long as it.
A state file NAME.json tells later commands its pid and its start time, so that another process with that pid is never
taken for it. The program `python keeper.py TOPOLOGY` is started by start() alone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from entering import NamespaceError
from topology import Topology, TopologyError

# Ending hosts takes milliseconds; this is for processes in them that resist SIGTERM.
STOP_TIMEOUT_S = 60.0


class KeeperError(Exception):
    """A topology could not be brought up or down in the background; the text says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A topology that is up: the keeper and, of each host, the holder's pid and how to enter."""

    keeper: int
    started: int
    enter: dict[str, str]


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc_pid_stat(5), field 22; counted after the command's name, which may hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def find(name: str, states: Path) -> Kept | None:
    """The topology `name` if it is up; a state file whose keeper is gone counts as down."""
    try:
        kept = Kept(**json.loads((states / f"{name}.json").read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise KeeperError(f"{states / name}.json is damaged ({error}); remove it") from error
    return kept if start_time(kept.keeper) == kept.started else None


def start(source: str, states: Path, *, in_userns: bool = False) -> Kept:
    """Bring a topology up in the background. Raises KeeperError when it is up already or fails.

    `in_userns` says that who enters a host must first enter our user namespace.
    """
    topology = Topology.load(source)
    if find(topology.name, states) is not None:
        raise KeeperError(f"{topology.name} is up already; take it down first")
    try:
        states.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KeeperError(f"{error}; choose another directory with --state-directory") from error
    keeper = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), source],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it outlives us: holding our outputs open would hang whoever reads them
        start_new_session=True,
        text=True,
    )
    assert keeper.stdout is not None
    with keeper.stdout:
        answer = keeper.stdout.readline()
    if not answer.startswith("{"):
        keeper.wait()
        raise KeeperError(
            answer.strip() or f"the keeper ended with code {keeper.returncode}; see: run {source} -- true"
        )
    started = start_time(keeper.pid)
    if started is None:
        raise KeeperError("the keeper ended at once")
    entering = ["--user", "--preserve-credentials"] if in_userns else []
    enter = {host: " ".join([argv[0], *entering, *argv[1:]]) for host, argv in json.loads(answer).items()}
    kept = Kept(keeper=keeper.pid, started=started, enter=enter)
    (states / f"{topology.name}.json").write_text(json.dumps(asdict(kept)))
    return kept


def stop(name: str, states: Path) -> None:
    """Take a topology down and wait for its end. Raises KeeperError when it is not up."""
    kept = find(name, states)
    if kept is None:
        (states / f"{name}.json").unlink(missing_ok=True)
        raise KeeperError(f"{name} is not up")
    handle = os.pidfd_open(kept.keeper)
    try:
        if start_time(kept.keeper) == kept.started:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if not select.select([handle], [], [], STOP_TIMEOUT_S)[0]:
                raise KeeperError(f"{name}: the keeper {kept.keeper} did not end within {STOP_TIMEOUT_S:.0f} s")
    finally:
        os.close(handle)
    (states / f"{name}.json").unlink(missing_ok=True)


def main(source: str) -> int:
    """Keep a topology up until a signal; one line on standard output says `{host: how to enter}` or what failed."""
    ends = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        network = Topology.load(source).up()
    except (TopologyError, NamespaceError, OSError) as error:
        print(error, flush=True)
        return 1
    with network:
        print(json.dumps({name: host.enter_argv for name, host in network.items()}), flush=True)
        signal.sigwait(ends)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
