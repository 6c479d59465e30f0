"""One contender is one file here; nothing else lists it.

A contender has

    LABEL       what it is, in a line
    NOTE        what a reader of its number must know, or ""
    CASES       names of the cases it applies to, or None for all
    VENV        name of the virtual environment it needs (see peers.sh), or None for saccade's own
    CHECK       "agreement" with the reference, or "ap" where its arithmetic or its pictures differ
    setup(case) -> state
    run(state, paths) -> [(path, boxes_xyxy, scores, classes), ...], one for each path
    versions()  -> {package: version}

and may have

    close(state)
    HOLD        False if it cannot bear to be stopped between its rounds; then it is started
                anew for each, untimed

Answers may come in another order than the paths. If the state is a dict, `run` may leave in it
"start_up_s", the part of its time that is not counted, and must then say so in NOTE. Heavy imports
stand inside the functions, so that the harness can read the labels of all files without them.
"""
