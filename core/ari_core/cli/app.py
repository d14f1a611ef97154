"""The tree of commands. A plugin's group appears in it without being imported."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ari_core.cli import authoring, backends, output, reading

if TYPE_CHECKING:
    from ari_core.contract import CommandGroupSpec
    from ari_core.plugins import LoadedPlugins

PLAIN: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class _PluginGroup(TyperGroup):
    """Stands for a plugin's command group until somebody calls it."""

    def __init__(self, spec: CommandGroupSpec) -> None:
        super().__init__(name=spec.name, help=spec.help, rich_markup_mode=None)
        self._spec = spec

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self._load().make_context(info_name, args, parent=parent, **extra)

    def _load(self) -> Any:
        from ari_core.errors import PluginLoadError  # noqa: PLC0415 - only when it is really called

        module, _, attribute = self._spec.app.partition(":")
        try:
            group = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            hint = f"pip install '{self._spec.extra}'" if self._spec.extra else None
            raise PluginLoadError(f"`ari {self._spec.name}` is not installed: {error}", hint=hint) from error
        return typer.main.get_command(group)


class _Root(TyperGroup):
    """The top level: our commands, then those of plugins."""

    _plugins: LoadedPlugins | None = None

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *self._groups()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or self._groups().get(cmd_name)

    def _groups(self) -> dict[str, _PluginGroup]:
        if self._plugins is None:
            from ari_core.plugins import load_plugins  # noqa: PLC0415 - our own commands need no plugin to be found

            self._plugins = load_plugins()
            for problem in self._plugins.problems:
                output.warn(problem.message)
        return {
            name: _PluginGroup(spec) for name, spec in self._plugins.groups.items() if name not in self.commands
        }


app = typer.Typer(
    cls=_Root,
    help="Publish research bundles whose digest stands in the paper; clone any copy and know it is the one.",
    **PLAIN,
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version  # noqa: PLC0415 - only here

        print(f"ari-registry {version('ari-registry')}")  # noqa: T201 - this is the output
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Publish research bundles whose digest stands in the paper; clone any copy and know it is the one."""


app.command()(reading.clone)
app.command()(reading.verify)
app.command()(reading.show)
app.command("publish")(authoring.publish)

ear = typer.Typer(help="Curate, publish and look after a checkpoint.", **PLAIN)
ear.command()(authoring.curate)
ear.command()(authoring.publish)
ear.command()(authoring.promote)
ear.command()(authoring.status)
ear.command()(authoring.delete)
app.add_typer(ear, name="ear")

stores = typer.Typer(help="See and try places to store bundles.", **PLAIN)
stores.command("list")(backends.list_)
stores.command()(backends.show)
stores.command()(backends.check)
app.add_typer(stores, name="backends")
