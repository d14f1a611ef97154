"""The tree of commands. A plugin's group appears in it without being imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ari_core.cli import authoring, backends, mirror, reading
from ari_core.errors import PluginLoadError

if TYPE_CHECKING:
    from ari_core.contract import CommandGroupSpec
    from ari_core.plugins import LoadedPlugins

_HELP = {"help_option_names": ["-h", "--help"]}


class _PluginGroup(click.Group):
    """Stands for a plugin's command group until somebody calls it."""

    def __init__(self, spec: CommandGroupSpec, plugins: LoadedPlugins) -> None:
        super().__init__(spec.name, help=spec.help)
        self._spec, self._plugins = spec, plugins

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        group = self._plugins.load_group(self._spec)
        if not isinstance(group, click.Command):
            raise PluginLoadError(f"`ari {self._spec.name}` cannot run: {self._spec.app} is not a click command")
        return group.make_context(info_name, args, parent, **extra)


class _InOrder(click.Group):
    """Lists its commands in the order of a session, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)


class _Root(_InOrder):
    """The top level: our commands, then those of plugins."""

    _groups: dict[str, _PluginGroup] | None = None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *self._plugin_groups()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._plugin_groups().get(cmd_name)

    def _plugin_groups(self) -> dict[str, _PluginGroup]:
        if self._groups is None:
            from ari_core.plugins import load_plugins

            plugins = load_plugins()
            self._groups = {
                name: _PluginGroup(spec, plugins)
                for name, spec in plugins.groups.items()
                if name not in self.commands
            }
        return self._groups


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"ari-registry {version('ari-registry')}")
        context.exit()


@click.group(cls=_Root, context_settings=_HELP)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def app() -> None:
    """Publish research bundles whose digest stands in the paper; clone any copy and know it is the one.

    \b
    Exit status: 0 done, 1 does not verify, 2 wrong call or settings, 3 not there, 4 not allowed,
    5 not now, 6 partly done, 70 a bug, 130 interrupted (docs/configuration.md).

    \b
    Examples:
      ari ear curate
      ari ear publish
      ari clone https://example.org/bundle.tar.gz study --expect-sha256 3672addf…6448
    """


@click.group(cls=_InOrder)
def ear() -> None:
    """Curate, publish and look after a checkpoint.

    \b
    Examples:
      ari ear curate
      ari ear publish
      ari ear promote run_42 --target public
    """


@click.group("backends", cls=_InOrder)
def stores() -> None:
    """See and try places to store bundles.

    \b
    Examples:
      ari backends list
      ari backends show local-tarball
      ari backends check s3 -o bucket=lab --trial
    """


for _command in (reading.clone, reading.verify, reading.show, mirror.mirror, authoring.publish, ear, stores):
    app.add_command(_command)
for _command in (
    authoring.curate,
    authoring.publish,
    authoring.promote,
    authoring.status,
    authoring.share,
    authoring.delete,
):
    ear.add_command(_command)
for _command in (backends.list_, backends.show, backends.check, backends.gc):
    stores.add_command(_command)
