# shellcheck shell=bash
# Shared by scripts/test, scripts/check and scripts/demo: the environment they run in.
#
# Sourced with `set -euo pipefail` on. Sets `root` (the repository) and `venv` (its environment), and
# changes to the repository, so that every script works from any directory.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${CWSINK_VENV:-.venv}
case $venv in /*) ;; *) venv=$root/$venv ;; esac
cd "$root" || exit

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

# Print the Python to build with: $PYTHON, else python3 if it is new enough, else the newest that is installed.
choose_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || die "PYTHON=$PYTHON: no such command."
        is_new_enough "$PYTHON" || die "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1): cwsink needs Python 3.10 or newer."
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    command -v python3 >/dev/null || die "python3 not found: install Python 3.10 or newer, or name one: PYTHON=/path/to/python $0"
    die "python3 is $(python3 -V 2>&1): cwsink needs 3.10 or newer; name one: PYTHON=/path/to/python $0"
}

python_version() {
    "$1" -c 'import platform; print(platform.python_version())'
}

# Run a set-up command quietly; show what it said only if it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then cat "$log" >&2; fi
    rm -f "$log"
    return "$status"
}

# Is there an environment that runs, has pip, and is of the version asked for, if one was?
venv_is_usable() {
    "$venv/bin/python" -c 'import pip' >/dev/null 2>&1 || return 1
    [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$(python_version "$venv/bin/python")" ]
}

make_venv() {
    local python
    python=$(choose_python)
    if [ -d "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        # `venv --clear` would empty it.
        die "$venv exists and is not a virtual environment: remove it, or set CWSINK_VENV to another path."
    fi
    printf 'Preparing %s (first run takes about a minute) ...\n' "${venv#"$root"/}" >&2
    quietly "$python" -m venv --clear "$venv" ||
        die "$python cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)."
    # A pip of 2023 takes three times as long to choose the versions. If this fails, it serves as it is.
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --quiet --upgrade pip >/dev/null 2>&1 </dev/null || true
}

# prepare_env EXTRA...: make the environment, and install cwsink with these extras into it; each again only if
# pyproject.toml has changed since. Leaves it first on PATH, so that gunicorn and the like are found.
prepare_env() {
    local extra wanted="" stamp_of_now
    # One at a time: two scripts started together would install over each other. Closing descriptor 9 ends it.
    exec 9<pyproject.toml
    if command -v flock >/dev/null; then flock 9; fi

    stamp_of_now=$(cksum <pyproject.toml)
    if venv_is_usable; then
        for extra in "$@"; do
            [ "$(cat "$venv/cwsink-$extra.stamp" 2>/dev/null)" = "$root $stamp_of_now" ] || wanted+=",$extra"
        done
    else
        wanted=$(printf ',%s' "$@")
    fi
    if [ -n "$wanted" ]; then
        if venv_is_usable; then
            printf 'Updating %s ...\n' "${venv#"$root"/}" >&2
        else
            make_venv
        fi
        # To compile all of it would take a third of the time, and few of the modules are ever imported.
        quietly "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --no-compile -e ".[${wanted#,}]" ||
            die "pip could not install cwsink[${wanted#,}]; what it said is above."
        for extra in "$@"; do printf '%s\n' "$root $stamp_of_now" >"$venv/cwsink-$extra.stamp"; done
    fi
    exec 9<&-
    # The tests start Python thousands of times. With this variable each of them would compile cwsink anew.
    unset PYTHONDONTWRITEBYTECODE
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}
