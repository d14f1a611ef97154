"""Starts one command and writes what it took. Run as `python -I -S launch.py RESULT COMMAND…`.

A process of its own, and a small one: on Linux a child's peak memory starts at what its parent holds when it
starts it, so a benchmark that starts commands itself reports its own size.
"""

import json
import os
import sys
import time

result, *command = sys.argv[1:]
start = time.perf_counter()
pid = os.posix_spawnp(command[0], command, os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - start
with open(result, "w", encoding="utf-8") as file:  # noqa: PTH123  pathlib would make this process larger
    json.dump(
        {
            "seconds": seconds,
            "user_seconds": usage.ru_utime,
            "system_seconds": usage.ru_stime,
            "peak_kib": usage.ru_maxrss,
        },
        file,
    )
sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
