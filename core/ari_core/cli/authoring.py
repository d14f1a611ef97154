"""Commands for authors: ``ari ear …`` and its alias ``ari publish``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_core.cli import options, output
from ari_core.names import quoted

if TYPE_CHECKING:
    from ari_core.record import Record
    from ari_core.workflows.publish import PublishResult

BackendName = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="A backend or a profile; `ari backends list` shows them.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, change nothing.")]


def curate(
    checkpoint: options.Checkpoint = None,
    show_files: Annotated[bool, typer.Option("--show-files", help="List every file that is published.")] = False,
    no_scan_secrets: Annotated[
        bool, typer.Option("--no-scan-secrets", help="Do not look for content that looks like a secret.")
    ] = False,
    json: options.Json = False,
) -> None:
    r"""Copy what may be published to ear_published/.

    \b
    Examples:
      ari ear curate
      ari ear curate run_42 --show-files
    """
    from ari_core.workflows.curate import curate as run  # noqa: PLC0415 - other commands need not pay for it

    with output.progress() as progress:
        done = run(checkpoint, scan_secrets=not no_scan_secrets, progress=progress)
    for warning in done.warnings:
        output.warn(warning)
    total = sum(entry.size for entry in done.files)
    left_out = f", {done.excluded_count} left out by rules" if done.excluded_count else ""
    output.result(
        {
            "ear_published_dir": str(done.ear_published_dir),
            "manifest_path": str(done.manifest_path),
            "bundle_sha256": done.bundle_sha256,
            "included_files": done.included_files,
            "excluded_count": done.excluded_count,
            "skipped": [{"path": path, "reason": reason} for path, reason in done.skipped],
            "warnings": list(done.warnings),
        },
        f"Curated {output.files(len(done.files))}, {output.size(total)}{left_out}.",
        *([f"  {entry.size:>12}  {quoted(entry.path)[1:-1]}" for entry in done.files] if show_files else []),
        *(f"  skipped        {quoted(path)}: {reason}" for path, reason in done.skipped),
        f"  curated to     {done.ear_published_dir}",
        f"  bundle digest  {done.bundle_sha256}",
    )


def publish(
    checkpoint: options.Checkpoint = None,
    backend: BackendName = None,
    o: options.Settings = None,
    visibility: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            help="Wished for in the end: staged, private-token, unlisted, public or embargoed-until:YYYY-MM-DD.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let it take the place of another bundle that is in the way.")
    ] = False,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Publish a bundle without files.")] = False,
    json: options.Json = False,
) -> None:
    r"""Pack what was curated and store it, staged.

    \b
    Examples:
      ari ear publish
      ari ear publish run_42 -o out=/media/usb
      ari ear publish --backend local-tarball --visibility public --dry-run
    """
    from ari_core.workflows.publish import publish as run  # noqa: PLC0415 - other commands need not pay for it

    with output.progress() as progress:
        done = run(
            checkpoint,
            backend=backend,
            options=options.settings(o),
            visibility=visibility,
            dry_run=dry_run,
            replace=replace,
            allow_empty=allow_empty,
            progress=progress,
        )
    for warning in done.warnings:
        output.warn(warning)
    output.result(
        {
            **_fields(done.record),
            "backend_reason": done.backend_reason,
            "created": done.created,
            "file_count": done.file_count,
            "latex": done.latex,
            "clone_command": done.clone_command,
            "warnings": list(done.warnings),
        },
        *_published(done),
    )


def _published(done: PublishResult) -> list[str]:
    record = done.record
    if done.dry_run:
        return [
            f"Dry run: would publish {done.file_count} files with '{record.backend}' ({done.backend_reason}).",
            f"  bundle digest  {record.bundle_sha256}",
            "  nothing was written",
        ]
    what = "Published" if done.created else "Already there, unchanged:"
    return [
        f"{what} with '{record.backend}' ({done.backend_reason}); visibility: {record.visibility}"
        + (f", wished for: {record.wish}" if record.wish not in {None, record.visibility} else ""),
        f"  ref            {record.ref}",
        f"  bundle digest  {record.bundle_sha256}",
        "For the paper:",
        f"  {done.latex}",
        "For the reader:",
        f"  {done.clone_command}",
    ]


def promote(
    checkpoint: options.Checkpoint = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL", help="private-token, unlisted or public.  [default: the wish]", show_default=False
        ),
    ] = None,
    o: options.Settings = None,
    dry_run: DryRun = False,
    json: options.Json = False,
) -> None:
    r"""Raise the visibility; it never goes down.

    \b
    Examples:
      ari ear promote
      ari ear promote run_42 --target public
    """
    from ari_core.errors import UsageError  # noqa: PLC0415 - other commands need not pay for it
    from ari_core.workflows.promote import promote as run  # noqa: PLC0415

    settings = options.settings(o)
    try:
        done = run(checkpoint, target=target, options=settings, dry_run=dry_run)
    except UsageError as error:
        if target is not None or "which level" not in error.message or not sys.stdin.isatty():
            raise
        target = typer.prompt("Which level (private-token, unlisted, public)", err=True)
        done = run(checkpoint, target=target, options=settings, dry_run=dry_run)
    record = done.record
    if done.dry_run:
        line = f"Dry run: visibility stays {record.visibility}; nothing was changed."
    elif done.changed:
        line = f"Visibility is now {record.visibility}."
    else:
        line = f"Visibility was {record.visibility} already."
    if not done.enforced:
        output.warn(f"'{record.backend}' keeps nobody from reading; the level is only written down")
    output.result(
        {**_fields(record), "changed": done.changed, "enforced": done.enforced}, line, f"  ref  {record.ref}"
    )


def status(checkpoint: options.Checkpoint = None, json: options.Json = False) -> None:
    r"""Say where a checkpoint stands.

    \b
    Examples:
      ari ear status
      ari ear status run_42 --json
    """
    from ari_core.workflows.publish import clone_command  # noqa: PLC0415 - other commands need not pay for it
    from ari_core.workflows.status import status as run  # noqa: PLC0415

    found = run(checkpoint)
    record = found.record
    lines = [str(found.checkpoint), f"  curated      {found.curated_sha256 or 'no: run `ari ear curate`'}"]
    if record is None or not record.ref:
        lines.append("  published    no: run `ari ear publish`")
    else:
        now = "" if found.published_is_curated else " (NOT what is curated now)"
        lines += [
            f"  published    {record.bundle_sha256}{now}",
            f"  ref          {record.ref}",
            f"  visibility   {record.visibility}, wished for: {record.wish or 'nothing'}",
            f"  since        {record.timestamp}",
        ]
        lines += [f"  also at      {copy.get('ref')}" for copy in record.copies]
        lines.append(f"  reader       {clone_command(record)}")
    if found.embargo_ends:
        lines.append(f"  embargo      until {found.embargo_ends.isoformat()}")
    if record is not None and record.pending:
        lines.append(
            f"  unfinished   a publication to '{record.pending.get('backend')}': run `ari ear publish` again"
        )
    output.result(
        {
            "checkpoint": str(found.checkpoint),
            "has_ear": found.has_ear,
            "curated_sha256": found.curated_sha256,
            "published_is_curated": found.published_is_curated,
            "embargo_ends": found.embargo_ends.isoformat() if found.embargo_ends else None,
            "record": _fields(record) if record else None,
        },
        *lines,
    )


def delete(
    checkpoint: options.Checkpoint = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    o: options.Settings = None,
    json: options.Json = False,
) -> None:
    r"""Delete the published bundle from its store.

    \b
    Examples:
      ari ear delete run_42
      ari ear delete run_42 --yes
    """
    from ari_core.errors import UsageError  # noqa: PLC0415 - other commands need not pay for it
    from ari_core.workflows.checkpoint import find_checkpoint  # noqa: PLC0415
    from ari_core.workflows.delete import delete as run  # noqa: PLC0415
    from ari_core.workflows.promote import published_record  # noqa: PLC0415

    record = published_record(find_checkpoint(checkpoint))
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("deleting needs a yes", hint="add --yes")
        cited = " It is public: a paper may cite it." if record.visibility in {"public", "unlisted"} else ""
        typer.confirm(f"Delete {record.ref}?{cited}", abort=True, err=True)
    gone = run(checkpoint, options=options.settings(o))
    output.result(
        _fields(gone), f"Deleted {record.ref}", "  what was published is still named in the record's history"
    )


def _fields(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json")
