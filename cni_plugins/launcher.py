"""The process behind each installed executable: `python -I -S launcher.py PLUGIN FOLDER... -- [ARGUMENT...]`.

The executable is a shell script (script.py) that answers VERSION itself and hands everything else to this file. No
environment variable, working directory or user's site-packages has a say in what is imported: FOLDER... are what
`netloom install` found. A call goes to the node agent (handover.py); where none takes it, it runs in this process.
"""

import posix
import sys


def main(argv: list[str]) -> int:
    """Answer one call; returns the exit code."""
    name, *folders = argv[: argv.index("--")]
    arguments = argv[argv.index("--") + 1 :]
    sys.path.extend(folders)  # behind the standard library: nothing in site-packages can stand in for `json`
    if arguments or not posix.environ.get(b"CNI_COMMAND"):
        return answer_here(name, arguments, None)
    from cni_plugins import __version__, handover

    stdin = handover.read_all(0)
    if posix.environ[b"CNI_COMMAND"] != b"VERSION":
        program = f"{__version__} {folders[0]}".encode(errors="surrogateescape")
        code = handover.hand_over(program, name.encode(), stdin)
        if code is not None:
            posix._exit(code)  # there is nothing to clean up, and the interpreter takes 1 ms for it
    return answer_here(name, arguments, stdin)


def answer_here(name: str, arguments: list[str], stdin: bytes | None) -> int:
    """Run the plugin in this process."""
    import os

    from cni_plugins import lean, registry, skel
    from cni_plugins.errors import CniError

    if stdin is not None and os.environ.get("CNI_COMMAND") == "VERSION":
        return skel.write(skel.version_answer(stdin))  # without the imports of any plugin
    lean.install()
    try:
        plugin = registry.load(name)
    except CniError as error:
        return skel.write(skel.failed(error))
    return skel.main(plugin, arguments, os.environ, stdin)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
