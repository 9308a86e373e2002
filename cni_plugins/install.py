"""Installing the plugins' executables into a folder that runtimes search, and removing them again.

Each is written to a temporary file and renamed, so that a runtime never executes half of one. A file that is not ours
stays unless asked for by `force`. Read next: script.py, the text that is written.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from . import __version__, registry
from .errors import CniError, Code, from_os_error
from .script import Program, read_program, render

DEFAULT_BIN_DIR = "/opt/cni/bin"  # where containerd, CRI-O, podman and the kubelet look first


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one file: `ok` tells whether it is as the caller wished."""

    path: str
    words: str
    ok: bool = True


def parse_plugins(text: str) -> tuple[str, ...]:
    """`a,b` as plugin names; empty means all. Raises CniError 7."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in registry.MODULES:
            raise CniError(
                Code.INVALID_CONFIG, f"netloom has no plugin {name!r}", "there are " + ", ".join(registry.MODULES)
            )
    return names or tuple(registry.MODULES)


def library_folders() -> tuple[str, ...]:
    """The folders that the plugins' imports come from: our source, then pyroute2's. Raises CniError 100."""
    from importlib.util import find_spec

    spec = find_spec("pyroute2")
    if spec is None or not spec.submodule_search_locations:
        raise CniError(Code.INTERNAL, "the library pyroute2 is missing", "install netloom with its dependencies")
    package = os.path.realpath(next(iter(spec.submodule_search_locations)))
    return tuple(dict.fromkeys((registry.SOURCE, os.path.dirname(package))))


def install(
    bin_dir: str, plugins: Sequence[str], *, force: bool = False, python: str = sys.executable
) -> list[Outcome]:
    """Write one executable for each plugin. Raises CniError 5 or 100."""
    folders = library_folders()
    bin_dir = os.path.abspath(bin_dir)
    try:
        os.makedirs(bin_dir, 0o755, exist_ok=True)
        return [_install_one(bin_dir, Program(name, __version__, python, folders), force=force) for name in plugins]
    except OSError as error:
        raise from_os_error(error, "install") from error


def _install_one(bin_dir: str, program: Program, *, force: bool) -> Outcome:
    path = os.path.join(bin_dir, program.plugin)
    content = render(program)
    found = _look(path)
    if found == "folder":
        return Outcome(path, "kept: it is a folder", ok=False)
    if found == "foreign" and not force:
        return Outcome(path, "kept: it is not netloom's (--force replaces it)", ok=False)
    if found == "ours" and _is_up_to_date(path, content):
        return Outcome(path, "up to date")
    _write(path, content)
    return Outcome(path, {"": "installed", "ours": "updated", "foreign": "replaced what was not netloom's"}[found])


def uninstall(bin_dir: str) -> list[Outcome]:
    """Remove our executables, of any version, from a folder. Raises CniError 5."""
    outcomes = []
    bin_dir = os.path.abspath(bin_dir)
    try:
        for name in sorted(os.listdir(bin_dir)):
            path = os.path.join(bin_dir, name)
            if _look(path) == "ours":
                os.unlink(path)
                outcomes.append(Outcome(path, "removed"))
    except FileNotFoundError:
        return outcomes  # no folder, nothing to remove
    except OSError as error:
        raise from_os_error(error, "uninstall") from error
    return outcomes


def compile_modules() -> bool:
    """Write byte code for all that the executables import, so that no call compiles. False: a folder is read-only."""
    import compileall

    source, *_ = folders = library_folders()
    packages = [os.path.join(source, name) for name in ("cni_plugins", "ipam")]
    packages.append(os.path.join(folders[-1], "pyroute2"))
    results = [compileall.compile_dir(package, quiet=2) for package in packages]
    return all(results)


def _look(path: str) -> str:
    """What is there: nothing (empty), 'ours', 'foreign', or 'folder'. A link counts as what it leads to."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            return "folder"
        return "ours" if stat.S_ISREG(os.stat(path).st_mode) and read_program(path) else "foreign"
    except FileNotFoundError:
        return "foreign" if os.path.islink(path) else ""


def _is_up_to_date(path: str, content: bytes) -> bool:
    with open(path, "rb") as file:
        return not os.path.islink(path) and os.stat(path).st_mode & 0o777 == 0o755 and file.read() == content


def _write(path: str, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path))
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o755)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
