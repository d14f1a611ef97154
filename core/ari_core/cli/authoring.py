"""Commands for authors: ``ari ear …`` and its alias ``ari publish``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ari_core.cli import options, output
from ari_core.names import quoted

_REGISTRY: Final = "ari-registry"  # what --registry is about

if TYPE_CHECKING:
    from ari_core.record import Record
    from ari_core.workflows.delete import Deleted
    from ari_core.workflows.promote import Promoted
    from ari_core.workflows.publish import PublishResult


@click.command()
@options.checkpoint
@click.option("--show-files", is_flag=True, help="List every file that is published.")
@click.option("--no-scan-secrets", is_flag=True, help="Do not look for content that looks like a secret.")
@options.json
def curate(checkpoint: Path | None, *, show_files: bool, no_scan_secrets: bool) -> None:
    """Copy what may be published to ear_published/.

    CHECKPOINT is a directory with ear/ in it; default: $ARI_CHECKPOINT_DIR, else the current directory.

    \b
    Examples:
      ari ear curate
      ari ear curate run_42 --show-files
    """
    from ari_core.workflows.curate import curate as run

    with output.progress() as progress:
        done = run(checkpoint, scan_secrets=not no_scan_secrets, progress=progress)
    for warning in done.warnings:
        output.warn(warning)
    total = sum(entry.size for entry in done.files)
    left_out = f", {done.excluded_count} left out by rules" if done.excluded_count else ""
    left_out += f", {done.not_asked_for} not asked for" if done.not_asked_for else ""
    output.result(
        {
            "ear_published_dir": str(done.ear_published_dir),
            "manifest_path": str(done.manifest_path),
            "bundle_sha256": done.bundle_sha256,
            "included_files": done.included_files,
            "excluded_count": done.excluded_count,
            "not_asked_for": done.not_asked_for,
            "skipped": [{"path": path, "reason": reason} for path, reason in done.skipped],
            "warnings": list(done.warnings),
        },
        f"Curated {output.files(len(done.files))}, {output.size(total)}{left_out}.",
        *([f"  {entry.size:>12}  {quoted(entry.path)[1:-1]}" for entry in done.files] if show_files else []),
        *(f"  skipped        {quoted(path)}: {reason}" for path, reason in done.skipped),
        f"  curated to     {done.ear_published_dir}",
        f"  bundle digest  {done.bundle_sha256}",
    )


@click.command()
@options.checkpoint
@click.option(
    "--backend", metavar="NAME", help="A backend (see `ari backends list`) or a profile of the configuration file."
)
@click.option(
    "--also",
    metavar="NAME",
    multiple=True,
    help="Copy it to this backend or profile, too; repeatable. Its settings: -o NAME.KEY=VALUE.",
)
@options.storing
@click.option(
    "--visibility",
    metavar="LEVEL",
    help="Wished for in the end: staged, private-token, unlisted, public or embargoed-until:YYYY-MM-DD.",
)
@options.dry_run
@click.option("--replace", is_flag=True, help="Let it take the place of another bundle that is in the way.")
@click.option("--allow-empty", is_flag=True, help="Publish a bundle without files.")
@options.json
def publish(
    checkpoint: Path | None,
    pairs: tuple[str, ...],
    *,
    backend: str | None,
    also: tuple[str, ...],
    visibility: str | None,
    dry_run: bool,
    replace: bool,
    allow_empty: bool,
    registry: str | None,
    token: str | None,
    token_file: str | None,
) -> int:
    """Pack what was curated and store it, staged.

    CHECKPOINT is a directory with ear/ in it; default: $ARI_CHECKPOINT_DIR, else the current directory.

    \b
    Examples:
      ari ear publish
      ari ear publish run_42 -o out=/media/usb
      ari ear publish --backend local-tarball --visibility public --dry-run
      ari ear publish --registry lab --also s3 -o s3.bucket=lab
    """
    from ari_core.workflows.publish import publish as run

    settings = options.settings(pairs, registry=registry, token=token, token_file=token_file)
    with output.progress() as progress:
        done = run(
            checkpoint,
            backend=_REGISTRY if backend is None and registry is not None else backend,
            also=also,
            options=settings,
            visibility=visibility,
            dry_run=dry_run,
            replace=replace,
            allow_empty=allow_empty,
            progress=progress,
            warn=output.warn,
        )
    output.result(
        {
            **_fields(done.record),
            "backend_reason": done.backend_reason,
            "created": done.created,
            "file_count": done.file_count,
            "latex": done.latex,
            "clone_command": done.clone_command,
            "warnings": list(done.warnings),
            "also": [output.copy_fields(copy) for copy in done.copies],
        },
        *_published(done),
        *(line for copy in done.copies for line in output.copy_lines(copy)),
    )
    return output.partly(done.error)


def _published(done: PublishResult) -> list[str]:
    record = done.record
    if done.dry_run:
        what = f"{output.files(done.file_count)} with '{record.backend}' ({done.backend_reason})"
        return [
            f"Dry run: would publish {what}.",
            f"  bundle digest  {record.bundle_sha256}",
            "  nothing was written",
        ]
    what = "Published" if done.created else "Already there, unchanged,"
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


@click.command()
@options.checkpoint
@click.option("--target", metavar="LEVEL", help="private-token, unlisted or public.  [default: the wish]")
@options.storing
@options.dry_run
@options.json
def promote(
    checkpoint: Path | None,
    pairs: tuple[str, ...],
    *,
    target: str | None,
    dry_run: bool,
    registry: str | None,
    token: str | None,
    token_file: str | None,
) -> int:
    """Raise the visibility of the published bundle and of its copies; it never goes down.

    CHECKPOINT is a directory with ear/ in it; default: $ARI_CHECKPOINT_DIR, else the current directory.

    \b
    Examples:
      ari ear promote
      ari ear promote run_42 --target public
    """
    from ari_core.errors import NoTargetError
    from ari_core.workflows.promote import promote as run

    settings = options.settings(pairs, registry=registry, token=token, token_file=token_file)
    try:
        done = run(checkpoint, target=target, options=settings, dry_run=dry_run, warn=output.warn)
    except NoTargetError:
        if not sys.stdin.isatty():
            raise
        target = click.prompt("Which level (private-token, unlisted, public)", err=True)
        done = run(checkpoint, target=target, options=settings, dry_run=dry_run, warn=output.warn)
    record = done.record
    for place in done.places:
        if not (place.enforced or place.note or place.error):
            output.warn(f"'{place.backend}' keeps nobody from reading; the level is only written down")
    output.result(
        {
            **_fields(record),
            "changed": done.changed,
            "enforced": done.enforced,
            "places": [
                {
                    "ref": place.ref,
                    "backend": place.backend,
                    "visibility": place.visibility,
                    "changed": place.changed,
                    "enforced": place.enforced,
                    "embargo": place.embargo.isoformat() if place.embargo else None,
                    "note": place.note or None,
                    "error": output.error_fields(place.error),
                }
                for place in done.places
            ],
        },
        *(line for place in done.places for line in _promoted(place, dry_run=done.dry_run)),
    )
    return output.partly(done.error)


def _promoted(place: Promoted, *, dry_run: bool) -> list[str]:
    later = f"; its files open on {place.embargo}" if place.embargo else ""
    if place.error:
        line = "FAILED"
    elif place.note:
        line = f"Left as it is: {place.note}."
    elif dry_run:
        line = f"Dry run: visibility would be {place.visibility}{later}; nothing was changed."
    elif place.changed:
        line = f"Visibility is now {place.visibility}{later}."
    else:
        line = f"Visibility was {place.visibility} already{later}."
    return [line, f"  ref  {place.ref}", *(output.why(place.error, place.backend) if place.error else [])]


@click.command()
@options.checkpoint
@options.json
def status(checkpoint: Path | None) -> None:
    """Say where a checkpoint stands.

    CHECKPOINT is a directory with ear/ in it; default: $ARI_CHECKPOINT_DIR, else the current directory.

    \b
    Examples:
      ari ear status
      ari ear status run_42 --json
    """
    from ari_core.workflows.publish import clone_command
    from ari_core.workflows.status import status as run

    found = run(checkpoint)
    record = found.record
    lines = [str(found.checkpoint), f"  curated      {found.curated_sha256 or 'no: run `ari ear curate`'}"]
    if record is None or not record.ref:
        lines.append("  published    no: run `ari ear publish`")
    else:
        other = found.curated_sha256 is not None and not found.published_is_curated
        now = " (NOT what is curated now)" if other else ""
        lines += [
            f"  published    {record.bundle_sha256}{now}",
            f"  ref          {record.ref}",
            f"  visibility   {record.visibility}{_wish(record)}",
            f"  since        {record.timestamp}",
        ]
        if (doi := record.extra.get("doi")) and str(doi) not in record.ref:
            lines.append(f"  doi          {doi}")
        lines.append(f"  reader       {clone_command(record)}")
    if record is not None:
        lines += [f"  also at      {copy.ref} ({copy.visibility})" for copy in found.copies]
    if found.curation_interrupted:
        lines.append("  interrupted  a curation: run `ari ear curate` again")
    if found.embargo_ends and record is not None and record.ref:
        kept = ", as far as its stores keep it" if record.visibility == "public" else ""
        lines.append(f"  embargo      until {found.embargo_ends.isoformat()}{kept}")
    for begun in record.unfinished() if record else []:
        name = begun.get("profile") or begun.get("backend")
        what, again, rid = f"a copy to '{name}'", "ari mirror", f" --copy {name}"
        if record is not None and begun is record.pending:
            what, again, rid = f"a publication to '{name}'", "ari ear publish", ""
        lines.append(f"  unfinished   {what}: run `{again}` again, or `ari ear delete{rid}`")
    output.result(
        {
            "checkpoint": str(found.checkpoint),
            "has_ear": found.has_ear,
            "curated_sha256": found.curated_sha256,
            "published_is_curated": found.published_is_curated,
            "curation_interrupted": found.curation_interrupted,
            "embargo_ends": found.embargo_ends.isoformat() if found.embargo_ends else None,
            "record": _fields(record) if record else None,
        },
        *lines,
    )


@click.command()
@options.checkpoint
@click.option(
    "--copy",
    "copies",
    metavar="NAME",
    multiple=True,
    help="Delete this copy instead: its ref, backend or profile; repeatable.",
)
@click.option("--all", "everything", is_flag=True, help="Delete it with all of its copies.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.storing
@options.dry_run
@options.json
def delete(
    checkpoint: Path | None,
    pairs: tuple[str, ...],
    *,
    copies: tuple[str, ...],
    everything: bool,
    yes: bool,
    dry_run: bool,
    registry: str | None,
    token: str | None,
    token_file: str | None,
) -> int:
    """Delete the published bundle from its store, with what was begun and not finished there.

    CHECKPOINT is a directory with ear/ in it; default: $ARI_CHECKPOINT_DIR, else the current directory.

    \b
    Examples:
      ari ear delete run_42
      ari ear delete run_42 --all --yes
    """
    from ari_core.errors import UsageError, escape
    from ari_core.workflows.checkpoint import find_checkpoint
    from ari_core.workflows.delete import delete as run
    from ari_core.workflows.delete import to_delete
    from ari_core.workflows.publish import is_dry_run

    if copies and everything:
        raise UsageError("--copy and --all exclude each other")
    places = [place for place, _ in to_delete(find_checkpoint(checkpoint), copies, everything=everything)]
    if not (yes or dry_run or is_dry_run()):
        if not sys.stdin.isatty():
            raise UsageError("deleting needs a yes", hint="add --yes")
        cited = [
            f" {'It' if len(places) == 1 else escape(place.ref)} is {place.visibility}: a paper may cite it."
            for place in places
            if place.visibility in {"public", "unlisted"}
        ]
        refs = ", ".join(escape(place.ref) for place in places)
        click.confirm(f"Delete {refs}?{''.join(cited)}", abort=True, err=True)
    settings = options.settings(pairs, registry=registry, token=token, token_file=token_file)
    done = run(
        checkpoint, copies=copies, everything=everything, options=settings, dry_run=dry_run, warn=output.warn
    )
    left = [] if done.dry_run else [place.ref for place in done.record.places()]
    told = any(not (place.unfinished or place.error) for place in done.places) and not done.dry_run
    output.result(
        {
            **_fields(done.record),
            "deleted": [
                {
                    "ref": place.ref,
                    "backend": place.backend,
                    "unfinished": place.unfinished,
                    "absent": place.absent,
                    "error": output.error_fields(place.error),
                }
                for place in done.places
            ],
        },
        *(line for place in done.places for line in _deleted(place, dry_run=done.dry_run)),
        *(f"  still at {ref}" for ref in left),
        *(["  its digest is still in the record's history"] if told else []),
    )
    return output.partly(done.error)


def _deleted(place: Deleted, *, dry_run: bool) -> list[str]:
    if place.error:
        return [f"FAILED {place.ref}", *output.why(place.error)]
    if place.absent:
        return [f"{'Dry run: nothing' if dry_run else 'Nothing'} to delete, it is gone already: {place.ref}"]
    begun = ", which was only begun" if place.unfinished else ""
    if dry_run:
        return [f"Dry run: would delete {place.ref}{begun}; nothing was changed."]
    return [f"Deleted {place.ref}{begun}"]


@click.command()
@options.checkpoint
@click.option("--expires", metavar="WHEN", help="12h, 90d, 4w, 2y or a date.  [default: never]")
@options.storing
@options.json
def share(
    checkpoint: Path | None,
    pairs: tuple[str, ...],
    *,
    expires: str | None,
    registry: str | None,
    token: str | None,
    token_file: str | None,
) -> None:
    """Let a reader without an account fetch the bundle.

    Makes a fetch token: whoever has it can read this one artifact from level private-token up. It is shown once.
    CHECKPOINT is a directory with ear/ in it; default: $ARI_CHECKPOINT_DIR, else the current directory.

    \b
    Examples:
      ari ear share run_42
      ari ear share run_42 --expires 90d
    """
    from ari_core.durations import parse_expiry
    from ari_core.workflows.share import share as run

    until = None if expires is None else parse_expiry(expires)
    settings = options.settings(pairs, registry=registry, token=token, token_file=token_file)
    done = run(checkpoint, expires=until, options=settings, warn=output.warn)
    made = done.share
    if not done.works_now:
        output.warn(
            f"the bundle is {done.visibility}: nobody else can read it, also not with this token, before "
            "`ari ear promote --target private-token`"
        )
    elif done.visibility in {"unlisted", "public"}:
        output.warn(f"the bundle is {done.visibility}: everybody who has its address can read it without a token")
    output.result(
        {
            "url": made.url,
            "token": made.token,
            "id": made.id,
            "expires": _time(made.expires) if made.expires else None,
            "visibility": done.visibility,
            "works_now": done.works_now,
            "bundle_sha256": done.record.bundle_sha256,
            "clone_command": done.clone_command,
        },
        f"Whoever has this token can read {made.url}:",
        f"  token    {made.token}   (shown only now)",
        f"  id       {made.id}",
        f"  expires  {_time(made.expires) if made.expires else 'never'}",
        "For the reader:",
        f"  {done.clone_command}",
    )


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _wish(record: Record) -> str:
    return "" if record.wish in {None, "", "staged"} else f", wished for: {record.wish}"


def _fields(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json")
