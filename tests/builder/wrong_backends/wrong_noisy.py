"""Right answers, and a runtime that prints."""

import os
import sys

from saccade.backends._wrapping import Wrapped


def shout():
    sys.stdout.write("a runtime says hello\n")
    sys.stdout.flush()
    os.write(1, b"from native code too\n")


BACKEND = Wrapped("wrong_noisy", on_load=shout)
