"""The child's side: one contender, told over stdin what to do, answering over stdout in JSON lines.

    {"do": "warm", "paths": [...]}                   -> {"ok": true}
    {"do": "answer", "paths": [...], "file": "..."}  -> {"ok": true}; the answers are in the file
    {"do": "round", "paths": [...]}                  -> {"ok": true, "wall_s": ..., ...}
    {"do": "versions"}                               -> {"ok": true, "versions": {...}}

The end of stdin ends the child. What libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from bench.agreement import pack
from bench.cases import CASES

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    module, case_name = sys.argv[1:]
    # A stopped child cannot see the end of its input, so the harness's death must end it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Grandchildren whose parent ends stay in this tree, so that their CPU time is still counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        contender = importlib.import_module(module)
        state = contender.setup(CASES[case_name])
    except Exception:
        reply(replies, {"ok": False, "error": traceback.format_exc()})
        return
    reply(replies, {"ok": True})
    for line in sys.stdin:
        try:
            reply(replies, {"ok": True, **obey(contender, state, json.loads(line))})
        except Exception:
            reply(replies, {"ok": False, "error": traceback.format_exc()})
    if hasattr(contender, "close"):
        contender.close(state)


def reply(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def obey(contender: Any, state: Any, order: dict[str, Any]) -> dict[str, Any]:
    if order["do"] == "versions":
        return {"versions": contender.versions()}
    start = time.perf_counter()
    answers = contender.run(state, order["paths"])
    wall_s = time.perf_counter() - start
    if order["do"] == "warm":
        return {}
    if order["do"] == "answer":
        Path(order["file"]).write_text(json.dumps(pack(answers)))
        return {}
    result = {
        "wall_s": wall_s,
        "num_pictures": len(answers),
        "num_boxes": sum(len(scores) for _, _, scores, _ in answers),
    }
    if isinstance(state, dict) and "start_up_s" in state:
        result["start_up_s"] = state["start_up_s"]
    return result


if __name__ == "__main__":
    main()
