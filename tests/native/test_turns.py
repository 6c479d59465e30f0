"""Those who measure on one card wait for each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
        worker = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        # Far longer than the process needs to ask for the lock, if it did not have to wait.
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(1)
    # Only now it can have the lock and come to its end.
    assert worker.communicate()[0] == "held\nreleased\n"
    assert worker.returncode == 0


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with card_lock(folder=file / "below"):
        assert not (file / "below").exists()
