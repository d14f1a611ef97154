"""Virtual environments with all that ours has but our own code: as after a download, without the network."""

import sysconfig
import venv
from pathlib import Path

OFFLINE = {
    "PIP_CONFIG_FILE": "/dev/null",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip's way of saying that there is none
    "PIP_NO_INDEX": "1",
}
"""Variables with which pip, the build of our wheel included, is content with what is there."""


def make_environment(folder, without=()):
    """Makes a virtual environment, pip included and some packages left out; returns its folder of programs."""
    folder = Path(folder)
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    others = folder / "dependencies"
    others.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(place).iterdir():
            # Of ours there is what pip goes by, and the file that names the checkout.
            name = path.name.partition("-")[0]
            if "ari_registry" not in name and name not in without and not (others / path.name).exists():
                (others / path.name).symlink_to(path)
    (site / "dependencies.pth").write_text(f"{others}\n")
    return folder / "bin"
