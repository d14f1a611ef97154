"""``ari mirror``: copies elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from ari_core.cli import options, output
from ari_core.cli.reading import ANCHORS, advise, amount


@click.command()
@options.ref
@click.option(
    "--to", "targets", metavar="NAME", multiple=True, required=True, help="A backend or profile; repeatable."
)
@click.option(
    "-o",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="A setting of --to; NAME.KEY=VALUE if there are several.",
)
@click.option("--from-o", "from_pairs", metavar="KEY=VALUE", multiple=True, help="A setting for reading REF.")
@options.expect_sha256
@options.require_digest
@click.option("--visibility", metavar="LEVEL", help="Raise the copies to this level.  [default: they stay staged]")
@click.option("--reread", is_flag=True, help="Read every copy back and verify it.")
@click.option("--replace", is_flag=True, help="Let it take the place of another bundle that is in the way.")
@click.option(
    "--checkpoint",
    metavar="DIR",
    type=options.PATH,
    help="Note the copies in its record.  [default: REF, $ARI_CHECKPOINT_DIR or the current directory]",
)
@options.source
@options.dry_run
@options.json
def mirror(
    ref: str,
    targets: tuple[str, ...],
    pairs: tuple[str, ...],
    from_pairs: tuple[str, ...],
    *,
    expect_sha256: str | None,
    require_digest: bool,
    visibility: str | None,
    reread: bool,
    replace: bool,
    checkpoint: Path | None,
    registry: str | None,
    token: str | None,
    token_file: str | None,
    max_download: str | None,
    dry_run: bool,
) -> int:
    """Copy a bundle to other stores, if all of it verifies.

    REF is where a copy is: a path, file:///…, https://…, ari://ID, or what an installed backend knows;
    of a checkpoint it is what was published from it.

    \b
    Examples:
      ari mirror run_42 --to local-tarball -o out=/media/usb
      ari mirror bundle.tar.gz --to s3 -o bucket=lab --expect-sha256 3672addf…6448
      ari mirror run_42 --to s3 --to local-tarball -o s3.bucket=lab -o local-tarball.out=/media/usb
    """
    from ari_core.workflows.mirror import mirror as run

    source = options.settings(
        from_pairs, registry=registry, token=token, token_file=token_file, max_download=max_download
    )
    with output.progress() as progress:
        done = run(
            ref,
            targets,
            options=options.settings(pairs),
            source_options=source,
            checkpoint=checkpoint,
            visibility=visibility,
            expect_sha256=expect_sha256,
            require_digest=require_digest,
            reread=reread,
            replace=replace,
            dry_run=dry_run,
            progress=progress,
            warn=output.warn,
        )
    is_noted = done.checkpoint and any(copy.recorded and copy.ref != done.ref for copy in done.copies)
    output.result(
        {
            "ref": done.ref,
            "bundle_sha256": done.bundle_sha256,
            "archive_sha256": done.archive_sha256,
            "file_count": done.file_count,
            "total_size": done.total_size,
            "anchored_by": done.anchored_by,
            "repacked": done.repacked,
            "checkpoint": str(done.checkpoint) if done.checkpoint else None,
            "dry_run": done.dry_run,
            "copies": [output.copy_fields(copy) for copy in done.copies],
        },
        f"Verified: {amount(done.file_count, done.total_size)}, {ANCHORS[done.anchored_by]}.",
        f"  bundle digest  {done.bundle_sha256}",
        *(["  repacked       it was no gzip archive: the same bundle, another archive"] if done.repacked else []),
        *(line for copy in done.copies for line in output.copy_lines(copy, done.ref)),
        *([f"  noted in       {done.checkpoint}"] if is_noted else []),
        *(["  nothing was written"] if done.dry_run else []),
    )
    advise(done.anchored_by, done.ref, None)
    return output.partly(done.error)
