"""Declares the built-in backends through the same hooks a third party's package uses."""

from __future__ import annotations

from ari_backends._claims import (
    ari_registry_claims,
    filesystem_registry_claims,
    fsspec_claims,
    https_claims,
    s3_claims,
    zenodo_claims,
)
from ari_backends.ari_registry.places import configured
from ari_core.contract import BackendSpec, Claim, CommandGroupSpec
from ari_core.plugins import hookimpl


def local_tarball_claims(ref: str) -> Claim:
    """Claims any ``file:`` ref, and leaves a stored layout to whoever knows it better."""
    return Claim.SCHEME if ref[:5].lower() == "file:" else Claim.NO


@hookimpl
def ari_backends() -> list[BackendSpec]:
    """Describes the built-in backends."""
    return [
        BackendSpec(
            name="local-tarball",
            backend="ari_backends.local_tarball:LocalTarball",
            help="one bundle.tar.gz in a folder: the checkpoint, or -o out=DIR",
            claims=local_tarball_claims,
            api=1,
        ),
        BackendSpec(
            name="filesystem-registry",
            backend="ari_backends.filesystem_registry:FilesystemRegistry",
            help="many bundles in a shared folder, and a registry server's own store: -o root=DIR",
            claims=filesystem_registry_claims,
            api=1,
        ),
        BackendSpec(
            name="ari-registry",
            backend="ari_backends.ari_registry.backend:AriRegistry",
            help="a registry server: those in registries.yaml, or -o url=https://HOST",
            claims=ari_registry_claims,
            api=1,
            configured=configured,
        ),
        BackendSpec(
            name="s3",
            backend="ari_backends.s3.backend:S3",
            help="a bucket of any S3-compatible store: -o bucket=NAME -o endpoint_url=URL",
            claims=s3_claims,
            api=1,
            extra="ari-registry[s3]",
        ),
        BackendSpec(
            name="zenodo",
            backend="ari_backends.zenodo.backend:Zenodo",
            help="a record with a DOI on Zenodo, or another InvenioRDM: set ZENODO_TOKEN",
            claims=zenodo_claims,
            api=1,
        ),
        BackendSpec(
            name="https",
            backend="ari_backends.https:Https",
            help="read a bundle from any web server",
            claims=https_claims,
            api=1,
        ),
        BackendSpec(
            name="fsspec",
            backend="ari_backends.fsspec_url:FsspecUrl",
            help="read a bundle from any other place that fsspec knows: gs://, abfs://, sftp://, hdfs://, …",
            claims=fsspec_claims,
            api=1,
            extra="ari-registry[fsspec]",
        ),
    ]


@hookimpl
def ari_command_groups() -> list[CommandGroupSpec]:
    """Describes `ari config`."""
    return [
        CommandGroupSpec(
            name="config",
            app="ari_backends.ari_registry.cli:app",
            help="See and try which registries are configured.",
        )
    ]
