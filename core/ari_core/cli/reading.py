"""Commands for readers: clone, verify, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ari_core.cli import options, output
from ari_core.errors import case_of
from ari_core.names import quoted

_LISTED: Final = 20
_ANCHORS: Final = {
    "paper": "compared with the digest you gave",
    "record": "compared with the publish record, not with a paper",
    "archive-id": "compared with the archive id in the ref, NOT with a paper",
    "none": "self-consistent, NOT compared with a paper",
}


def clone(
    ref: options.Ref,
    dest: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DEST]",
            help="Where to put it; absent or an empty folder.  [default: named after REF]",
            show_default=False,
        ),
    ] = None,
    expect_sha256: options.ExpectSha256 = None,
    require_digest: options.RequireDigest = False,
    no_extract: Annotated[bool, typer.Option("--no-extract", help="Store the verified archive itself.")] = False,
    o: options.Settings = None,
    token: options.Token = None,
    token_file: options.TokenFile = None,
    max_download: options.MaxDownload = None,
    json: options.Json = False,
) -> None:
    r"""Get a copy and unpack it only if all of it verifies.

    \b
    Examples:
      ari clone bundle.tar.gz --expect-sha256 3672addf…6448
      ari clone https://example.org/bundle.tar.gz study --expect-sha256 3672addf…6448
      ari clone bundle.tar.gz copy.tar.gz --no-extract
    """
    from ari_core.workflows.clone import clone as run  # noqa: PLC0415 - other commands need not pay for it

    settings = options.settings(o, token=token, token_file=token_file, max_download=max_download)
    with output.progress() as progress:
        done = run(
            ref,
            dest,
            expect_sha256=expect_sha256,
            require_digest=require_digest,
            extract=not no_extract,
            options=settings,
            progress=progress,
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
        },
        f"Verified: {output.files(done.file_count)}, {output.size(done.total_size)}, {_ANCHORS[done.anchored_by]}.",
        f"  bundle digest  {done.bundle_sha256}",
        f"  {'unpacked to' if done.extracted else 'stored as'}    {done.dest}",
    )
    _advise(done.anchored_by)


def verify(
    ref: options.Ref,
    expect_sha256: options.ExpectSha256 = None,
    require_digest: options.RequireDigest = False,
    ignore_os_files: Annotated[
        bool,
        typer.Option(
            "--ignore-os-files", help="In a folder, overlook .DS_Store, __pycache__ and the like (docs/format.md)."
        ),
    ] = False,
    o: options.Settings = None,
    token: options.Token = None,
    token_file: options.TokenFile = None,
    max_download: options.MaxDownload = None,
    json: options.Json = False,
) -> int:
    r"""Read all of a copy and list what does not agree.

    \b
    Examples:
      ari verify bundle.tar.gz --expect-sha256 3672addf…6448
      ari verify ~/study --ignore-os-files
      ari verify https://example.org/bundle.tar.gz --json
    """
    from ari_core.workflows.verify import verify as run  # noqa: PLC0415 - other commands need not pay for it

    settings = options.settings(o, token=token, token_file=token_file, max_download=max_download)
    with output.progress() as progress:
        found = run(
            ref,
            expect_sha256=expect_sha256,
            require_digest=require_digest,
            ignore_os_files=ignore_os_files,
            options=settings,
            progress=progress,
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
        summary = f"{output.files(found.file_count)}, {output.size(found.total_size)}"
        output.result(
            data,
            f"OK: {summary}, {_ANCHORS[found.anchored_by]}.",
            f"  bundle digest  {found.bundle_sha256}",
            f"  read           {found.ref}",
        )
        _advise(found.anchored_by)
        return 0
    lines = [f"  {p.kind:<8} {p.path + ': ' if p.path else ''}{p.detail}" for p in found.problems[:_LISTED]]
    if len(found.problems) > _LISTED:
        lines.append(f"  … and {len(found.problems) - _LISTED} more; --json lists all")
    hint = found.error.hint if found.error else None
    output.result(data, f"DOES NOT VERIFY: {found.ref}", *lines, *([f"hint: {hint}"] if hint else []))
    return case_of(found.error).exit_code if found.error else 1


def show(
    ref: options.Ref,
    o: options.Settings = None,
    token: options.Token = None,
    token_file: options.TokenFile = None,
    max_download: options.MaxDownload = None,
    json: options.Json = False,
) -> None:
    r"""Show what a copy holds, without unpacking it.

    \b
    Examples:
      ari show bundle.tar.gz
      ari show bundle.tar.gz --json | jq -r '.files[].path'
    """
    from ari_core.workflows.verify import show as run  # noqa: PLC0415 - other commands need not pay for it

    settings = options.settings(o, token=token, token_file=token_file, max_download=max_download)
    with output.progress() as progress:
        found = run(ref, options=settings, progress=progress)
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


def _advise(anchored_by: str) -> None:
    if anchored_by in {"none", "archive-id"}:
        output.warn("to know that this is the paper's bundle, give --expect-sha256 with the digest printed there")
