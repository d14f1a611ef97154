"""Runs `ari` in children forked from a warmed-up process, each stopped at a gate until a tracer holds it.

Started as a program. For each line on stdin, a JSON object with `arguments` and `output` (a file for stdout and
stderr), it says the child's process id, waits for another line, lets the child run, and says its exit code
(negative: the signal that killed it).
"""

import contextlib
import json
import os
import select
import signal
import sys


def say(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def child(job, here, gate):
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    os.write(here, b"!")
    while not select.select([gate], [], [], 0.001)[0]:
        pass  # each turn is a line in the tracer's log: when there is one, it really holds us
    code = 70
    try:
        code = sys.modules["ari_core.cli"].main(job["arguments"])
    except SystemExit as error:
        code = error.code or 0
    except BaseException as error:  # noqa: BLE001 - the command promises that nothing comes out
        say(f"Traceback {error!r}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main():
    from ari_core.cli import main as ari

    warm_up = json.loads(sys.stdin.readline())
    here = os.dup(1)
    os.dup2(2, 1)
    ari(warm_up["arguments"])  # imports and caches what a run needs
    sys.stdout.flush()
    os.dup2(here, 1)
    say("ready")
    while line := sys.stdin.readline():
        gate, key = os.pipe()
        arrived, here = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(key)
            child(json.loads(line), here, gate)
        os.close(gate)
        os.close(here)
        os.read(arrived, 1)
        os.close(arrived)
        say(pid)
        sys.stdin.readline()
        with contextlib.suppress(BrokenPipeError):  # killed at the gate
            os.write(key, b"!")
        os.close(key)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
