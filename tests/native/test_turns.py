"""Those who measure on one card wait for each other."""

from __future__ import annotations

import subprocess
import sys

from saccade.native.turns import card_lock

HOLDER = """
import sys
from pathlib import Path
from saccade.native.turns import card_lock
with card_lock(folder=Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
    print("released", flush=True)
"""


def test_a_second_process_waits_until_the_first_is_done(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with card_lock(folder=tmp_path), card_lock(folder=tmp_path):
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        worker.stdin.close()
        held_here = [worker.poll()]
    # Only now it can have the lock and come to its end.
    assert worker.stdout.read() == "held\nreleased\n"
    assert worker.wait() == 0
    assert held_here == [None]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with card_lock(folder=file / "below"):
        assert not (file / "below").exists()
