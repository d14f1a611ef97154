"""Runs the real `ari` as a user would."""

import json
import subprocess
import sys
from pathlib import Path

ARI = str(Path(sys.executable).with_name("ari"))


def ari(*arguments, cwd=None, env=None, stdin=""):
    """Runs `ari` and holds it to what every run owes: no traceback, nothing raw on the terminal."""
    done = subprocess.run(
        [ARI, *map(str, arguments)],
        cwd=cwd,
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    both = done.stdout + done.stderr
    assert "Traceback" not in both
    assert "\x1b" not in both
    return done


def ari_json(*arguments, **keywords):
    """Runs `ari … --json`; stdout must be exactly one object."""
    done = ari(*arguments, "--json", **keywords)
    return done.returncode, json.loads(done.stdout)


def error_of(done):
    """Returns the one error line of a failed run, and its hint."""
    lines = done.stderr.splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    assert len(errors) == 1, done.stderr
    assert len(hints) <= 1, done.stderr
    return errors[0], (hints or [""])[0]
