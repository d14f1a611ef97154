"""Commands about backends: ``ari backends …``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ari_core.cli import options, output

Name = Annotated[str, typer.Argument(metavar="NAME", help="A backend or a profile of the configuration file.")]


def list_(json: options.Json = False) -> None:
    r"""List what is installed.

    \b
    Examples:
      ari backends list
      ari backends list --json
    """
    from ari_core.workflows.backends import list_backends  # noqa: PLC0415 - other commands need not pay for it

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


def show(name: Name, o: options.Settings = None, json: options.Json = False) -> None:
    r"""Show what a backend can do and how to set it.

    \b
    Examples:
      ari backends show local-tarball
      ari backends show local-tarball -o out=/media/usb
    """
    from ari_core.workflows.backends import show_backend  # noqa: PLC0415 - other commands need not pay for it

    found = show_backend(name, options.settings(o))
    lines = [f"{found.name}: {found.help}", "capabilities (the most it can do):"]
    lines += [f"  {key:<17} {_shown(value)}" for key, value in found.capabilities.items()]
    lines.append("settings (-o KEY=VALUE, else environment, profile, default):")
    for setting in found.settings:
        value = f" = {setting.value} ({setting.source})" if setting.value is not None else ""
        need = "required" if setting.required else f"default: {setting.default}"
        lines.append(f"  {setting.key} <{setting.type}>{value}; {need}; {', '.join(setting.variables)}")
        if setting.help:
            lines.append(f"      {setting.help}")
    if found.problem:
        lines.append(f"problem: {found.problem}")
    output.result(asdict(found), *lines)


def check(
    name: Name,
    o: options.Settings = None,
    write: Annotated[
        bool, typer.Option("--write", help="Also store a tiny bundle, read it back and delete it.")
    ] = False,
    json: options.Json = False,
) -> None:
    r"""Try a backend for real.

    \b
    Examples:
      ari backends check local-tarball -o out=/media/usb
      ari backends check local-tarball -o out=/media/usb --write
    """
    from ari_core.workflows.backends import check_backend  # noqa: PLC0415 - other commands need not pay for it

    found = check_backend(name, options.settings(o), write=write)
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
