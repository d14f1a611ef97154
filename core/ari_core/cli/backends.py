"""Commands about backends: ``ari backends …``."""

from __future__ import annotations

from dataclasses import asdict

import click

from ari_core.cli import options, output

_name = click.argument("name", metavar="NAME")


@click.command("list")
@options.json
def list_() -> None:
    """List what is installed.

    \b
    Examples:
      ari backends list
      ari backends list --json
    """
    from ari_core.workflows.backends import list_backends

    found = list_backends()
    width = max((len(info.name) for info in found), default=0)
    lines = []
    for info in found:
        state = "" if info.status == "ok" else f"  [{info.status}]"
        lines.append(f"{info.name:<{width}}  {info.help or ''}{state}".rstrip())
        if info.reason:
            lines.append(f"{'':<{width}}  {info.reason}")
        if info.install:
            lines.append(f"{'':<{width}}  install: {info.install}")
    output.result({"backends": [asdict(info) for info in found]}, *lines)


@click.command()
@_name
@options.setting
@options.json
def show(name: str, pairs: tuple[str, ...]) -> None:
    """Show what a backend can do and how to set it.

    NAME is a backend or a profile of the configuration file.

    \b
    Examples:
      ari backends show local-tarball
      ari backends show local-tarball -o out=/media/usb
    """
    from ari_core.workflows.backends import show_backend

    found = show_backend(name, options.settings(pairs))
    lines = [f"{found.name}: {found.help}", "capabilities (the most it can do):"]
    lines += [f"  {key:<17} {_shown(value)}" for key, value in found.capabilities.items()]
    lines.append("settings (-o KEY=VALUE, else environment, profile, default):")
    for setting in found.settings:
        value = f" = {setting.value} ({setting.source})" if setting.value is not None else ""
        default = "no default" if setting.default in {None, "None"} else f"default: {setting.default}"
        need = "required" if setting.required else default
        lines.append(f"  {setting.key} <{setting.type}>{value}; {need}; {', '.join(setting.variables)}")
        if setting.help:
            lines.append(f"      {setting.help}")
    if found.problem:
        lines.append(f"problem: {found.problem}")
    output.result(asdict(found), *lines)


@click.command()
@_name
@options.setting
@click.option("--write", is_flag=True, help="Also store a tiny bundle, read it back and delete it.")
@click.option("--trial", is_flag=True, help="Also let writers race, to find out which promises the store keeps.")
@options.json
def check(name: str, pairs: tuple[str, ...], *, write: bool, trial: bool) -> None:
    """Try a backend for real: reach and credentials, and with --write a round trip.

    NAME is a backend or a profile of the configuration file. Some stores say that they let only one of two writers
    through, and do not; only writers who race can show that. The outcome of --trial is kept in the store.

    \b
    Examples:
      ari backends check local-tarball -o out=/media/usb
      ari backends check local-tarball -o out=/media/usb --write
      ari backends check s3 -o bucket=lab --trial
    """
    from ari_core.workflows.backends import check_backend

    found = check_backend(name, options.settings(pairs), write=write, trial=trial)
    for warning in found.warnings:
        output.warn(warning)
    if found.left_behind:
        output.warn(f"the test bundle could not be deleted: {found.left_behind}")
    output.result(
        asdict(found),
        f"{found.name} works.",
        *(f"  {step}" for step in found.steps),
        *(f"  {key:<17} {_shown(value)}" for key, value in found.capabilities.items()),
        *(f"lacks {name}: {meaning}" for name, meaning in found.lacks.items()),
        *([_untried(found.untried)] if found.untried else []),
    )


def _untried(names: tuple[str, ...]) -> str:
    return f"no trial has shown that this store keeps {' and '.join(names)}; --trial lets writers race to find out"


@click.command()
@_name
@options.setting
@click.option(
    "--older-than", "age", metavar="AGE", default="24h", show_default=True, help="Spare what is younger."
)
@options.dry_run
@options.json
def gc(name: str, pairs: tuple[str, ...], *, age: str, dry_run: bool) -> None:
    """Remove what interrupted runs left in a store: unfinished uploads, parts that belong to nothing.

    NAME is a backend or a profile of the configuration file. No reader ever sees what is removed. AGE is 1h or
    more, as 24h, 7d or 4w: an upload that is under way looks like one that was interrupted, so give more than your
    longest one takes.

    \b
    Examples:
      ari backends gc s3 -o bucket=lab --dry-run
      ari backends gc s3 -o bucket=lab --older-than 7d
    """
    from ari_core.contract import Leftover
    from ari_core.durations import parse_age
    from ari_core.workflows.sweep import sweep

    def tell(leftover: Leftover) -> None:
        size = "size unknown" if leftover.size is None else output.size(leftover.size)
        output.line(f"{leftover.what}  {leftover.name}  {size}  since {leftover.since:%Y-%m-%d %H:%M}")

    found = sweep(
        name, options.settings(pairs), older_than=parse_age(age), dry_run=dry_run, tell=tell, warn=output.warn
    )
    verb = "would remove" if found.dry_run else "removed"
    output.result(asdict(found), f"{verb} {found.count} in all, {output.size(found.size)}")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(sorted(map(str, value))) or "none"
    return str(value)
