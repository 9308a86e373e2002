"""`python netns-fixtures up|down|list|run`: the topologies of the tests, played by hand.

Reads the command line and prints; keeper.py holds what stays up between two commands.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import keeper
from entering import NamespaceError, require_root_or_userns
from keeper import KeeperError
from topology import Topology, TopologyError, shipped_names

EXIT_FAILED = 1

EXAMPLES = """\
examples:
  python netns-fixtures list                              what there is, drawn, and what is up
  python netns-fixtures up two-pods                       bring it up and show how to enter its hosts
  python netns-fixtures down two-pods
  python netns-fixtures run node outside -- ip address    one command on one host, then all is undone
  python netns-fixtures run ./my.toml -- sh               a topology of your own, its first host
"""


def default_states() -> Path:
    """Where we note what is up: of this user, and gone after a reboot."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/run") / "netns-fixtures"


def build_parser() -> argparse.ArgumentParser:
    """The command line, without what follows `--`."""
    parser = argparse.ArgumentParser(
        prog="netns-fixtures",
        description="Small networks of Linux network namespaces, for tests and for trying things by hand.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--state-directory",
        type=Path,
        default=default_states(),
        metavar="DIR",
        help="where to note what is up (default: %(default)s)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    known = "one of: " + ", ".join(shipped_names())
    up = commands.add_parser("up", help="bring a topology up and leave it up")
    up.add_argument("topology", help=f"{known}; or the path of a .toml file")
    down = commands.add_parser("down", help="take a topology down, with every process in it")
    down.add_argument("topology", help=known)
    commands.add_parser("list", help="show all topologies and what is up")
    run = commands.add_parser(
        "run",
        help="bring a topology up, run a command in it, take it down",
        usage="netns-fixtures run TOPOLOGY [HOST] -- COMMAND [ARGUMENT...]",
    )
    run.add_argument("topology", help=f"{known}; or the path of a .toml file")
    run.add_argument("host", nargs="?", help="where to run the command (default: the first host of the file)")
    return parser


def up(source: str, states: Path) -> None:
    """`up`: the hosts and how to enter each."""
    in_userns = require_root_or_userns()
    kept = keeper.start(source, states, in_userns=in_userns)
    show_up(Topology.load(source).name, kept)


def show_up(name: str, kept: keeper.Kept) -> None:
    """One line per host, ready for copying into a shell."""
    print(f"{name} is up; enter a host with")
    width = max(map(len, kept.enter))
    for host, line in kept.enter.items():
        print(f"  {host:{width}}  {line}")


def show_all(states: Path) -> None:
    """`list`: each topology with its drawing, and how to enter those that are up."""
    extra = {path.stem for path in states.glob("*.json")} if states.is_dir() else set()
    for name in sorted(extra | set(shipped_names())):
        kept = keeper.find(name, states)
        if name in shipped_names():
            print(f"{name}\n{Topology.load(name).drawing}\n")
        if kept is not None:
            show_up(name, kept)
            print()


def run(source: str, host: str | None, command: list[str]) -> int:
    """`run`: the exit code of the command, or 128 + the signal that ended it."""
    topology = Topology.load(source)
    names = [known.name for known in topology.hosts]
    if host is not None and host not in names:
        raise TopologyError(f"{topology.name} has no host {host!r}; it has: {', '.join(names)}")
    require_root_or_userns()
    with topology.up() as network:
        process = network[host or names[0]].popen(*command)
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # the command got it too, and decides
                continue
    return code if code >= 0 else 128 - code


def main(arguments: list[str]) -> int:
    """Run one command; failures are one line on standard error."""
    parser = build_parser()
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:split])
    command = arguments[split + 1 :]
    if (options.command == "run") != bool(command):
        parser.error("run needs a command after `--`" if options.command == "run" else "`--` is for run alone")
    try:
        match options.command:
            case "up":
                up(options.topology, options.state_directory)
            case "down":
                keeper.stop(options.topology, options.state_directory)
            case "list":
                show_all(options.state_directory)
            case "run":
                return run(options.topology, options.host, command)
    except (TopologyError, NamespaceError, KeeperError, OSError) as error:
        print(f"netns-fixtures: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
