"""The whole path on trees nobody here wrote: source distributions of well-known packages, each used as `ear/`.

What `ari` says about them is compared with what GNU tar, sha256sum, find and diff say, and with Python's tarfile.
"""

import hashlib
import json
import os
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.run import ARI, ari, ari_json, error_of

pytestmark = pytest.mark.needs("tar", "sha256sum", "find", "diff")

CACHE = Path(__file__).parents[2] / ".cache" / "sdists"
NAMES = ["pyyaml", "attrs", "packaging", "idna", "pluggy"]

# The deny rules that a source tree is likely to meet one day, in the words of tar.
AS_TAR_SAYS_IT = ["--ignore-case", "--no-anchored", "--wildcards", "--wildcards-match-slash"]
KEPT_BACK = [".env", ".env.*", "secrets/*", "*.pem", "*.key", "id_rsa", "id_ed25519", ".npmrc", ".git", ".ari"]


def run(*command, cwd=None, umask=-1):
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        umask=umask,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def sha256sums(folder):
    """Returns the SHA-256 of every regular file below a folder, by path, as sha256sum tells it."""
    lines = run("find", ".", "-type", "f", "-exec", "sha256sum", "--zero", "{}", "+", cwd=folder).split("\0")[:-1]
    return {line[66:].removeprefix("./"): line[:64] for line in lines}


def sizes(folder):
    found = run("find", ".", "-type", "f", "-printf", r"%s %P\0", cwd=folder).split("\0")[:-1]
    return {path: int(size) for size, path in (entry.split(" ", 1) for entry in found)}


def executables(folder):
    return set(run("find", ".", "-type", "f", "-perm", "-u=x", "-printf", r"%P\0", cwd=folder).split("\0")[:-1])


def differences(one, other):
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", one, other], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout.splitlines()


def unpack(archive, folder, *options, umask=-1):
    folder.mkdir(parents=True)
    as_the_umask_says = ["--no-same-owner", "--no-same-permissions"]  # root would get what the archive says
    run("tar", *options, *as_the_umask_says, "-xzf", archive, "-C", folder, umask=umask)
    return folder


def source_distribution(name):
    found = sorted(path for path in CACHE.glob("*.tar.gz") if path.name.lower().startswith(f"{name}-"))
    if not found:
        message = f"no source distribution of {name} in .cache/sdists: run scripts/test, which fetches them"
        pytest.fail(message) if os.environ.get("ARI_TEST_REQUIRE") == "all" else pytest.skip(message)
    return found[-1]


def checkpoint_of(sdist, folder, *options, umask=-1):
    """Makes a checkpoint whose `ear/` is the source tree and a policy that asks for all of it."""
    unpack(sdist, folder / "ear", "--strip-components=1", *options, umask=umask)
    (folder / "ear" / "publish.yaml").write_text("include: ['**']\n")
    return folder


class World:
    """`ari` in an environment that is nobody's own, for fixtures that outlive one test."""

    def __init__(self, home):
        self.env = {"PATH": f"{Path(ARI).parent}:{os.defpath}", "HOME": str(home)}

    def ari(self, *arguments):
        status, said = ari_json(*arguments, env=self.env)
        assert status == 0, said
        return said


@pytest.fixture(scope="module", params=NAMES)
def real(request, tmp_path_factory):
    """One tree that was curated, published, and cloned by its digest."""
    sdist = source_distribution(request.param)
    top = tmp_path_factory.mktemp(request.param)
    world = World(top)
    left_out = [f"--exclude={rule}" for rule in KEPT_BACK]
    expected = unpack(sdist, top / "expected", "--strip-components=1", *AS_TAR_SAYS_IT, *left_out)
    run("find", expected, "-type", "d", "-empty", "-delete")  # a bundle holds files only
    checkpoint = checkpoint_of(sdist, top / "checkpoint")
    curated = world.ari("ear", "curate", checkpoint)
    published = world.ari("ear", "publish", checkpoint, "--backend", "local-tarball")
    digest = published["bundle_sha256"]
    cloned = world.ari("clone", published["ref"], top / "clone", "--expect-sha256", digest)
    return SimpleNamespace(
        sdist=sdist,
        top=top,
        world=world,
        expected=expected,
        checkpoint=checkpoint,
        curated=curated,
        published=published,
        digest=digest,
        cloned=cloned,
        clone=top / "clone",
        bundle=checkpoint / "bundle.tar.gz",
        manifest=json.loads((top / "clone" / "manifest.lock").read_bytes()),
    )


def test_manifest_says_what_sha256sum_says(real):
    assert len(real.manifest["files"]) > 20
    assert {file["path"]: file["sha256"] for file in real.manifest["files"]} == sha256sums(real.expected)
    assert {file["path"]: file["size"] for file in real.manifest["files"]} == sizes(real.expected)
    assert real.curated["included_files"] == sorted(sha256sums(real.expected))
    all_but_the_policy = len(sha256sums(real.checkpoint / "ear")) - 1
    assert real.manifest["excluded_count"] == all_but_the_policy - len(real.manifest["files"])


def test_digest_can_be_computed_without_this_program(real):
    size = sizes(real.expected)
    files = [
        {"path": path, "sha256": sha, "size": size[path]}
        for path, sha in sorted(sha256sums(real.expected).items())
    ]
    canonical = {"version": 1, "files": files}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert {real.manifest["bundle_sha256"], real.curated["bundle_sha256"], real.digest} == {digest}
    assert (real.cloned["bundle_sha256"], real.cloned["anchored_by"]) == (digest, "paper")


def test_clone_is_the_source_tree(real):
    assert differences(real.expected, real.clone) == [f"Only in {real.clone}: manifest.lock"]
    assert executables(real.clone) == executables(real.expected)


def test_tar_lists_and_unpacks_what_the_manifest_says(real):
    listed = run("tar", "--quoting-style=literal", "-tzf", real.bundle).splitlines()
    assert listed == ["manifest.lock", *sorted(sha256sums(real.expected))]
    unpacked = unpack(real.bundle, real.top / "by-tar")
    assert differences(unpacked, real.clone) == []
    assert executables(unpacked) == executables(real.expected)


def test_python_reads_the_same_archive(real):
    with tarfile.open(real.bundle) as archive:
        members = archive.getmembers()
        assert all(member.isreg() for member in members)
        found = {m.name: hashlib.sha256(archive.extractfile(m).read()).hexdigest() for m in members}
    assert len(found) == len(members)
    assert found == sha256sums(real.clone)
    runs = executables(real.expected)
    assert {m.name: m.mode for m in members} == {name: 0o755 if name in runs else 0o644 for name in found}
    # Nothing of the machine or of the author is in it.
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 0)}


def test_same_tree_elsewhere_gives_the_same_archive(real):
    # Another place, other times and another umask: another author, in short.
    twin = checkpoint_of(real.sdist, real.top / "twin", "--touch", umask=0o077)
    real.world.ari("ear", "curate", twin)
    published = real.world.ari("ear", "publish", twin, "--backend", "local-tarball", "-o", f"out={real.top}/shelf")
    sums = {run("sha256sum", archive)[:64] for archive in (real.bundle, real.top / "shelf" / "bundle.tar.gz")}
    assert sums == {published["archive_sha256"]}
    assert real.published["archive_sha256"] == real.cloned["archive_sha256"] == published["archive_sha256"]


def test_publishing_again_changes_nothing(real):
    before = real.bundle.stat()
    again = real.world.ari("ear", "publish", real.checkpoint, "--backend", "local-tarball")
    assert (again["created"], again["archive_sha256"]) == (False, real.published["archive_sha256"])
    assert (real.bundle.stat().st_ino, real.bundle.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_copy_repacked_by_a_reader_still_verifies(real):
    repacked = real.top / "repacked.tgz"
    run("tar", "-czf", repacked, "-C", real.top, "clone")
    verified = real.world.ari("verify", repacked, "--expect-sha256", real.digest)
    assert (verified["ok"], verified["problems"], verified["file_count"]) == (
        True,
        [],
        len(real.manifest["files"]),
    )


def test_one_changed_byte_in_the_unpacked_tree_is_named(real):
    victim = max(real.manifest["files"], key=lambda file: file["size"])["path"]
    edited = real.top / "edited"
    run("cp", "-a", real.clone, edited)
    contents = bytearray((edited / victim).read_bytes())
    contents[len(contents) // 2] ^= 1
    (edited / victim).write_bytes(contents)
    status, said = ari_json("verify", edited, "--expect-sha256", real.digest, env=real.world.env)
    assert (status, said["ok"]) == (1, False)
    assert [(problem["kind"], problem["path"]) for problem in said["problems"]] == [("differs", victim)]


def test_what_must_stay_at_home_changes_neither_digest_nor_clone(tmp_path):
    # pluggy's tree has .github, .gitattributes and .gitignore, which are not .git and have to stay in.
    checkpoint = checkpoint_of(source_distribution("pluggy"), tmp_path / "checkpoint")
    ear = checkpoint / "ear"
    _, clean = ari_json("ear", "curate", checkpoint)
    for path in [
        ".env",
        "src/.env.local",
        "docs/SECRETS/list",
        "id_rsa",
        "testing/ca.PEM",
        ".git/config",
        ".ari/x",
    ]:
        (ear / path).parent.mkdir(exist_ok=True)
        (ear / path).write_text("stays at home\n")
    (ear / ".git" / "HEAD").write_text("a folder that is not looked into counts once\n")
    (ear / "empty").mkdir()
    status, said = ari_json("ear", "curate", checkpoint)
    assert (status, said["excluded_count"] - clean["excluded_count"]) == (0, 7)
    assert (said["bundle_sha256"], said["included_files"]) == (clean["bundle_sha256"], clean["included_files"])
    assert {".gitignore", ".gitattributes", ".github/FUNDING.yml"} <= set(said["included_files"])
    assert [entry["path"] for entry in said["skipped"]] == ["empty"]


def test_source_distribution_itself_is_not_taken_for_a_bundle(tmp_path):
    done = ari("clone", source_distribution("attrs"), tmp_path / "copy")
    assert done.returncode == 1
    assert "manifest.lock" in error_of(done)[0]
    assert list(tmp_path.iterdir()) == []
