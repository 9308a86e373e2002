"""The law of the source tree: who may import whom, how long a file may be, what it may be called.

Reads the files as they are, without importing them. Each rule is a constant here; to change one, change it here, with
the reason, in the commit that needs it. What a running plugin loads is another test's matter: this one sees text.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What netloom installs, and what only tests it.
PRODUCT = ("cni_plugins", "ipam", "meshproxy")
TEST_SIDE = ("tests", "netns-fixtures")
TOP_LEVEL_FOLDERS = {*PRODUCT, *TEST_SIDE, "conf"}
# Made by `make`, by packaging and by Python, never committed.
GENERATED_FOLDERS = {"build", "dist", "netloom.egg-info", "__pycache__"}

# Two halves, usable apart: neither may need the other to be installed.
HALVES = (("cni_plugins", "ipam"), ("meshproxy",))

# Importing pyroute2 costs 50 to 150 ms and it speaks raw netlink attributes: these wrap it, all else takes values.
PYROUTE2_MODULES = {
    "cni_plugins/conntrack.py",
    "cni_plugins/netlink.py",
    "cni_plugins/nft_messages.py",
    "cni_plugins/qdiscs.py",
}

# A started process costs more than the whole job of a plugin. CNI demands it for IPAM delegates; the demo is a runtime.
PROCESS_STARTING = ("subprocess", "multiprocessing", "pty")
PROCESS_STARTERS = {"cni_plugins/delegate.py"}
PROCESS_STARTER_PREFIX = "cni_plugins/demo"

# Bytes in, events out. What waits, connects or tells the time belongs to the shell around it.
SANS_IO_FOLDER = "meshproxy/wire/"
IO_MODULES = ("asyncio", "selectors", "socket", "ssl", "time", "uvloop")

# scapy alone adds 80 MB to a process.
TEST_ONLY_MODULES = ("hypothesis", "pytest", "pytest_netns", "scapy", "tests")

# Aim at 300, talk at 400, split by 500.
MAX_LINES = 500

# A name that says nothing collects everything.
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc"}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module name, dotted and absolute, with the line that asks for it."""

    module: str
    line: int

    def is_within(self, packages: Iterable[str]) -> bool:
        return any(self.module == package or self.module.startswith(package + ".") for package in packages)


def is_source(path: Path) -> bool:
    return not any(part in GENERATED_FOLDERS or part.startswith(".") for part in path.relative_to(ROOT).parts)


@cache
def python_files() -> tuple[Path, ...]:
    """Every Python file of the tree, product and test side, in a stable order."""
    folders = sorted(TOP_LEVEL_FOLDERS)
    return tuple(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if is_source(path))


@cache
def script_files() -> tuple[Path, ...]:
    """Every file without the .py ending that starts with `#!`: launchers and the scripts beside the tests."""
    folders = [*sorted(TOP_LEVEL_FOLDERS), ".ci"]
    found = []
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*"))):
        if path.suffix != ".py" and path.is_file() and not GENERATED_FOLDERS.intersection(path.parts):
            with path.open("rb") as file:
                if file.read(2) == b"#!":
                    found.append(path)
    return tuple(found)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def product_files() -> list[Path]:
    return [path for path in python_files() if relative(path).split("/")[0] in PRODUCT]


def imports_of(source: str, *, module: str, is_package: bool = False) -> Iterator[Import]:
    """Yield what `source` imports: at top level, in functions, for type checkers, by import_module("...").

    `module` is the dotted name of the file, against which relative imports are resolved. `from a import b` yields a.b,
    since b may be a module.
    """
    parents = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno)
            case ast.ImportFrom():
                base = parents[: len(parents) - node.level + 1] if node.level else []
                base = base + (node.module.split(".") if node.module else [])
                for alias in node.names:
                    yield Import(".".join([*base, alias.name]), node.lineno)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(name, node.lineno)


@cache
def imports_in(path: Path) -> tuple[Import, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    return tuple(imports_of(path.read_text(encoding="utf-8"), module=module, is_package=is_package))


def violations(paths: Iterable[Path], *, forbidden: Iterable[str]) -> list[str]:
    """Return `file:line imports module` for each import in `paths` of a forbidden module."""
    packages = tuple(forbidden)
    return [
        f"{relative(path)}:{found.line} imports {found.module}"
        for path in paths
        for found in imports_in(path)
        if found.is_within(packages)
    ]


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import pyroute2", "pyroute2"),
        ("import os, pyroute2.netlink as n", "pyroute2.netlink"),
        ("from pyroute2 import IPRoute", "pyroute2.IPRoute"),
        ("def f():\n    from pyroute2.netlink import nlmsg", "pyroute2.netlink.nlmsg"),
        ("if TYPE_CHECKING:\n    import pyroute2", "pyroute2"),
        ("importlib.import_module('pyroute2')", "pyroute2"),
        ("__import__('pyroute2')", "pyroute2"),
        ("from . import frames", "meshproxy.wire.frames"),
        ("from .. import relay", "meshproxy.relay"),
        ("from ..balance.maglev import Table", "meshproxy.balance.maglev.Table"),
    ],
)
def test_the_reader_sees_every_way_to_import(source: str, module: str) -> None:
    assert module in [found.module for found in imports_of(source, module="meshproxy.wire.head")]


def test_the_reader_resolves_relative_imports_of_a_package_against_itself() -> None:
    found = list(imports_of("from .head import Head", module="meshproxy.wire", is_package=True))
    assert found == [Import("meshproxy.wire.head.Head", 1)]


def test_a_module_of_a_similar_name_is_not_taken_for_the_forbidden_one() -> None:
    assert not Import("timeit", 1).is_within(["time"])
    assert Import("time.monotonic", 1).is_within(["time"])


@pytest.mark.parametrize(("half", "other"), [HALVES, HALVES[::-1]])
def test_the_two_halves_never_import_each_other(half: tuple[str, ...], other: tuple[str, ...]) -> None:
    files = [path for path in product_files() if relative(path).split("/")[0] in half]
    assert violations(files, forbidden=other) == []


def test_the_product_never_imports_its_tests_or_their_libraries() -> None:
    assert violations(product_files(), forbidden=TEST_ONLY_MODULES) == []


def test_pyroute2_stays_in_the_modules_that_face_the_kernel() -> None:
    files = [path for path in product_files() if relative(path) not in PYROUTE2_MODULES]
    assert violations(files, forbidden=["pyroute2"]) == []


def test_plugins_start_no_process_but_ipam_delegates() -> None:
    files = [
        path
        for path in product_files()
        if relative(path) not in PROCESS_STARTERS and not relative(path).startswith(PROCESS_STARTER_PREFIX)
    ]
    assert violations(files, forbidden=PROCESS_STARTING) == []


def test_wire_codecs_import_nothing_that_does_io_or_tells_the_time() -> None:
    files = [path for path in product_files() if relative(path).startswith(SANS_IO_FOLDER)]
    assert violations(files, forbidden=IO_MODULES) == []


def test_no_file_is_longer_than_can_be_read_in_one_go() -> None:
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in (*python_files(), *script_files())
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_module_says_what_it_holds() -> None:
    silent = [
        relative(path)
        for path in python_files()
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert silent == []


def test_no_name_is_empty_of_meaning() -> None:
    empty = [
        relative(path)
        for path in (*python_files(), *script_files())
        for part in path.relative_to(ROOT).with_suffix("").parts
        if EMPTY_NAMES.intersection(part.lower().replace("-", "_").split("_"))
    ]
    assert empty == []


def test_the_top_level_holds_only_the_agreed_folders() -> None:
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert found - TOP_LEVEL_FOLDERS - GENERATED_FOLDERS == set()
