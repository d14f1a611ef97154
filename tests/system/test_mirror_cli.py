"""`ari mirror`, `ari ear publish --also` and copies in `ari ear promote`, as scripts and people meet them."""

import os
import re
import shutil

import pytest
from support.run import ari, ari_json, error_of
from support.zenodo import Zenodo

from ari_core import curate, publish
from ari_core.record import read_record

POLICY = """
include: [code/**, CITATION.cff]
license: MIT
visibility: public
zenodo: {title: Falling bodies, creators: [{name: "Lovelace, Ada"}]}
"""


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A published one, and a folder beside it to work in."""
    folder = tmp_path / "run"
    (folder / "ear" / "code").mkdir(parents=True)
    (folder / "ear" / "code" / "run.py").write_text("print(1)\n")
    (folder / "ear" / "publish.yaml").write_text(POLICY)
    curate(folder)
    publish(folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.fixture
def service(tmp_path):
    with Zenodo(tmp_path / "zenodo", prefix="10.5072") as found:
        yield found


def environment(service, **more):
    names = {"ARI_ZENODO_BASE_URL": service.url, "ZENODO_TOKEN": service.token}
    return {**os.environ, **names, **more}


def test_some_of_several_is_exit_status_6_and_one_object_tells_of_all(checkpoint, tmp_path):
    arguments = ["--to", "local-tarball", "--to", "filesystem-registry"]
    arguments += ["-o", f"local-tarball.out={tmp_path}/usb", "-o", f"filesystem-registry.root={tmp_path}/no/such"]
    status, told = ari_json("mirror", checkpoint, *arguments)
    assert status == 6
    good, bad = told["copies"]
    assert (good["to"], good["created"], good["recorded"], good["error"]) == ("local-tarball", True, True, None)
    assert (bad["to"], bad["ref"], bad["error"]["kind"]) == ("filesystem-registry", None, "invalid-configuration")
    assert told["checkpoint"] == str(checkpoint)
    assert told["anchored_by"] == "record"
    done = ari("mirror", checkpoint, *arguments)
    assert done.returncode == 6
    assert "Already at 'local-tarball', unchanged" in done.stdout
    assert re.search(r"FAILED 'filesystem-registry'\n  why            .*/no'\n  next           ", done.stdout)
    assert error_of(done)[0].startswith("1 of 2 copies failed: filesystem-registry: ")


def test_a_hint_names_the_store_whose_setting_it_is_about(checkpoint, tmp_path):
    arguments = ["--to", "local-tarball", "--to", "filesystem-registry", "-o", f"local-tarball.out={tmp_path}/usb"]
    done = ari("mirror", checkpoint, *arguments)
    assert done.returncode == 6
    assert "  next           give -o filesystem-registry.root=DIR, or set ARI_FILESYSTEM_REGISTRY" in done.stdout


def test_a_copy_of_itself_is_no_copy(checkpoint):
    done = ari("mirror", checkpoint, "--to", "local-tarball", "-o", f"out={checkpoint}")
    assert done.returncode == 0
    assert "NO further copy: what was read is itself at 'local-tarball'" in done.stdout
    assert "noted in" not in done.stdout
    assert "Already" not in done.stdout


def test_what_does_not_verify_is_exit_status_1_and_leaves_nothing(checkpoint, tmp_path):
    bundle = checkpoint / "bundle.tar.gz"
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    status, told = ari_json("mirror", bundle, "--to", "local-tarball", "-o", f"out={tmp_path}/usb")
    assert (status, list(told)) == (1, ["error"])
    assert not (tmp_path / "usb" / "bundle.tar.gz").exists()


def test_a_setting_for_nobody_is_explained(checkpoint):
    done = ari("mirror", checkpoint, "--to", "local-tarball", "--to", "s3", "-o", "bucket=lab")
    assert done.returncode == 2
    assert error_of(done) == (
        "'bucket': for which of the stores is this setting?",
        "one of: local-tarball.bucket, s3.bucket",
    )


def test_a_copy_that_fails_does_not_undo_the_publication(checkpoint, tmp_path):
    first = read_record(checkpoint)
    options = ["-o", f"filesystem-registry.root={tmp_path}/group"]
    (tmp_path / "group").write_text("in the way")
    arguments = ["ear", "publish", checkpoint, "--also", "filesystem-registry", *options]
    status, told = ari_json(*arguments)
    assert status == 6
    assert told["ref"] == first.ref
    assert told["also"][0]["error"]["message"]
    (tmp_path / "group").unlink()
    (tmp_path / "group").mkdir()
    status, told = ari_json(*arguments)
    assert (status, told["also"][0]["created"], len(told["copies"])) == (0, True, 1)


def test_from_a_laboratory_to_zenodo_and_on_when_the_laboratory_has_closed(checkpoint, service, tmp_path):
    """The whole life: a draft with a DOI for the paper, the folder gone, the draft published, cloned by DOI."""
    settings = environment(service)
    status, told = ari_json("mirror", checkpoint, "--to", "zenodo", env=settings)
    assert status == 0, told
    (copy,) = told["copies"]
    assert (copy["visibility"], copy["created"]) == ("staged", True)
    assert list(service.state().records) == []
    assert len(service.state().drafts) == 1
    (checkpoint / "bundle.tar.gz").unlink()
    done = ari("ear", "promote", checkpoint, env=settings)
    assert done.returncode == 6, done.stderr
    assert "FAILED" in done.stdout
    assert error_of(done)[0].startswith("1 of 2 places failed: file:///")
    assert len(service.state().records) == 1
    shutil.rmtree(checkpoint)
    reader = {**os.environ, "ARI_ZENODO_BASE_URL": service.url}
    done = ari("clone", copy["ref"], tmp_path / "copy", "--expect-sha256", told["bundle_sha256"], env=reader)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "code" / "run.py").read_text() == "print(1)\n"


def test_an_interrupted_copy_is_shown_and_goes_on_in_the_same_draft(checkpoint, service):
    fault = service.faults.add("403", "PUT .*/bundle.tar.gz/content", times=None)
    settings = environment(service)
    done = ari("mirror", checkpoint, "--to", "zenodo", env=settings)
    assert done.returncode == 4, done.stderr
    assert fault.done
    (draft,) = service.state().drafts
    assert draft in read_record(checkpoint).pending_copies[0]["locator"]
    assert "a copy to 'zenodo': run `ari mirror` again" in ari("ear", "status", checkpoint).stdout
    service.faults.clear()
    assert ari("mirror", checkpoint, "--to", "zenodo", env=settings).returncode == 0
    assert list(service.state().drafts) == [draft]
    assert read_record(checkpoint).pending_copies == []


def test_a_draft_that_was_begun_or_is_staged_can_be_got_rid_of(checkpoint, service):
    settings = environment(service)
    service.faults.add("403", "PUT .*/bundle.tar.gz/content", times=None)
    assert ari("ear", "publish", checkpoint, "--backend", "zenodo", env=settings).returncode == 4
    (draft,) = service.state().drafts
    assert "or `ari ear delete`" in ari("ear", "status", checkpoint).stdout
    service.faults.clear()
    assert ari("ear", "publish", checkpoint).returncode == 0  # elsewhere
    done = ari("ear", "delete", checkpoint, "--copy", "zenodo", "--yes", env=settings)
    assert done.returncode == 0, done.stderr
    assert f"{draft}, which was only begun" in done.stdout
    assert service.state().drafts == {}
    assert ari("mirror", checkpoint, "--to", "zenodo", env=settings).returncode == 0
    assert len(service.state().drafts) == 1
    done = ari("ear", "delete", checkpoint, "--yes", env=settings)
    assert "  still at zenodo+http://" in done.stdout
    done = ari("ear", "delete", checkpoint, "--yes", env=settings)
    assert done.returncode == 3
    assert "only copies are left: zenodo+http://" in error_of(done)[0]
    status, gone = ari_json("ear", "delete", checkpoint, "--all", "--yes", env=settings)
    assert (status, gone["copies"], gone["deleted"][0]["error"]) == (0, [], None)
    assert service.state().drafts == {}


def test_what_zenodo_needs_is_asked_for_in_a_dry_run(tmp_path, service):
    folder = tmp_path / "bare"
    (folder / "ear" / "code").mkdir(parents=True)
    (folder / "ear" / "code" / "run.py").write_text("print(1)\n")
    curate(folder)
    settings = environment(service)
    for more in (["--dry-run"], []):
        done = ari("ear", "publish", folder, "--backend", "zenodo", *more, env=settings)
        assert done.returncode == 2
        assert "title" in error_of(done)[0]
    publish(folder)
    for more in (["--dry-run"], []):
        done = ari("mirror", folder, "--to", "zenodo", *more, env=settings)
        assert done.returncode == 2
        assert "title" in error_of(done)[0]
    assert service.state().drafts == {}


def test_a_bundle_that_is_to_be_unlisted_can_be_kept_on_zenodo_staged(tmp_path, service):
    folder = tmp_path / "quiet"
    (folder / "ear" / "code").mkdir(parents=True)
    (folder / "ear" / "code" / "run.py").write_text("print(1)\n")
    (folder / "ear" / "publish.yaml").write_text(POLICY.replace("visibility: public", "visibility: unlisted"))
    curate(folder)
    publish(folder)
    settings = environment(service)
    status, told = ari_json("mirror", folder, "--to", "zenodo", env=settings)
    assert (status, told["copies"][0]["visibility"]) == (0, "staged")
    done = ari("ear", "promote", folder, env=settings)
    assert done.returncode == 0, done.stderr
    assert "no level 'unlisted'" in done.stdout
    assert len(service.state().drafts) == 1
