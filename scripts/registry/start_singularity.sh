#!/usr/bin/env bash
# Runs a registry in an Apptainer or Singularity container, in the background, without root: for machines where nothing
# can be installed. Actions, variables, log and pid file are those of start_local.sh beside this file; and:
#
#   start_singularity.sh build              make the image anew from ari-registry.def (`start` makes a missing one)
#   start_singularity.sh registry ARG...    `ari registry ARG...` in the container, as in: registry token issue alice
#
#   SIF       the image (.cache/ari-registry.sif in the checkout)
#   ENGINE    the program (apptainer, else singularity)
set -euo pipefail

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
sif=${SIF:-$root/.cache/ari-registry.sif}

find_engine() {
    local name
    for name in ${ENGINE:+"$ENGINE"} apptainer singularity; do
        if engine=$(command -v "$name"); then return; fi
    done
    fail "needs Apptainer or Singularity; on a cluster try 'module load apptainer'," \
        "elsewhere install apptainer (Fedora, EPEL) or singularity-ce (Debian, Ubuntu), or use start_local.sh"
}

build() {
    mkdir -p -- "$(dirname "$sif")"
    printf '%s: making %s; this needs the network\n' "${0##*/}" "$sif" >&2
    # Under another name first: an interrupted build must not be taken for an image. The definition names its files
    # as seen from the checkout.
    (cd "$root" && "$engine" build --force "$sif.part" scripts/registry/ari-registry.def) ||
        fail "could not make the image (see above); where unprivileged builds are not allowed, make it elsewhere," \
            "copy it here and name it with SIF=/path/to/ari-registry.sif"
    mv -f -- "$sif.part" "$sif"
}

case "${1-start}" in
-h | --help)
    sed -n '2,/^set /{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
    exit
    ;;
build)
    find_engine
    build
    exit
    ;;
registry)
    find_engine
    [ -e "$sif" ] || fail "there is no image $sif: run ${0##*/} build first"
    [ -n "${ARI_REGISTRY_DATA-}" ] || fail "ARI_REGISTRY_DATA names no folder"
    mkdir -p -- "$ARI_REGISTRY_DATA"
    data=$(cd "$ARI_REGISTRY_DATA" && pwd)
    case "$data" in *[,:]*) fail "the container cannot be given $data: its name holds a ',' or ':'" ;; esac
    # At its own place, so that the paths in messages and settings mean the same inside and outside.
    ARI_REGISTRY_DATA=$data exec "$engine" exec --contain --no-home --bind "$data" --pwd / "$sif" ari "$@"
    ;;
start | restart | -*)
    find_engine
    [ -e "$sif" ] || build
    ;;
esac
# What starts the server there is this script again, which knows how to run `ari registry` in the container.
export ARI=$here/${BASH_SOURCE[0]##*/} SIF=$sif
exec "$here/start_local.sh" "$@"
