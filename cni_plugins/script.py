"""The text of an installed executable: written by `netloom install`, recognised by delegate.py and `netloom uninstall`.

A POSIX shell script of built-ins: it answers VERSION itself in under a millisecond (podman asks it of every plugin
before each ADD and DEL; Python takes ten times as long to start), and ADD and DEL of portmap and bandwidth where there
is nothing to do, as for most pods (_IDLE). Everything else it hands to launcher.py. It needs no PATH, HOME or working
directory. Read next: launcher.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import cache_from_source

from .results import LATEST, VERSIONS

_MARK = b"# netloom launcher "  # how line 2 of each script starts; what follows is its Program as JSON
_READ_BYTES = 1 << 16  # ours have about 2 KiB; foreign plugins are megabytes

# A chained plugin that has nothing to do answers with the previous result. That is so when libcni passes no key but
# these (it writes one line, keys sorted, no white space; any other form is Python's to judge), and DEL has nothing to
# undo when no interface of the result is an ifb. Split at quotes, what it writes is structure and strings in turn; the
# result ends where its braces do. The environment must be one that Python would accept; else Python says what is wrong.
# What was read is given on as a here-document. A call costs 1.5 ms instead of 7; one that is not idle, 0.5 more.
_IDLE = """\
idle() {{
    case $CNI_CONTAINERID in '' | [!A-Za-z0-9]* | *[!A-Za-z0-9_.-]*) return 1 ;; esac
    case $CNI_IFNAME in '' | [!A-Za-z0-9]* | *[!A-Za-z0-9_.-]* | ????????????????*) return 1 ;; esac
    case $CNI_ARGS in '' | IgnoreUnknown=*) ;; *) return 1 ;; esac
    case $input in *'\\'* | *'"ifb'* | *'"bwp'* | *'}},"runtimeConfig":'*) return 1 ;; esac
    IFS='"'
    set -f
    set -- $input
    unset IFS
    if test "$1$2$3$4$5" = '{{capabilities:{{{capability}:true}},'; then
        shift 5
    elif test "$1" = '{{'; then
        shift
    fi
    test $# -gt 13 && test "$1$2$4$5$6$8$9" = cniVersion:,name:,prevResult || return 1
    version=$3
    case $version in
    {known}) ;;
    *) return 1 ;;
    esac
    case $7 in '' | [!A-Za-z0-9]* | *[!A-Za-z0-9_.-]*) return 1 ;; esac
    shift 9
    test "$1$2$3$4" = ":{{cniVersion:$version" || return 1
    shift
    result='{{'
    depth=1
    while test $# -gt 1; do
        result=$result\\"$1\\"$2
        case $2 in
        *[{{}}]*)
            rest=$2
            while test -n "$rest"; do
                case $rest in
                '{{'*) depth=$((depth + 1)) ;;
                '}}'*) depth=$((depth - 1)) ;;
                esac
                rest=${{rest#?}}
                test $depth = 0 && break
            done
            ;;
        esac
        shift 2
        if test $depth = 0; then
            result=${{result%,}}
            test "$rest$1$2$3$4" = ',type:{plugin}}}' && test $# = 4
            return
        fi
    done
    return 1
}}
if test $# = 0 && {{ test "$CNI_COMMAND" = ADD || test "$CNI_COMMAND" = DEL; }}; then
    unset input rest result version depth line  # of the environment, and then of Python's
    input=
    while IFS= read -r line; do
        input="$input$line
"
    done
    input="$input$line"
    if idle; then
        if test "$CNI_COMMAND" = DEL; then
            exit 0
        elif test -e "$CNI_NETNS" && ! test "$CNI_NETNS" -ef /proc/self/ns/net; then
            printf '%s\\n' "$result"
            exit 0
        fi
    fi
    exec <<INPUT
$input
INPUT
fi
"""
_CAPABILITIES = {"portmap": "portMappings", "bandwidth": "bandwidth"}

# Python runs the compiled launcher where `netloom install` could write it: compiling a main program takes 1 ms a call.
# `unset -f`: a shell that imports functions from the environment must not find our built-ins replaced. `read` takes
# one byte a system call from a pipe; VERSION's input is some 25 bytes (64 MiB of it take 10 s: nobody sends that).
# Standard input is read to its end so that the runtime's write never fails. The first "cniVersion" counts; a key
# and its value are on one line in whatever writes JSON.
_TEMPLATE = """\
#!/bin/sh
{mark}{facts}
# Written by `netloom install`, which writes it again; removed by `netloom uninstall`.
unset -f printf read test exec exit return
if test "$CNI_COMMAND" = VERSION && test $# = 0; then
    version=
    while IFS= read -r line || test -n "$line"; do
        case $line in
        *'"cniVersion"'*)
            rest=${{line#*'"cniVersion"'}}
            rest=${{rest#"${{rest%%[!:{blanks}]*}}"}}
            case $rest in
            {known})
                rest=${{rest#?}}
                version=${{rest%%'"'*}}
                ;;
            *) version={latest} ;;
            esac
            while IFS= read -r line || test -n "$line"; do :; done
            ;;
        esac
    done
    printf '{answer}\\n' "${{version:-{latest}}}"
    exit 0
fi
{idle}if test -x {python} && test -r {compiled}; then
    exec {python} -I -S -B -X utf8 {compiled} {words} -- "$@"
elif test -x {python} && test -r {launcher}; then
    exec {python} -I -S -B -X utf8 {launcher} {words} -- "$@"
fi
printf '%s\\n' {gone}
exit 1
"""


@dataclass(frozen=True, slots=True)
class Program:
    """What an installed executable runs. `folders` are for sys.path; the first holds cni_plugins and ipam."""

    plugin: str
    version: str
    python: str
    folders: tuple[str, ...]


def quote(word: str) -> str:
    """One word of shell, whatever is in it."""
    return "'" + word.replace("'", "'\"'\"'") + "'"


def render(program: Program) -> bytes:
    """The script."""
    launcher = os.path.join(program.folders[0], "cni_plugins", "launcher.py")
    answer = json.dumps({"cniVersion": "%s", "supportedVersions": list(VERSIONS)}, indent=2)
    gone = {
        "cniVersion": LATEST,
        "code": 5,
        "msg": f"netloom's plugin {program.plugin} cannot run: {program.python} or {launcher} is gone",
        "details": "netloom was moved or removed: run `netloom install` again",
    }
    known = "|".join(f"'\"{version}\"'*" for version in VERSIONS)
    capability = _CAPABILITIES.get(program.plugin)
    idle = _IDLE.format(plugin=program.plugin, capability=capability, known=" | ".join(VERSIONS))
    text = _TEMPLATE.format(
        mark=_MARK.decode(),
        facts=json.dumps(asdict(program)),
        blanks=" \t",
        known=known,
        idle=idle if capability else "",
        latest=LATEST,
        answer=answer.replace("\n", "\\n"),
        python=quote(program.python),
        launcher=quote(launcher),
        compiled=quote(cache_from_source(launcher)),
        words=" ".join(quote(word) for word in (program.plugin, *program.folders)),
        gone=quote(json.dumps(gone)),
    )
    return os.fsencode(text)


def recognise(content: bytes) -> Program | None:
    """The program of a script of ours, of any version, even if edited since; None for anything else."""
    lines = content.split(b"\n", 2)
    if len(lines) < 3 or lines[0] != b"#!/bin/sh" or not lines[1].startswith(_MARK):
        return None
    try:
        facts = json.loads(lines[1].removeprefix(_MARK))
        program = Program(facts["plugin"], facts["version"], facts["python"], tuple(facts["folders"]))
    except (ValueError, TypeError, KeyError):
        return None
    return program if _is_complete(program) else None


def _is_complete(program: Program) -> bool:
    words: Sequence[object] = (program.plugin, program.version, program.python, *program.folders)
    return bool(program.folders) and all(isinstance(word, str) for word in words)


def read_program(path: str) -> Program | None:
    """`recognise` the file at `path`. Raises OSError."""
    return recognise(_head(path))


def is_this_program(path: str, plugin: str, version: str, source: str) -> bool:
    """Whether the file at `path` would run `plugin` of the code in the folder `source`, and nothing else: it is, byte
    for byte, what `render` writes. A script that somebody edited is not. Raises OSError."""
    content = _head(path)
    program = recognise(content)
    if program is None or (program.plugin, program.version, program.folders[0]) != (plugin, version, source):
        return False
    return render(program) == content


def _head(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(_READ_BYTES)
