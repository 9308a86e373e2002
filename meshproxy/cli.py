"""The command `meshproxy`: run a proxy, or check a file. All but the parser is imported when it is needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

_EPILOG = """\
examples:
  meshproxy run --config meshproxy.yaml                  until SIGTERM; SIGHUP reads the file again
  meshproxy run --config meshproxy.yaml --hot-restart    in place of the one that runs, without a lost connection
  meshproxy check meshproxy.yaml                         what is wrong with it, by line; 0 if nothing is
  curl 127.0.0.1:15000/                                  what a running proxy shows and takes

conf/meshproxy.yaml has every key with its default, conf/meshproxy-minimal.yaml is the smallest file.

exit codes:
  0  ended as asked          1  it failed: the last line on standard error says why
  2  wrong usage             78  the configuration is refused (EX_CONFIG)
  71 cannot listen (EX_OSERR): the address is another's, or not ours to take
"""

EX_OSERR = 71
EX_CONFIG = 78


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="meshproxy",
        description="A service mesh's sidecar proxy: HTTP/1.1, HTTP/2, gRPC, WebSocket and TCP.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="carry traffic until SIGTERM, which lets requests end")
    run.add_argument("--config", "-c", required=True, metavar="FILE", help="the YAML file")
    run.add_argument(
        "--hot-restart",
        action="store_true",
        help="take the listening sockets over from the process that runs FILE; start plainly if there is none",
    )
    check = commands.add_parser("check", help="say what is wrong with a configuration, without running it")
    check.add_argument("file", metavar="FILE")
    options = parser.parse_args(arguments)
    return _run(options.config, hot_restart=options.hot_restart) if options.command == "run" else _check(options.file)


def _check(path: str) -> int:
    from meshproxy.config_file import ConfigFault, load

    try:
        config = load(path)
    except ConfigFault as fault:
        print(fault, file=sys.stderr)
        return EX_CONFIG
    routes = sum(len(listener.routes) for listener in config.listeners)
    print(f"{path}: fine ({len(config.listeners)} listeners, {routes} routes, {len(config.clusters)} clusters)")
    return 0


def _run(path: str, *, hot_restart: bool) -> int:
    from meshproxy.config_file import ConfigFault
    from meshproxy.listening import CannotListen
    from meshproxy.run import run

    try:
        return run(path, hot_restart=hot_restart)
    except ConfigFault as fault:
        print(fault, file=sys.stderr)
        return EX_CONFIG
    except CannotListen as error:
        print(f"meshproxy: {error}. Is another proxy running? --hot-restart takes over from it.", file=sys.stderr)
        return EX_OSERR
    except OSError as error:  # the access log's file
        print(f"meshproxy: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
