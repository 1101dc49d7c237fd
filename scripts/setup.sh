# Sourced by quickstart.sh and test.sh: goes to the repository's root and makes .venv hold what
# scripts/constraints.txt pins. Sets $python. Installs only when the pins, pyproject.toml or the place have changed.
# PYTHON=... chooses the interpreter that .venv is made from (3.11 or newer).

CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."

is_suitable() { # ensurepip: Debian ships pythons that cannot make an environment
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3; do
        if is_suitable "$candidate"; then
            echo "$candidate"
            return
        elif [[ "$candidate" == "${PYTHON:-}" ]]; then
            break # one that was asked for is not silently replaced
        fi
    done
    echo "error: ${PYTHON:-no python3.13, python3.12, python3.11 or python3 here}: need Python 3.11 or newer, able to" \
        "make virtual environments (on Debian and Ubuntu: apt install python3-venv);" \
        "give one as PYTHON=/path/to/python3" >&2
    return 1
}

fingerprint() { # of what decides whether the installation still fits
    { "$python" --version && pwd && cat pyproject.toml scripts/constraints.txt; } |
        "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

python=.venv/bin/python
stamp=.venv/installed
if [[ ! -x "$python" ]]; then
    found="$(find_python)"
    echo "making .venv with $("$found" --version)"
    "$found" -m venv .venv
fi
if ! is_suitable "$python"; then
    echo "error: $PWD/.venv is not a working environment of Python 3.11 or newer; remove it and run this again" >&2
    exit 1
fi
if [[ "$(cat "$stamp" 2>/dev/null)" != "$(fingerprint)" ]]; then
    echo "installing the pinned packages into .venv (once; a few minutes)"
    rm -f "$stamp"
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null
    quiet=()
    [[ -t 1 ]] || quiet=(--quiet) # at a terminal, pip shows how far it is
    "$python" -m pip install ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check --no-input \
        -c scripts/constraints.txt -e '.[dev]'
    fingerprint >"$stamp"
fi
