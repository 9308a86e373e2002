"""A foreign IPAM plugin that stops in the middle of its ADD until the test lets it go on, and counts its calls."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cni_plugins.stand_in import VERSION_ANSWER, result_text

_SCRIPT = """\
#!/bin/sh
test "$CNI_COMMAND" = VERSION && {{ printf '%s' '{version}'; exit 0; }}
printf '%s\\n' "$CNI_COMMAND $CNI_CONTAINERID" >> '{folder}/log'
test "$CNI_COMMAND" = ADD || exit 0
read -r go < '{folder}/gate'
printf '%s\\n' "done $CNI_CONTAINERID" >> '{folder}/log'
printf '%s' '{result}'
"""


class Gate:
    """The plugin `gate` in the folder `bin`. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "gate-bin"
        self._folder = folder
        self.bin.mkdir()
        os.mkfifo(folder / "gate")
        self._fifo = os.open(folder / "gate", os.O_RDWR | os.O_CLOEXEC)
        path = self.bin / "gate"
        path.write_text(_SCRIPT.format(folder=folder, version=VERSION_ANSWER, result=result_text()))
        path.chmod(0o755)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fifo)

    def open(self, *, times: int = 1) -> None:
        """Let so many ADDs pass, those that wait and those to come."""
        os.write(self._fifo, b"\n" * times)

    @property
    def log(self) -> list[str]:
        """`ADD ID`, `done ID`, `DEL ID`, in order."""
        path = self._folder / "log"
        return path.read_text().splitlines() if path.exists() else []
