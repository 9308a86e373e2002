"""Installed plugins on a test host, called as a runtime calls them: executed, and told on DEL what ADD had answered.

`Plugins` is one folder of executables (ours, or the reference's), one host, one network configuration. It refuses to
judge: tests read the `Answer`. For one verb of one plugin, plugin.py is enough.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from namespaces import Namespace, Pod

REFERENCE = Path("/usr/lib/cni")  # Debian's containernetworking-plugins
# The reference calls iptables by its name; a plugin of ours needs no PATH.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one executed verb said."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def body(self) -> dict[str, Any]:
        """Standard output as a JSON object; empty where nothing was said."""
        body = json.loads(self.stdout or "{}")
        assert isinstance(body, dict)
        return body

    @property
    def code(self) -> int:
        """The error object's code; 0 for success."""
        if self.exit_code == 0:
            return 0
        code = self.body["code"]
        assert isinstance(code, int)
        return code

    @property
    def words(self) -> str:
        """The error object's message and details."""
        return f"{self.body.get('msg', '')}: {self.body.get('details', '')}"


class Plugins:
    """The plugins of one folder on one host. Attachments are named by pod: its name is the container id."""

    def __init__(
        self, host: Namespace, folder: Path, config: Mapping[str, object], *, path: Iterable[Path] = ()
    ) -> None:
        self.host = host
        self.folder = folder
        self.config = dict(config)
        self.path = tuple(path) or (folder,)
        self.results: dict[tuple[str, str], dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"<Plugins {self.folder} on {self.host.name}: {self.config.get('name')} {sorted(self.results)}>"

    def other(self, **keys: object) -> Plugins:
        """The same folder and host, another configuration: these keys replaced, None removes one."""
        config = {key: value for key, value in {**self.config, **keys}.items() if value is not None}
        return Plugins(self.host, self.folder, config, path=self.path)

    def of(self, folder: Path) -> Plugins:
        """The executables of another folder for the same network, which know what these answered."""
        taken = Plugins(self.host, folder, self.config)
        taken.results = self.results
        return taken

    def call(
        self,
        verb: str,
        pod: Pod | str = "",
        *,
        ifname: str = "eth0",
        netns: str | None = None,
        stdin: str | bytes | None = None,
        environ: Mapping[str, str | None] | None = None,
        **keys: Any,
    ) -> Answer:
        """Execute one verb. A pod given by its name alone is one whose namespace is gone. `environ` adds to the
        environment (None removes), `keys` to the configuration."""
        name = pod if isinstance(pod, str) else pod.name
        path = pod.path if isinstance(pod, Pod) else ""
        env = {
            "PATH": _PATH,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": path if netns is None else netns,
            "CNI_IFNAME": ifname,
            "CNI_PATH": ":".join(map(str, self.path)),
            **(environ or {}),
        }
        if stdin is None:
            stdin = json.dumps({key: value for key, value in {**self.config, **keys}.items() if value is not None})
        program = os.path.join(self.folder, str(self.config["type"]))
        given = {key: value for key, value in env.items() if value is not None}
        done = self.host.run(program, input=stdin, env=given, check=False, timeout=_TIMEOUT_S)
        return Answer(done.returncode, done.stdout, done.stderr)

    def try_add(self, pod: Pod, *, ifname: str = "eth0", **more: Any) -> Answer:
        """ADD; a result is remembered."""
        answer = self.call("ADD", pod, ifname=ifname, **more)
        if answer.exit_code == 0:
            self.results[pod.name, ifname] = answer.body
        return answer

    def add(self, pod: Pod, *, ifname: str = "eth0", **more: Any) -> dict[str, Any]:
        """ADD, which must succeed; returns the result."""
        answer = self.try_add(pod, ifname=ifname, **more)
        assert answer.exit_code == 0, answer
        return answer.body

    def try_check(self, pod: Pod, *, ifname: str = "eth0", **more: Any) -> Answer:
        """CHECK with what ADD answered."""
        return self.call("CHECK", pod, ifname=ifname, **{"prevResult": self.results[pod.name, ifname], **more})

    def check(self, pod: Pod, *, ifname: str = "eth0", **more: Any) -> None:
        """CHECK, which must succeed, silently."""
        answer = self.try_check(pod, ifname=ifname, **more)
        assert (answer.exit_code, answer.stdout) == (0, ""), answer

    def try_delete(self, pod: Pod | str, *, ifname: str = "eth0", **more: Any) -> Answer:
        """DEL with what ADD answered."""
        name = pod if isinstance(pod, str) else pod.name
        return self.call("DEL", pod, ifname=ifname, **{"prevResult": self.results.get((name, ifname)), **more})

    def delete(self, pod: Pod | str, *, ifname: str = "eth0", **more: Any) -> None:
        """DEL, which must succeed, silently."""
        answer = self.try_delete(pod, ifname=ifname, **more)
        assert (answer.exit_code, answer.stdout) == (0, ""), answer

    def gc(self, valid: Iterable[Pod | str], *, ifname: str = "eth0", **more: Any) -> Answer:
        """GC that keeps the attachments of these pods."""
        names = [pod if isinstance(pod, str) else pod.name for pod in valid]
        listed = [{"containerID": name, "ifname": ifname} for name in names]
        return self.call("GC", **{"cni.dev/valid-attachments": listed, **more})

    def status(self, **more: Any) -> Answer:
        """STATUS."""
        return self.call("STATUS", **more)


def together(calls: Iterable[Callable[[], Answer]], *, at_once: int = 16) -> list[Answer]:
    """Run calls in parallel; answers in the order of the calls."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda call: call(), calls))


def addresses_of(result: Mapping[str, Any]) -> list[str]:
    """The pod's addresses without prefix length."""
    return [str(ip["address"]).partition("/")[0] for ip in result["ips"]]
