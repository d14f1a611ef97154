#!/usr/bin/env bash
# Runs a registry in the background on this machine. Every action may be repeated.
#
#   start_local.sh [start [OPTION...]]    start it and wait until it is ready; OPTIONs go to `ari registry serve`
#   start_local.sh restart [OPTION...]    stop it if it runs, then start it
#   start_local.sh status                 say how it is: exit status 0 ready, 1 not ready, 3 not running
#   start_local.sh stop                   let it finish what it does, and end it
#
#   ARI_REGISTRY_DATA    the registry's folder, needed; server.log and server.pid lie in it too
#   ARI_REGISTRY_HOST    address to listen on (127.0.0.1)
#   ARI_REGISTRY_PORT    port to listen on (8290)
#   WAIT                 seconds to wait until it is ready, or has ended (60)
#   ARI                  the `ari` to run (that of the .venv made by ./setup.sh --with-registry)
set -euo pipefail
# Staged artifacts and the log are nobody else's business.
umask 077

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
fail() {
    say "$@" >&2
    exit "${code:-1}"
}
usage_error() {
    code=2 fail "$@"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
action=${1-start}
case "$action" in
start | restart | status | stop) shift $(($# > 0)) ;;
-h | --help)
    sed -n '2,/^set /{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
    exit
    ;;
-*) action=start ;; # options of `serve` alone
*) usage_error "unknown action '$action'; see ${0##*/} --help" ;;
esac
case "$action" in status | stop) [ $# = 0 ] || usage_error "'$action' takes no options" ;; esac

ari=${ARI:-$root/.venv/bin/ari}
host=${ARI_REGISTRY_HOST:-127.0.0.1}
port=${ARI_REGISTRY_PORT:-8290}
wait=${WAIT:-60}
[ -n "${ARI_REGISTRY_DATA-}" ] ||
    usage_error "ARI_REGISTRY_DATA names no folder; for one here: export ARI_REGISTRY_DATA=\"\$PWD/.ari_registry\""
case "$port" in 0* | *[!0-9]* | ??????*) usage_error "ARI_REGISTRY_PORT='$port' is no port" ;; esac
case "$wait" in *[!0-9]*) usage_error "WAIT='$wait' is no number of seconds" ;; esac
case "$ARI_REGISTRY_DATA" in /*) data=$ARI_REGISTRY_DATA ;; *) data=$PWD/$ARI_REGISTRY_DATA ;; esac
export ARI_REGISTRY_DATA=$data
log=$data/server.log
pid_file=$data/server.pid

# What to connect to, and how to write it, when it listens on every address.
address=$host
case "$host" in 0.0.0.0) address=127.0.0.1 ;; ::) address=::1 ;; esac
case "$address" in *:*) url=http://[$address]:$port ;; *) url=http://$address:$port ;; esac

# Sets `fields` to what /proc/PID/stat says after the name: state, parent, process group... Fails when there is no such
# process, or only what its parent has not buried yet.
look_at() {
    { read -r fields <"/proc/$1/stat"; } 2>/dev/null || return 1
    read -r -a fields <<<"${fields##*) }"
    [ "${fields[0]}" != Z ]
}

# Prints when a process started, in ticks since boot: with its number that names one process for ever.
started() {
    local fields
    look_at "$1" && printf '%s' "${fields[19]}"
}

# Sets pid and running_url from the file. Succeeds when that very process runs, or when it was killed and its workers,
# who would keep the port, still do.
running() {
    local when now
    read -r pid when running_url 2>/dev/null <"$pid_file" || return 1
    # Of a damaged file: to signal process group 0 is to signal whoever called this.
    case "$pid" in '' | 0* | *[!0-9]*) return 1 ;; esac
    if now=$(started "$pid"); then
        [ "$now" = "$when" ]
    else
        orphans
    fi
}
orphans() {
    local fields process
    kill -0 -- "-$pid" 2>/dev/null && ! look_at "$pid" || return 1
    for process in /proc/[0-9]*; do
        if look_at "${process#/proc/}" && [ "${fields[2]}" = "$pid" ]; then return; fi
    done
    return 1
}

# Succeeds when something answers at /readyz with 200; says on stdout what else it answered.
ready() {
    local answer
    {
        printf 'GET /readyz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "${url#http://}" >&3
        read -r -t 5 answer <&3
    } 2>/dev/null 3<>"/dev/tcp/$address/$port" || return 1
    case "$answer" in 'HTTP/1.'?' 200 '*) ;; *) return 1 ;; esac
}
listening() { : 3<>"/dev/tcp/$address/$port"; } 2>/dev/null

# One start or stop at a time; the server must not inherit the lock.
lock() {
    exec 9>>"$pid_file"
    flock -w "$wait" 9 || fail "another ${0##*/} is still busy with $data"
}

# What a server was told, from its environment on stdin and its options; a client's variables are not among that.
told() {
    tr '\0' '\n' | grep -aE '^(ARI_REGISTRY|ARI_S3|AWS)_' | grep -avE '^ARI_REGISTRY_(URL|TOKEN|NAME)=' | sort || true
    printf '%s\n' "$@"
}
# Succeeds when the running one was told the same as this one would be, or when that is not to be seen.
same_settings() {
    local options
    mapfile -d '' -t options <"/proc/$pid/cmdline" && [ -r "/proc/$pid/environ" ] || return 0
    while [ "${#options[@]}" -gt 0 ] && [ "${options[0]}" != --host ]; do options=("${options[@]:1}"); done
    [ "$(told "${options[@]}" <"/proc/$pid/environ")" = "$(env -0 | told --host "$host" --port "$port" "$@")" ]
}

wait_until_ready() {
    local end=$((SECONDS + wait))
    until ready; do
        if ! running || orphans; then
            return 1
        fi
        if [ "$SECONDS" -ge "$end" ]; then
            fail "not ready after $wait s, and still starting (pid $pid); ask again with '${0##*/} status';" \
                "the end of $log:"$'\n'"$(tail -n 20 -- "$log")"
        fi
        sleep 0.1
    done
}

start() {
    [ -x "$ari" ] || fail "there is no $ari yet: run $root/setup.sh --with-registry first"
    mkdir -p -- "$data" || fail "cannot make $data"
    [ -w "$data" ] || fail "$data cannot be written: choose another ARI_REGISTRY_DATA, or check who owns it"
    lock
    local state='already running'
    if running && orphans; then
        say "ending what a killed server left (process group $pid)"
        end
    fi
    if ! running; then
        state=running
        listening && fail "something else listens on $address port $port: end it, or choose another ARI_REGISTRY_PORT"
        launch "$@"
    elif [ "$running_url" != "$url" ]; then
        fail "it runs already, at $running_url instead of $url (pid $pid); '${0##*/} restart' moves it"
    else
        wait_until_ready || fail "it has just ended; the end of $log:"$'\n'"$(tail -n 20 -- "$log")"
    fi
    say "$state at $url (pid $pid, data $data, log $log)"
    [ "$state" = running ] || same_settings "$@" ||
        say "with other settings than those given now: '${0##*/} restart' applies them"
    [ "$(command -v ari)" -ef "$ari" ] || [ -n "${ARI-}" ] ||
        say "to have its \`ari\` here: . $(printf %q "${ari%/ari}/activate")"
}

launch() {
    local before ended=0
    before=$(stat -c %s -- "$log" 2>/dev/null || echo 0)
    # A session of its own outlives this terminal, and can be ended with all its workers.
    setsid -- "$ari" registry serve --host "$host" --port "$port" "$@" </dev/null >>"$log" 2>&1 9>&- &
    pid=$!
    printf '%s %s %s\n' "$pid" "$(started "$pid" || true)" "$url" >"$pid_file"
    wait_until_ready && return
    wait "$pid" || ended=$?
    : >"$pid_file"
    # A server that ended in peace has not done what it was asked for either.
    code=$((ended ? ended : 1)) fail "the server did not start:"$'\n'"$(tail -c "+$((before + 1))" -- "$log" | tail -n 20)"
}

end() {
    local end=$((SECONDS + wait))
    if orphans; then
        kill -TERM -- "-$pid"
    else
        kill -TERM "$pid" 2>/dev/null || true
    fi
    while running && [ "$SECONDS" -lt "$end" ]; do sleep 0.1; done
    if running; then
        say "still busy after $wait s: killing it"
        kill -KILL -- "-$pid" 2>/dev/null || true
        end=$((SECONDS + 10))
        while running; do
            [ "$SECONDS" -lt "$end" ] || fail "it cannot be killed (pid $pid): is its disk or network share gone?"
            sleep 0.1
        done
    fi
    : >"$pid_file"
}

stop() {
    if [ -s "$pid_file" ]; then
        lock
        if running; then
            end
            say "stopped (pid $pid, data $data)"
            return
        fi
    fi
    say "not running (data $data)"
}

status() {
    if ! running; then
        say "not running (data $data)"
        exit 3
    fi
    address=${running_url#http://} port=${running_url##*:}
    address=${address%:*}
    address=${address#[} address=${address%]}
    if orphans || ! ready; then
        say "running at $running_url, but not ready (pid $pid, data $data, log $log)"
        exit 1
    fi
    say "ready at $running_url (pid $pid, data $data, log $log)"
}

case "$action" in
restart)
    stop
    start "$@"
    ;;
*) "$action" "$@" ;;
esac
