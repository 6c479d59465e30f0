"""The command line: parse, call, print. No logic.

Exit codes: 0 all well, 1 the job failed, 2 the call was wrong, 3 the job is done but some
pictures could not be used, 130 and 143 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

__all__ = ["main"]

# Command, the file and function that do it, and its line in --help. Nothing is imported until
# its command is called, which keeps --help quick.
_COMMANDS = (
    (
        "doctor",
        "doctor:doctor",
        "What this machine has; each back end: ok, or why not and the fix.",
    ),
    ("inspect", "inspect:inspect", "Inputs, outputs, head, contract, cost and support of a model."),
    ("detect", "detect:detect", "Find objects in pictures."),
    ("eval", "eval:evaluate", "Measure AP on labelled pictures."),
    ("build", "build:build", "Find the fastest deployment whose answers stayed right."),
    ("export triton", "export:triton", "A model repository for NVIDIA Triton."),
    ("export kubernetes", "export:kubernetes", "Manifests with the resources of the plan."),
    ("bench", "bench:bench", "Speed, stage by stage, against the bare engine and the bound."),
    ("serve", "serve:serve", "Answer clients over HTTP and gRPC: pictures or tensors in."),
    ("demo", "demo:demo", "Find blood cells in pictures that the demo draws itself."),
)
_GROUPS = (("export", "Write a bundle for other machinery: Triton, Kubernetes."),)


def main() -> NoReturn:
    """Run the command line and exit."""
    import cyclopts

    from saccade import __version__
    from saccade.errors import InputError, SaccadeError

    app = cyclopts.App(
        name="saccade",
        help="A trained vision model in, the fastest correct deployment out.",
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for group, line in _GROUPS:
        app.command(cyclopts.App(name=group, help=line, result_action="return_value"))
    for name, target, line in _COMMANDS:
        group, _, word = name.rpartition(" ")
        place = app[group] if group else app
        place.command(f"saccade.cli.{target}", name=word, help=line)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # A lone dash looks like an option; "@-" says the same to those who read the inputs.
        code = app(["@-" if token == "-" else token for token in sys.argv[1:]]) or 0
    except SaccadeError as exc:
        _complain(exc)
        code = 2 if isinstance(exc, InputError) else 1
    except KeyboardInterrupt as exc:
        _complain(exc, "interrupted")
        code = 130
    except _Terminated as exc:
        _complain(exc, "terminated")
        code = 143
    except BrokenPipeError:
        # The reader of our output has gone; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


class _Terminated(BaseException):
    """SIGTERM, as an exception, so that what is open gets closed in order."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated


def _complain(exc: BaseException, text: str = "") -> None:
    lines = [text or str(exc), *getattr(exc, "__notes__", ())]
    print("\n".join(f"saccade: {line}" for line in lines), file=sys.stderr)
