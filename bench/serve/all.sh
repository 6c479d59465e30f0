#!/bin/sh
# Every number of docs/performance/serving.md, with nothing else on the machine: about 20 minutes,
# and half an hour more for the abuse. Runs that other processes disturb are repeated, and say so.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
"$python" -m bench.serve.harness light_person_192 --rounds 3 --seconds 3
"$python" -m bench.serve.identity --rounds 3
"$python" -m bench.serve.tensor --rounds 3
"$python" -m bench.serve.harness cells_640 --contenders saccade,triton,fastapi,litserve,mlserver --rounds 2 --seconds 6
"$python" -m bench.serve.bundle --rounds 2 --seconds 6
"$python" -m bench.serve.abuse
"$python" -m bench.tables
