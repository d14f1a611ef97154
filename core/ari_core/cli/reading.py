"""Commands for readers: clone, verify, show."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from ari_core.cli import options, output
from ari_core.errors import case_of
from ari_core.names import quoted

_LISTED: Final = 20
ANCHORS: Final = {
    "paper": "compared with the digest you gave",
    "record": "compared with the publish record, not with a paper",
    "archive-id": "compared with the archive id in the ref, NOT with a paper",
    "none": "self-consistent, NOT compared with a paper",
}


@click.command()
@options.ref
@click.argument("dest", metavar="[DEST]", required=False, type=options.PATH)
@click.option(
    "--mirror", "mirrors", metavar="REF", multiple=True, help="Another copy, for when REF fails; repeatable."
)
@options.expect_sha256
@options.require_digest
@click.option("--no-extract", is_flag=True, help="Store the verified archive itself.")
@options.reading
@options.json
def clone(
    ref: str,
    dest: Path | None,
    pairs: tuple[str, ...],
    *,
    mirrors: tuple[str, ...],
    expect_sha256: str | None,
    require_digest: bool,
    no_extract: bool,
    registry: str | None,
    token: str | None,
    token_file: str | None,
    max_download: str | None,
) -> None:
    """Get a copy and unpack it only if all of it verifies.

    REF is where the copy is: a path, file:///…, https://…, ari://ID, or what an installed backend knows.
    DEST must be absent or an empty folder; by default it is named after REF, here.

    With a digest, a copy that fails is skipped for the next: those of --mirror, of the record if REF is a
    checkpoint, of `mirrors` in the configuration file. Settings (-o, --token, …) are for REF only.

    \b
    Examples:
      ari clone bundle.tar.gz --expect-sha256 3672addf…6448
      ari clone https://example.org/bundle.tar.gz study --expect-sha256 3672addf…6448
      ari clone bundle.tar.gz copy.tar.gz --no-extract
    """
    from ari_core.workflows.clone import clone as run

    settings = options.settings(
        pairs, registry=registry, token=token, token_file=token_file, max_download=max_download
    )
    with output.progress() as progress:
        done = run(
            ref,
            dest,
            mirrors=mirrors,
            expect_sha256=expect_sha256,
            require_digest=require_digest,
            extract=not no_extract,
            options=settings,
            progress=progress,
            warn=output.warn,
        )
    output.result(
        {
            "ref": done.ref,
            "dest": str(done.dest),
            "bundle_sha256": done.bundle_sha256,
            "archive_sha256": done.archive_sha256,
            "file_count": done.file_count,
            "total_size": done.total_size,
            "extracted": done.extracted,
            "anchored_by": done.anchored_by,
            "skipped": [asdict(copy) for copy in done.skipped],
        },
        f"Verified: {amount(done.file_count, done.total_size)}, {ANCHORS[done.anchored_by]}.",
        f"  bundle digest  {done.bundle_sha256}",
        *([f"  read           {done.ref}"] if done.skipped else []),
        f"  {'unpacked to' if done.extracted else 'stored as':<13}  {done.dest}",
    )
    advise(done.anchored_by, done.ref, done.beside)


@click.command()
@options.ref
@options.expect_sha256
@options.require_digest
@click.option(
    "--ignore-os-files",
    is_flag=True,
    help="In a folder, overlook .DS_Store, __pycache__ and the like, whatever they hold (docs/format.md).",
)
@options.reading
@options.json
def verify(
    ref: str,
    pairs: tuple[str, ...],
    *,
    expect_sha256: str | None,
    require_digest: bool,
    ignore_os_files: bool,
    registry: str | None,
    token: str | None,
    token_file: str | None,
    max_download: str | None,
) -> int:
    """Read all of a copy and list what does not agree.

    REF is where the copy is: a path, file:///…, https://…, ari://ID, or what an installed backend knows.

    \b
    Examples:
      ari verify bundle.tar.gz --expect-sha256 3672addf…6448
      ari verify ~/study --ignore-os-files
      ari verify https://example.org/bundle.tar.gz --json
    """
    from ari_core.workflows.verify import verify as run

    settings = options.settings(
        pairs, registry=registry, token=token, token_file=token_file, max_download=max_download
    )
    with output.progress() as progress:
        found = run(
            ref,
            expect_sha256=expect_sha256,
            require_digest=require_digest,
            ignore_os_files=ignore_os_files,
            options=settings,
            progress=progress,
            warn=output.warn,
        )
    data: dict[str, Any] = {
        "ok": found.ok,
        "ref": found.ref,
        "form": found.form,
        "bundle_sha256": found.bundle_sha256,
        "archive_sha256": found.archive_sha256,
        "file_count": found.file_count,
        "total_size": found.total_size,
        "anchored_by": found.anchored_by,
        "problems": [{"kind": p.kind, "path": p.path, "detail": p.detail} for p in found.problems],
    }
    if found.ok:
        output.result(
            data,
            f"OK: {amount(found.file_count, found.total_size)}, {ANCHORS[found.anchored_by]}.",
            f"  bundle digest  {found.bundle_sha256}",
            f"  read           {found.ref}",
        )
        advise(found.anchored_by, found.ref, found.beside)
        return 0
    lines = [f"  {p.kind:<8} {p.path + ': ' if p.path else ''}{p.detail}" for p in found.problems[:_LISTED]]
    if len(found.problems) > _LISTED:
        lines.append(f"  … and {len(found.problems) - _LISTED} more; --json lists all")
    hint = found.error.hint if found.error else None
    output.result(data, f"DOES NOT VERIFY: {found.ref}", *lines, *([f"hint: {hint}"] if hint else []))
    return case_of(found.error).exit_code if found.error else 1


@click.command()
@options.ref
@options.reading
@options.json
def show(
    ref: str,
    pairs: tuple[str, ...],
    *,
    registry: str | None,
    token: str | None,
    token_file: str | None,
    max_download: str | None,
) -> None:
    """Show what a copy holds, without unpacking it.

    REF is where the copy is: a path, file:///…, https://…, ari://ID, or what an installed backend knows.

    \b
    Examples:
      ari show bundle.tar.gz
      ari show bundle.tar.gz --json | jq -r '.files[].path'
    """
    from ari_core.workflows.verify import show as run

    settings = options.settings(
        pairs, registry=registry, token=token, token_file=token_file, max_download=max_download
    )
    with output.progress() as progress:
        found = run(ref, options=settings, progress=progress, warn=output.warn)
    manifest = found.manifest
    output.result(
        {
            "ref": found.ref,
            "form": found.form,
            "bundle_sha256": manifest.bundle_sha256,
            "archive_sha256": found.archive_sha256,
            "archive_size": found.archive_size,
            "file_count": len(manifest.files),
            "total_size": manifest.total_size,
            "excluded_count": manifest.excluded_count,
            "publish": manifest.publish,
            "files": [entry._asdict() for entry in manifest.files],
        },
        f"{found.ref}",
        f"  bundle digest   {manifest.bundle_sha256}",
        *([f"  archive digest  {found.archive_sha256}"] if found.archive_sha256 else []),
        f"  form            {found.form}",
        f"  files           {len(manifest.files)}, {output.size(manifest.total_size)}",
        *(f"  {key:<15} {value}" for key, value in manifest.publish.items() if isinstance(value, str)),
        *(f"  {entry.size:>12}  {quoted(entry.path)[1:-1]}" for entry in manifest.files),
    )


def amount(files: int, size: int) -> str:
    """Returns how much a bundle holds, for people."""
    return f"{output.files(files)}, {output.size(size)}"


def advise(anchored_by: str, ref: str, beside: Path | None) -> None:
    """Warns of what a check did not cover."""
    if beside is not None:
        output.warn(f"only {ref} was checked, NOT the other files in {beside}")
    if anchored_by in {"none", "archive-id"}:
        output.warn("to know that this is the paper's bundle, give --expect-sha256 with the digest printed there")
