"""The command `netloom`: installs the plugins, and does by hand what a container runtime does.

Reads arguments, calls runtime.py or install.py, prints. Standard output carries results, standard error everything
else. Exit codes: 0 done, 1 failed, 2 used wrongly.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping

from . import __version__
from .attachments import DEFAULT_CACHE_DIR, Attachment, Cached, ResultCache
from .conflist import DEFAULT_CONF_DIR, NetworkList, load
from .errors import CniError, Code, from_os_error
from .handover import SOCKET_PATH
from .install import DEFAULT_BIN_DIR, Outcome, compile_modules, install, parse_plugins, uninstall
from .protocol import check_ifname, check_name, parse_args
from .results import LATEST, VERSIONS
from .runtime import Runtime, as_added
from .sweep import plan_sweep

_NETNS_DIR = "/run/netns"  # where `ip netns add` puts names

_ABOUT = "CNI plugins: install them, and call them by hand."

_EXAMPLES = """\
examples:
  netloom install                                   plugins into /opt/cni/bin
  ip netns add blue && netloom add mynet blue       attach a namespace, print the result
  netloom add --explain mynet blue                  what that would do; touches nothing
  netloom check mynet blue
  netloom del mynet blue
  netloom status mynet                              could a pod be added now?
  netloom gc mynet                                  remove what belongs to no live namespace
"""

_HELP = {
    "install": (
        "write the plugins' executables",
        """\
Writes one executable for each plugin, each at once (never half a file). A file that is not netloom's is kept, and the
exit code is 1, unless --force is given.

examples:
  netloom install
  netloom install --bin-dir /usr/local/lib/cni --plugins bridge,host-local,portmap
""",
    ),
    "uninstall": (
        "remove the plugins' executables",
        """\
Removes netloom's executables, of any version, and nothing else.

example:
  netloom uninstall --bin-dir /opt/cni/bin
""",
    ),
    "add": (
        "attach a namespace to a network",
        """\
Runs ADD of each plugin in the network's list and prints the result. Where a later plugin fails, the earlier ones are
undone. --explain prints each plugin's plan instead, and touches nothing.

examples:
  netloom add mynet blue
  netloom add mynet /proc/4711/ns/net --ifname net1 --args 'IgnoreUnknown=1;IP=10.1.0.7'
  netloom add mynet blue --cap-args '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'
  netloom add --explain mynet blue
""",
    ),
    "del": (
        "detach a namespace from a network",
        """\
Runs DEL of each plugin, last first, with the configuration and the result that ADD left in the cache. It is no error
if the namespace is gone, or if there is nothing to detach.

examples:
  netloom del mynet blue
  netloom del mynet --container-id netloom-0123456789abcdef0123
""",
    ),
    "check": (
        "ask whether an attachment is as ADD left it",
        """\
Runs CHECK of each plugin; names the first thing that is missing.

example:
  netloom check mynet blue
""",
    ),
    "gc": (
        "remove what belongs to no live namespace",
        """\
Live are the attachments in the cache (of every runtime that uses --cache-dir) whose namespace still exists. Shows what
stays and what goes, and asks. No pod may be added to the network meanwhile.

examples:
  netloom gc mynet
  netloom gc mynet --yes
""",
    ),
    "status": (
        "ask whether a pod could be added",
        """\
Runs STATUS of each plugin (cniVersion 1.1.0 and later).

example:
  netloom status mynet
""",
    ),
    "agent": (
        "run the node agent",
        """\
Answers the calls of the plugins' executables over a unix socket, several times faster than each could alone. Without an
agent they run by themselves, with the same results. Ends on SIGTERM, when the calls in flight are done; logs one JSON
line a call to standard error.

examples:
  netloom agent
  netloom agent --metrics 127.0.0.1:9469            Prometheus metrics on /metrics
""",
    ),
    "version": ("print versions", "example:\n  netloom version\n"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser(os.environ).parse_args(argv)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except CniError as error:
        return _report(error, options)
    except OSError as error:
        return _report(from_os_error(error, options.command), options)
    except KeyboardInterrupt:
        return 130


def _report(error: CniError, options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(error.to_json(LATEST), indent=2))
    else:
        sys.stderr.write(f"netloom {options.command}: {error.msg}\n")
        if error.details:
            sys.stderr.write(f"  {error.details}\n")
    return 1


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("netloom", description=_ABOUT, epilog=_EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs = {
        "install": _install,
        "uninstall": _uninstall,
        "add": _add,
        "del": _del,
        "check": _check,
        "gc": _gc,
        "status": _status,
        "agent": _agent,
        "version": _version,
    }
    for name, run in runs.items():
        short, long = _HELP[name]
        command = commands.add_parser(name, help=short, description=short, epilog=long, formatter_class=raw)
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print errors as CNI error objects")
        if name in ("install", "uninstall"):
            command.add_argument("--bin-dir", default=DEFAULT_BIN_DIR, help="the folder (default: %(default)s)")
        elif name == "agent":
            command.add_argument("--socket", default=SOCKET_PATH, metavar="PATH", help="default: %(default)s")
            command.add_argument("--metrics", default="", metavar="HOST:PORT", help="serve metrics (default: no)")
        elif name != "version":
            _add_network_options(command, environ)
        if name in ("add", "del", "check"):
            _add_attachment_options(command, name)
        if name == "install":
            command.add_argument("--plugins", default="", metavar="A,B", help="only these (default: all)")
            command.add_argument("--force", action="store_true", help="replace files that are not netloom's, too")
        if name == "add":
            command.add_argument("--explain", action="store_true", help="print the plan and touch nothing")
        if name == "gc":
            command.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def _add_network_options(command: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    command.add_argument("network", metavar="NET", help="the network's name")
    for option, default, words in (
        ("--conf-dir", environ.get("NETCONFPATH") or DEFAULT_CONF_DIR, "network configurations; or NETCONFPATH"),
        ("--bin-dir", environ.get("CNI_PATH") or DEFAULT_BIN_DIR, "plugins, folders separated by ':'; or CNI_PATH"),
        ("--cache-dir", DEFAULT_CACHE_DIR, "cached results"),
    ):
        command.add_argument(option, default=default, metavar="DIR", help=f"{words} (default: {default})")


def _add_attachment_options(command: argparse.ArgumentParser, name: str) -> None:
    optional = name == "del"
    command.add_argument(
        "netns", metavar="NETNS", nargs="?" if optional else None, help="a name in /run/netns, or a path"
    )
    command.add_argument("--ifname", default="eth0", help="the interface in the namespace (default: %(default)s)")
    command.add_argument("--container-id", metavar="ID", help="default: derived from the namespace's path")
    command.add_argument("--args", metavar="K=V;K=V", help="CNI_ARGS")
    command.add_argument("--cap-args", metavar="JSON", help="capability arguments: an object by capability")


def netns_path(name: str) -> str:
    """A namespace's path, from a path or a name."""
    return os.path.abspath(name) if "/" in name else os.path.join(_NETNS_DIR, name)


def container_id_of(path: str) -> str:
    """The container id for a namespace that no runtime named: equal for equal paths, even once the namespace is gone.
    /var/run is a link to /run: the folder is resolved, the last part is not (in /proc it leads to no path)."""
    folder, name = os.path.split(path)
    resolved = os.path.join(os.path.realpath(folder), name)
    return "netloom-" + hashlib.sha512(os.fsencode(resolved)).hexdigest()[:20]


def _attachment(options: argparse.Namespace) -> Attachment:
    """Raises CniError 4."""
    path = netns_path(options.netns) if options.netns else ""
    container_id = options.container_id or (container_id_of(path) if path else "")
    if not container_id:
        raise CniError(Code.INVALID_ENVIRONMENT, "give NETNS or --container-id")
    check_name("--container-id", container_id)
    check_ifname(options.ifname)
    args = parse_args(options.args or "")
    return Attachment(
        options.network, container_id, options.ifname, path, tuple(args.items()), _cap_args(options.cap_args or "{}")
    )


def _cap_args(text: str) -> Mapping[str, object]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CniError(Code.INVALID_ENVIRONMENT, f"--cap-args is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise CniError(Code.INVALID_ENVIRONMENT, "--cap-args must be a JSON object, by capability")
    return body


def _runtime(options: argparse.Namespace) -> Runtime:
    folders = tuple(folder for folder in options.bin_dir.split(os.pathsep) if folder)
    return Runtime(folders, ResultCache(options.cache_dir), dict(os.environ))


def _remembered(options: argparse.Namespace, runtime: Runtime) -> tuple[NetworkList, Attachment]:
    """The list and the arguments that ADD had, where the cache has them, else those of now. Raises CniError."""
    asked = _attachment(options)
    cached = runtime.cache.read(asked)
    try:
        now: NetworkList | None = load(options.conf_dir, options.network)
    except CniError:
        if as_added(None, cached) is None:
            raise
        now = None
    network = as_added(now, cached)
    assert network is not None
    return network, _with_remembered_arguments(asked, cached)


def _with_remembered_arguments(asked: Attachment, cached: Cached | None) -> Attachment:
    if cached is None:
        return asked
    args = asked.args or cached.attachment.args
    capability_args = asked.capability_args or cached.attachment.capability_args
    return Attachment(asked.network, asked.container_id, asked.ifname, asked.netns, args, capability_args)


def _add(options: argparse.Namespace) -> int:
    runtime, attachment = _runtime(options), _attachment(options)
    network = load(options.conf_dir, options.network)
    if options.explain:
        sys.stdout.write(runtime.explain(network, attachment))
        return 0
    print(json.dumps(runtime.add(network, attachment), indent=2))
    return 0


def _del(options: argparse.Namespace) -> int:
    runtime = _runtime(options)
    runtime.delete(*_remembered(options, runtime))
    return 0


def _check(options: argparse.Namespace) -> int:
    runtime = _runtime(options)
    if not runtime.check(*_remembered(options, runtime)):
        sys.stderr.write("netloom check: nothing was asked: the configuration says disableCheck\n")
    return 0


def _status(options: argparse.Namespace) -> int:
    network = load(options.conf_dir, options.network)
    if _runtime(options).status(network):
        print(f"{network.name}: ready")
    else:
        sys.stderr.write(f"netloom status: nothing was asked: cniVersion {network.cni_version} has no STATUS\n")
    return 0


def _gc(options: argparse.Namespace) -> int:
    runtime = _runtime(options)
    network = load(options.conf_dir, options.network)
    if network.disable_gc:
        sys.stderr.write("netloom gc: nothing was done: the configuration says disableGC\n")
        return 0
    sweep = plan_sweep(network, runtime.cache.all(network.name))
    print(sweep.describe())
    if not options.yes:
        if not sys.stdin.isatty():
            sys.stderr.write("netloom gc: nothing was removed: --yes is needed where nobody can be asked\n")
            return 2
        if input("Remove? No pod may be added to this network meanwhile. [y/N] ").strip().lower() not in ("y", "yes"):
            sys.stderr.write("netloom gc: nothing was removed\n")
            return 1
        sweep = plan_sweep(network, runtime.cache.all(network.name))  # the answer may have taken a while
    runtime.gc(network, sweep.keep)
    return 0


def _install(options: argparse.Namespace) -> int:
    outcomes = install(options.bin_dir, parse_plugins(options.plugins), force=options.force)
    if not compile_modules():
        sys.stderr.write("netloom install: no byte code could be written: each call will take longer\n")
    return _print_outcomes(outcomes)


def _uninstall(options: argparse.Namespace) -> int:
    return _print_outcomes(uninstall(options.bin_dir))


def _print_outcomes(outcomes: list[Outcome]) -> int:
    for outcome in outcomes:
        (sys.stdout if outcome.ok else sys.stderr).write(f"{outcome.path}: {outcome.words}\n")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def _versions() -> str:
    return f"netloom {__version__}\nCNI {', '.join(VERSIONS)}"


def _agent(options: argparse.Namespace) -> int:
    from . import lean

    lean.install()
    from . import agent_process  # asyncio and the metrics library: not for the other commands

    return agent_process.run(options.socket, options.metrics)


def _version(_: argparse.Namespace) -> int:
    print(_versions())
    return 0


if __name__ == "__main__":
    sys.exit(main())
