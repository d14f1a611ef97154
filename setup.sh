#!/usr/bin/env bash
# Makes .venv beside this file and installs ari-registry into it (editable). Does nothing when nothing changed.
#
#   ./setup.sh                       what a user needs
#   ./setup.sh --with-registry       what running a registry server needs as well
#   ./setup.sh --all                 every optional part: the server, PostgreSQL, S3, other places that fsspec reads
#   ./setup.sh --dev                 what tests, lint and benchmark need as well, the server's included
#   PYTHON=python3.13 ./setup.sh     with this Python (3.11 or newer)
#
# What was added once stays until .venv is removed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    printf 'setup.sh: %s\n' "$*" >&2
    exit 1
}

extra=
for option in "$@"; do
    case "$option" in
    --dev) extra='[dev]' ;;
    --all) [ "$extra" = '[dev]' ] || extra='[all]' ;;
    --with-registry) extra=${extra:-'[server]'} ;;
    -h | --help)
        sed -n '2,/^set /{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
        exit
        ;;
    *)
        printf "setup.sh: unknown option '%s'; see ./setup.sh --help\n" "$option" >&2
        exit 2
        ;;
    esac
done

# Prints the version of a Python; fails when it does not run or is too old.
version_of() {
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=
version=
found=
if [ -n "${PYTHON-}" ]; then
    candidates=("$PYTHON")
else
    # An environment made earlier keeps its Python until somebody asks for another one.
    candidates=(.venv/bin/python python3 python3.14 python3.13 python3.12 python3.11)
fi
for candidate in "${candidates[@]}"; do
    if version=$(version_of "$candidate") && [ -n "$version" ]; then
        python=$candidate
        break
    fi
    found="$found${version:+ $candidate is $version;}"
done
if [ -z "$python" ]; then
    [ -z "${PYTHON-}" ] || fail "PYTHON=$PYTHON cannot be used:${found:- it does not run;} Python 3.11 or newer is needed"
    fail "needs Python 3.11 or newer:${found:- there is no python3;}" \
        "on Debian or Ubuntu: apt-get install python3 python3-venv, then run this again" \
        "(or name another one: PYTHON=/path/to/python3.12 ./setup.sh)"
fi

# A virtual environment knows its own place and Python by absolute path: when either changed, it is made anew.
stamp=.venv/.ari-setup
place="$version $(pwd -P)"
wanted="$place $(cksum <pyproject.toml)"
installed=$(cat "$stamp" 2>/dev/null || true)
case "$installed" in
*'[dev]') extra='[dev]' ;;
*'[all]') [ "$extra" = '[dev]' ] || extra='[all]' ;;
*'[server]') extra=${extra:-'[server]'} ;;
esac
[ "$installed" != "$wanted$extra" ] || exit 0

usable() {
    case "$installed" in '' | "$place "*) ;; *) return 1 ;; esac
    [ "$(version_of .venv/bin/python)" = "$version" ] && .venv/bin/python -m pip --version >/dev/null 2>&1
}
has_uv() { command -v uv >/dev/null; }

if ! usable; then
    # The chosen Python may be the one inside the environment that is about to go.
    [ "$python" != .venv/bin/python ] || python=$(.venv/bin/python -c 'import sys; print(sys._base_executable)')
    if ! has_uv && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        case "$python" in *python3.*) package="python${version%.*}-venv" ;; *) package=python3-venv ;; esac
        fail "$python ($version) cannot make virtual environments, it has no ensurepip;" \
            "on Debian or Ubuntu: apt-get install $package, then run this again"
    fi
    printf 'setup.sh: making .venv with Python %s\n' "$version" >&2
    rm -rf .venv
    { has_uv && uv venv --quiet --seed --python "$python" .venv; } || "$python" -m venv .venv ||
        fail "could not make .venv (see above)"
fi

printf 'setup.sh: installing ari-registry%s and what it needs\n' "$extra" >&2
# Twice quiet: errors only.
{ has_uv && uv pip install --quiet --python .venv/bin/python --editable ".$extra"; } ||
    .venv/bin/python -m pip install -qq --disable-pip-version-check --editable ".$extra" ||
    fail "installing failed (see above); the first run needs the network"
printf '%s\n' "$wanted$extra" >"$stamp"
