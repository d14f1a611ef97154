"""The yardstick of the registry's small answers: the plainest FastAPI route that reads one JSON file.

Serves the files of `$BENCH_FOLDER`; run by uvicorn as `plain_app:app`.
"""

import json
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI

FOLDER = Path(os.environ["BENCH_FOLDER"])

app = FastAPI()


@app.api_route("/record/{name}", methods=["GET", "HEAD"])
def record(name: str) -> dict[str, Any]:
    """Reads the file called `name`; a synchronous route, so FastAPI calls it in its thread pool."""
    loaded: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return loaded
