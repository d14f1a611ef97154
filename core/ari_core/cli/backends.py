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
@options.json
def check(name: str, pairs: tuple[str, ...], *, write: bool) -> None:
    """Try a backend for real: reach and credentials, and with --write a round trip.

    NAME is a backend or a profile of the configuration file.

    \b
    Examples:
      ari backends check local-tarball -o out=/media/usb
      ari backends check local-tarball -o out=/media/usb --write
    """
    from ari_core.workflows.backends import check_backend

    found = check_backend(name, options.settings(pairs), write=write)
    for warning in found.warnings:
        output.warn(warning)
    if found.left_behind:
        output.warn(f"the test bundle could not be deleted: {found.left_behind}")
    output.result(
        asdict(found),
        f"{found.name} works.",
        *(f"  {step}" for step in found.steps),
        *(f"  {key:<17} {_shown(value)}" for key, value in found.capabilities.items()),
    )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(sorted(map(str, value))) or "none"
    return str(value)
