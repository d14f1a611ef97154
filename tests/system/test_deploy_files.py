"""The files of scripts/registry that a container engine reads: they fit together, and what can run here runs."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import httpx2
import pytest
import yaml
from support.environments import OFFLINE, make_environment
from support.registry import eventually, free_port

from ari_server.config import load_config

pytestmark = pytest.mark.in_ci
ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "scripts" / "registry"
NGINX = (REGISTRY / "nginx.conf").read_text()
DEFAULTED = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")


def instructions():
    """The Dockerfile's, as pairs of a word and the rest."""
    lines = (line for line in (REGISTRY / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line]


def stages():
    found = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def the(word, given=None):
    (found,) = [rest for name, rest in given or stages()[-1] if name == word]
    return found


def sections():
    """The definition's, by name."""
    lines = (REGISTRY / "ari-registry.def").read_text().splitlines()
    found, name = {}, ""
    for line in lines:
        if line.startswith("%"):
            name = line[1:]
        elif not line.startswith("#"):
            found.setdefault(name, []).append(line.strip())
    return {name: [line for line in lines if line] for name, lines in found.items()}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((REGISTRY / "docker-compose.yml").read_text())


def filled(value, **given):
    """Fills in `${VARIABLE:-default}` as compose does."""
    return DEFAULTED.sub(lambda match: given.get(match[1]) or match[2], value)


def source_files():
    """What the image is made of."""
    return {name for word, rest in stages()[0] if word == "COPY" for name in rest.split()[:-1]}


class Scratch:
    """A place that stands for the inside of an image: absolute paths of the commands end up in it."""

    def __init__(self, folder):
        self.root = folder / "image"
        self.root.mkdir()
        self.bin = make_environment(folder / "venv")
        self.environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(folder), **OFFLINE}

    def inside(self, text):
        return re.sub(r"(?<![\w.:/])/(src|wheels|data)\b", rf"{self.root}/\1", text)

    def run(self, script, cwd="."):
        done = subprocess.run(
            ["sh", "-euc", self.inside(script)],
            cwd=self.root / cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def copy(self, names, folder):
        for name in names:
            origin, target = ROOT / name, self.root / folder / name
            if origin.is_dir():
                shutil.copytree(origin, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(origin, target)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The Dockerfile's commands, run one after the other."""
    scratch = Scratch(tmp_path_factory.mktemp("image"))
    skipped = []
    for stage in stages():
        at = "."
        for word, rest in stage:
            match word:
                case "WORKDIR":
                    at = rest.lstrip("/")
                    (scratch.root / at).mkdir(exist_ok=True)
                case "COPY" if not rest.startswith("--from=build"):
                    *names, target = rest.split()
                    assert target in (".", "./", *names)
                    scratch.copy(names, at)
                case "RUN" if "useradd" in rest:
                    skipped.append(rest)
                case "RUN":
                    scratch.run(rest, at)
                case "ENV":
                    scratch.environment |= dict(pair.split("=", 1) for pair in shlex.split(scratch.inside(rest)))
    assert len(skipped) == 1
    return scratch


def health(scratch, port):
    """Runs the image's health check."""
    _, _, command = the("HEALTHCHECK").partition("CMD ")
    command = [part.replace(":8290", f":{port}") for part in json.loads(command)]
    return subprocess.run(
        command, env=scratch.environment, capture_output=True, check=False, timeout=60
    ).returncode


def serve(scratch, command, **more):
    """Runs what a container runs, at a port that is free, until it is healthy; then ends it as an engine does."""
    port = free_port()
    # Nobody outside may reach what a test starts.
    command = [{"0.0.0.0": "127.0.0.1", "8290": str(port)}.get(part, part) for part in command]  # noqa: S104
    assert {"127.0.0.1", str(port)} <= set(command)
    assert health(scratch, port) != 0
    environment = {**scratch.environment, **more, "TMPDIR": str(scratch.root)}
    with subprocess.Popen(command, env=environment, cwd=scratch.root, start_new_session=True) as server:
        try:
            assert eventually(lambda: server.poll() is not None or health(scratch, port) == 0)
            assert server.poll() is None
            answer = httpx2.get(f"http://127.0.0.1:{port}/version", trust_env=False)
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
    return answer.json()


class TestDockerfile:
    def test_its_commands_make_something_that_serves(self, image):
        assert serve(image, json.loads(the("CMD")))["service"] == "ari-registry"
        assert (image.root / "data" / "tokens.db").exists()
        code = [image.bin / "python", "-c", "import ari_server; print(ari_server.__file__)"]
        assert str(image.bin.parent) in subprocess.run(code, capture_output=True, text=True, check=True).stdout

    def test_what_compose_starts_serves_too(self, image, compose):
        service = compose["services"]["registry"]
        environment = {name: filled(value) for name, value in service["environment"].items()}
        assert serve(image, [filled(part) for part in service["command"]], **environment)

    def test_nothing_runs_as_root_and_the_user_owns_the_data(self):
        user = the("USER")
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
        words = [word for word, _ in stages()[-1]]
        assert words.index("USER") > max(n for n, word in enumerate(words) if word == "RUN")
        (making,) = [rest for word, rest in stages()[-1] if word == "RUN" and "useradd" in rest]
        assert {f"--gid {user.partition(':')[2]}", f"--uid {user.partition(':')[0]}"} <= set(
            re.findall(r"--[gu]id \d+", making)
        )
        assert "install -d -o ari -g ari -m 0700 /data" in making
        assert the("VOLUME") == "/data"
        assert "ARI_REGISTRY_DATA=/data" in the("ENV")

    def test_the_builder_is_sent_what_is_copied_and_nothing_else(self):
        lines = (REGISTRY / "Dockerfile.dockerignore").read_text().splitlines()
        rules = [line for line in lines if not line.startswith("#")]
        assert rules[0] == "*"
        assert {line[1:] for line in rules if line.startswith("!")} == source_files()
        assert all((ROOT / name).exists() for name in source_files())
        assert not {"ADD", "ARG"} & {word for word, _ in instructions()}


class TestDefinition:
    def test_its_commands_install_the_program(self, tmp_path):
        scratch = Scratch(tmp_path)
        pairs = [line.split() for line in sections()["files"]]
        assert all(target == f"/src/{name}" for name, target in pairs)
        scratch.copy([name for name, _ in pairs], "src")
        scratch.run("\n".join(sections()["post"]))
        assert list(scratch.root.iterdir()) == []
        scratch.run("\n".join(sections()["test"]))

    def test_it_is_made_of_the_same_as_the_other_image(self):
        assert {line.split()[0] for line in sections()["files"]} == source_files()
        assert f"From: {the('FROM')}" in sections()[""]


class TestCompose:
    def test_every_container_is_confined(self, compose):
        assert set(compose["services"]) == {"registry", "nginx"}
        for service in compose["services"].values():
            assert service["user"] == the("USER")
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)

    def test_nginx_waits_for_a_healthy_server_and_both_are_watched(self, compose):
        assert compose["services"]["nginx"]["depends_on"]["registry"]["condition"] == "service_healthy"
        assert the("HEALTHCHECK")
        test = compose["services"]["nginx"]["healthcheck"]["test"]
        assert test[0] == "CMD"
        listen = re.findall(r"\n        listen (\d+);", NGINX)
        assert test[-1] == f"http://127.0.0.1:{listen[0]}/healthz"

    def test_all_files_it_names_are_here(self, compose):
        build = compose["services"]["registry"]["build"]
        context = REGISTRY / build["context"]
        assert context.resolve() == ROOT
        assert (context / build["dockerfile"]).samefile(REGISTRY / "Dockerfile")
        mounts = [mount.split(":") for service in compose["services"].values() for mount in service["volumes"]]
        files = [mount for mount in mounts if mount[0].startswith((".", "/", "~", "$"))]
        assert files == [["./nginx.conf", "/etc/nginx/nginx.conf", "ro"]]
        assert {mount[0] for mount in mounts} - {"./nginx.conf"} == set(compose["volumes"])
        assert "env_file" not in (REGISTRY / "docker-compose.yml").read_text()

    def test_only_the_server_can_write_its_data(self, compose):
        assert compose["services"]["registry"]["volumes"] == [f"data:{the('VOLUME')}"]
        assert f"data:{the('VOLUME')}:ro" in compose["services"]["nginx"]["volumes"]

    def test_every_variable_has_a_value_and_nothing_is_reachable_from_outside_by_itself(self, compose):
        text = (REGISTRY / "docker-compose.yml").read_text()
        assert text.count("${") == len(DEFAULTED.findall(text))
        (ports,) = compose["services"]["nginx"]["ports"]
        assert filled(ports).startswith("127.0.0.1:")
        assert "ports" not in compose["services"]["registry"]

    def test_the_server_understands_its_settings_and_nginx_agrees(self, compose):
        service = compose["services"]["registry"]
        environment = {name: filled(value) for name, value in service["environment"].items()}
        config = load_config({**environment, "ARI_REGISTRY_DATA": "/data"})
        assert f"location {config.accel}/ {{\n            internal;\n            alias /data/artifacts/;" in NGINX
        port = service["command"][service["command"].index("--port") + 1]
        assert port == the("EXPOSE")
        assert f"server registry:{port};" in NGINX

    @pytest.mark.needs("nginx")
    def test_nginx_accepts_its_command_and_file(self, compose, tmp_path):
        service = compose["services"]["nginx"]
        assert service["tmpfs"] == ["/tmp:mode=1777"]  # noqa: S108 - where -p points to
        # There is no host of that name here.
        (tmp_path / "nginx.conf").write_text(NGINX.replace("server registry:", "server 127.0.0.1:"))
        places = {"/etc/nginx/nginx.conf": str(tmp_path / "nginx.conf"), "/tmp/": f"{tmp_path}/"}  # noqa: S108
        command = [places.get(part, part) for part in service["entrypoint"]]
        assert set(places.values()) <= set(command)
        environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
        done = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert "warn" not in done.stderr
        written = {path.name for path in tmp_path.iterdir()} - {"nginx.conf"}
        assert written == {"nginx.pid", "client_body", "proxy", "fastcgi", "uwsgi", "scgi"}


def test_no_file_leads_to_a_deprecated_folder():
    for path in REGISTRY.iterdir():
        assert "registry-data" not in path.read_text(), path


def test_nothing_that_the_readme_shows_is_missing():
    text = (REGISTRY / "README.md").read_text()
    named = set(re.findall(r"\]\(([^)#]+)\)", text))
    assert named >= {"start_local.sh", "docker-compose.yml", "nginx.conf", "start_singularity.sh", "Dockerfile"}
    assert all((REGISTRY / name).exists() for name in named)
    assert all((ROOT / "tests/system" / name).exists() for name in re.findall(r"`(test_\w+\.py)`", text))
