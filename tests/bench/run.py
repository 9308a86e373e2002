"""`make bench`: netloom's plugins beside the reference plugins, in one run, in namespaces of their own.

How to read it. A number is the whole life of a process, from its start to its end, as a runtime waits for it; for a
chain, the sum over its plugins, executed one after the other as libcni does. `cpu` is user and system time, with all
that the plugin starts (the reference starts iptables) and with what the node agent worked for it. `netloom` is with
the node agent, `no agent` without one. Implementations take turns within each case (A B A B), so a busy machine slows
all of them: believe the medians and the ratios (ref/netloom 2.00: the reference takes twice as long); p90 tells how
much the machine was disturbed. Milliseconds compare within one run only. Each case has one pod that stays, beside the
one that comes and goes. In the parallel case, `cpu` is an average.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-fixtures"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from entering import NamespaceError, require_root_or_userns
from namespaces import Namespace
from tests.bench.cases import CASES, Counted, Report, Size
from tests.bench.driver import STATE, Cost, Implementation, PluginFailed

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Implementation("reference", "/usr/lib/cni")
QUICK = Size(repeat=3, parallel_pods=20, residents=(0, 20), taken=(0, 1_000))


def main(argv: Sequence[str]) -> int:
    """Measure inside a host of our own. Exit codes: 0 measured, 1 something failed, 130 interrupted."""
    options = _parser().parse_args(argv)
    if unknown := [name for name in options.case if not _chosen([name])]:
        sys.stderr.write(f"no case {unknown[0]!r}; there are: {', '.join(CASES)}\n")
        return 2
    if options.inside:
        return _measure(options)
    try:
        require_root_or_userns()
        with Namespace.create("bench") as host:
            return host.popen(sys.executable, __file__, "--inside", *argv).wait()
    except NamespaceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, few pods: does it work? below a minute")
    parser.add_argument(
        "--case", action="append", default=[], metavar="NAME", help=f"cases whose name starts so: {', '.join(CASES)}"
    )
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="rounds (default: 20; --quick: 3)")
    parser.add_argument(
        "--bin-dir", action="append", default=[], metavar="[NAME=]DIR", help="measure these plugins, too"
    )
    parser.add_argument(
        "--residents", metavar="N,N", help="pods already there in the case flat (default: 0,100,300,1000)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser


def _chosen(wanted: Sequence[str]) -> list[str]:
    return [name for name in CASES if not wanted or any(name.startswith(start) for start in wanted)]


def _implementations(more: Sequence[str]) -> list[Implementation]:
    """Ours, freshly installed; the reference where it is; whatever else was asked for. Raises CalledProcessError."""
    folder = str(STATE / "bin")
    command = (sys.executable, "-m", "cni_plugins.cli", "install", "--bin-dir", folder)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    found = [
        Implementation("netloom", folder, agent=True, is_netloom=True),
        Implementation("no agent", folder, is_netloom=True),
    ]
    if os.access(os.path.join(REFERENCE.bin_dir, "bridge"), os.X_OK):
        found.append(REFERENCE)
    else:
        sys.stderr.write(f"the reference plugins are not in {REFERENCE.bin_dir}: netloom is measured alone\n")
    for text in more:
        name, _, folder = text.rpartition("=")
        found.append(Implementation(name or os.path.basename(os.path.normpath(folder)), os.path.abspath(folder)))
    return found


def _measure(options: argparse.Namespace) -> int:
    STATE.mkdir()
    size = QUICK if options.quick else Size(repeat=20)
    if options.repeat:
        size = replace(size, repeat=options.repeat)
    if options.residents:
        size = replace(size, residents=tuple(sorted(int(number) for number in options.residents.split(","))))
    implementations = _implementations(options.bin_dir)
    report, failed = Report(), []
    for name in _chosen(options.case):
        sys.stderr.write(f"measuring {name} ... ")
        sys.stderr.flush()
        started = time.monotonic()
        try:
            CASES[name](implementations, size, report)
        except PluginFailed as error:  # the other cases can still be measured
            failed.append(f"{name}: {error}")
        sys.stderr.write(f"{time.monotonic() - started:.0f} s\n")
    print(table(report, [each.name for each in implementations]))
    if options.json:
        options.json.write_text(json.dumps(as_json(report, size), indent=1))
    said = {(name, words) for row in report.rows for name, words in row.failures.items()}
    for name, words in sorted(said):
        sys.stderr.write(f"{name}: {words[:200]}\n")
    for words in failed:
        sys.stderr.write(f"FAILED {words}\n")
    return 1 if failed else 0


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def table(report: Report, names: Sequence[str]) -> str:
    """Milliseconds, a line for each case and verb, with the reference's ratio to each other one; then the counts."""
    others = [name for name in names if name != REFERENCE.name] if REFERENCE.name in names else []
    head = f"{'ms':<34}" + "".join(f"{name:>11}  p90    cpu" for name in names)
    head += "".join(f"{f'ref/{name}':>20}" for name in others)
    lines = [head, "-" * len(head)]
    last = ""
    for row in report.rows:
        start = f"{row.case if row.case != last else '':<28}{row.verb:<6}"
        columns = [
            f"{'fails':>11}{'':12}" if name in row.failures else _columns(row.costs.get(name, [])) for name in names
        ]
        ratios = [_ratio(row.costs.get(REFERENCE.name, []), row.costs.get(name, [])) for name in others]
        lines.append((start + "".join(columns) + "".join(ratios)).rstrip())
        last = row.case
    if report.counted:
        lines += ["", f"{'':<54}" + "".join(f"{name:>12}" for name in names)]
        lines += [_counts(counted, names) for counted in report.counted]
    return "\n".join(lines)


def _columns(costs: Sequence[Cost]) -> str:
    return f"{_median(costs):>11.1f}{_p90(costs):>5.0f}{_cpu(costs):>7.1f}" if costs else f"{'-':>11}{'':12}"


def _ratio(reference: Sequence[Cost], costs: Sequence[Cost]) -> str:
    if not reference or not costs:
        return f"{'-':>20}"
    return f"{f'{_median(reference) / _median(costs):.2f} (cpu {_cpu(reference) / _cpu(costs):.2f})':>20}"


def _counts(counted: Counted, names: Sequence[str]) -> str:
    text = f"{counted.case:<28}{counted.what:<26}"
    for name in names:
        number = counted.numbers.get(name)
        text += f"{'-' if number is None else f'{number:,.0f}':>12}"
    return text


def _median(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.wall_s for cost in costs) * 1000 if costs else 0.0


def _p90(costs: Sequence[Cost]) -> float:
    return quantile([cost.wall_s for cost in costs], 0.9) * 1000


def _cpu(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.cpu_s for cost in costs) * 1000 if costs else 0.0


def as_json(report: Report, size: Size) -> dict[str, object]:
    """Every single measurement, and what it was measured on."""
    return {
        "machine": {
            "kernel": platform.release(), "python": platform.python_version(), "cpus": os.cpu_count(),
            "architecture": platform.machine(),
        },
        "repeat": size.repeat,
        "rows": [
            {
                "case": row.case, "verb": row.verb, "implementation": name,
                "wall_ms": [round(cost.wall_s * 1000, 3) for cost in costs],
                "cpu_ms": [round(cost.cpu_s * 1000, 3) for cost in costs],
            }
            for row in report.rows for name, costs in row.costs.items()
        ],
        "failures": [
            {"case": row.case, "verb": row.verb, "implementation": name, "words": words}
            for row in report.rows for name, words in row.failures.items()
        ],
        "counts": [
            {"case": counted.case, "what": counted.what, "implementation": name, "number": number}
            for counted in report.counted for name, number in counted.numbers.items()
        ],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
