"""The command `mast3r`: one entrance to everything, `mast3r --help` lists it.

Exit codes: 0 done; 1 something is wrong with what was given, told in one sentence on stderr; 2 wrong usage; 130
interrupted. Answers go to stdout (with --json as one JSON object), progress and messages to stderr.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "match": "points of two or more photos that show the same place",
    "pair": "3D points, matches and cameras of two photos",
    "scene": "cameras and 3D points of many photos or a video",
    "train": "train a model, on rendered scenes or on data sets",
    "evaluate": "measure matchers on photos with ground truth",
    "models": "the known weights, their licences and sizes",
    "convert": "weights to safetensors; results to other file forms",
    "demo": "the web page",
}
"""Name -> what it does, in a line. The command NAME lives in the module `mast3r.cli.NAME`."""

INTERRUPTED = 130
_BROKEN_PIPE = 141
_Command = Callable[[Sequence[str], str], "int | None"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; default those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0
    if name in ("-V", "--version"):
        from mast3r import __version__

        sys.stdout.write(f"mast3r {__version__}\n")
        return 0
    if name not in COMMANDS:
        sys.stderr.write(_overview() if not name else _unknown(name))
        return 2

    def run(rest: Sequence[str], prog: str) -> int | None:
        return importlib.import_module(f"mast3r.cli.{name}").main(rest, prog)

    return run_guarded(run, arguments[1:], prog=f"mast3r {name}")


def run_guarded(run: _Command, arguments: Sequence[str], *, prog: str) -> int:
    """Call a command; errors of the user become a sentence, unless `--debug` is among the arguments.

    Args:
        run: Takes arguments and program name.
        arguments: Arguments without the command's name.
        prog: Name of the program in messages.

    Returns:
        The exit code.
    """
    try:
        return run(arguments, prog) or 0
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{prog}: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as in `mast3r models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        sentence = _sentence(error)
        if sentence is None or "--debug" in arguments:
            raise
        sys.stderr.write(f"{prog}: {sentence}\n")
        return 1


def _sentence(error: Exception) -> str | None:
    """What is wrong, in one line; None for errors of ours."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return "out of memory; take fewer or smaller images, or another --device."
    if isinstance(error, RuntimeError):
        return None
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return f"""usage: mast3r COMMAND ...

Photos in; matches, cameras and 3D out.

commands:
{commands}

examples:
  mast3r match a.jpg b.jpg --out matches.npz --picture matches.jpg
  mast3r pair a.jpg b.jpg --out scene.glb
  mast3r scene photos/ --out scene.glb
  mast3r models

`mast3r COMMAND --help` tells more; `mast3r --version` the version.
"""


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(COMMANDS)}."
    return f"mast3r: there is no command {name!r}; {hint}\n"
