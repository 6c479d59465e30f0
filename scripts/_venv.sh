# Sourced by the other scripts: makes .venv if there is none and installs what is asked for.
# Usage: venv_with EXTRAS [GROUP]

venv_with() {
    local extras=$1 group=${2:-} python=${PYTHON:-python3} stamp want
    if [ ! -x .venv/bin/python ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "saccade needs Python 3.11 or newer, $python is $("$python" -V 2>&1); set PYTHON" >&2
            return 1
        }
        "$python" -m venv .venv || {
            echo "could not make .venv; on Debian: apt-get install python3-venv" >&2
            return 1
        }
    fi
    # Installed once per set of extras and state of the two files that decide it.
    want=$(cat pyproject.toml constraints.txt | cksum | tr ' ' -)
    stamp=.venv/.installed-${extras//,/-}-${group:-none}
    [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return 0
    echo "installing saccade[$extras] into .venv (once)" >&2
    .venv/bin/python -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
    .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt \
        -e ".[$extras]" ${group:+--group "$group"}
    echo "$want" > "$stamp"
}
