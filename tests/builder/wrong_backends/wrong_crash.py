"""Dies while it loads, as a native library may."""

import os
import signal
import sys

from saccade.backends._wrapping import Wrapped


def crash():
    sys.stderr.write("native code goes wrong here\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


BACKEND = Wrapped("wrong_crash", on_load=crash)
