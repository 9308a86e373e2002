"""Foreign plugins for tests: small shell programs that write down how they were called and answer what the test says.

They are executed as any plugin is, so nothing of ours is faked. Pure calls of our own handlers start from `call_of`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cni_plugins.protocol import Call, parse_call

REFERENCE = Path("/usr/lib/cni")  # Debian's containernetworking-plugins
VERSION_ANSWER = '{"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}'

_SCRIPT = """\
#!/bin/sh
printf '%s\\n' "$CNI_COMMAND {name}" >> '{calls}/log'
/bin/cat > '{calls}/{name}.'"$CNI_COMMAND.json"
/usr/bin/env -0 > '{calls}/{name}.'"$CNI_COMMAND.env"
case $CNI_COMMAND in
{cases}
esac
"""


class StandIns:
    """A folder of stand-in plugins (`bin`), and the record of their calls."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.bin.mkdir(parents=True)
        self.calls.mkdir()

    def write(self, name: str, answers: Mapping[str, tuple[str, int]] | None = None) -> Path:
        """A plugin that prints and exits as `answers` says by verb; silent success for other verbs."""
        given = {"VERSION": (VERSION_ANSWER, 0), **(answers or {})}
        cases = "\n".join(
            f"{verb}) printf '%s' '{stdout}'; exit {exit_code} ;;" for verb, (stdout, exit_code) in given.items()
        )
        return self.write_text(name, _SCRIPT.format(name=name, calls=self.calls, cases=cases))

    def write_text(self, name: str, text: str) -> Path:
        """Any program."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    @property
    def log(self) -> list[str]:
        """The calls so far, as `VERB name`, without VERSION."""
        log = self.calls / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if not line.startswith("VERSION")]

    def stdin(self, name: str, verb: str) -> dict[str, object]:
        """What the last such call was given on standard input."""
        body = json.loads((self.calls / f"{name}.{verb}.json").read_bytes())
        assert isinstance(body, dict)
        return body

    def environ(self, name: str, verb: str) -> dict[str, str]:
        """The environment of the last such call."""
        pairs = (self.calls / f"{name}.{verb}.env").read_bytes().decode().split("\0")
        return dict(pair.split("=", 1) for pair in pairs if pair)


def result_text(address: str = "10.1.0.5/24", version: str = "1.1.0") -> str:
    """An ADD's answer with one address."""
    return json.dumps({"cniVersion": version, "ips": [{"address": address}], "dns": {}})


def error_text(code: int, msg: str, details: str = "") -> str:
    """An error object."""
    return json.dumps({"cniVersion": "1.1.0", "code": code, "msg": msg, "details": details})


def environ_of(command: str, **more: str) -> dict[str, str]:
    """The environment of a well-formed call."""
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "pod-1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/nobody",
        "CNI_PATH": "/opt/cni/bin",
        **more,
    }


def config_of(**keys: object) -> dict[str, object]:
    """A well-formed configuration."""
    return {"cniVersion": "1.1.0", "name": "net", "type": "bridge", **keys}


def call_of(command: str, config: Mapping[str, object], **environ: str) -> Call:
    """A call as skel.py makes it, without a namespace."""
    return parse_call(environ_of(command, **environ), json.dumps(config).encode(), "bridge")
