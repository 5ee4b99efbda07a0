"""`interlude-fast doctor`."""

from __future__ import annotations

import click

from .main import one_line_errors


@click.command("doctor")
@one_line_errors
def command() -> None:
    """Say what is installed, what was built, and what would run and why."""
    from interlude_fast.experiment.environment import environment, what_runs

    found = environment()
    packages = found.pop("packages")
    for name, value in found.items():
        shown = "; ".join(value) or "none" if isinstance(value, list) else value
        click.echo(f"{name.replace('_', ' '):<16}{shown}")
    click.echo(f"{'packages':<16}" + ", ".join(f"{name} {version}" for name, version in packages.items()))
    click.echo(f"{'would run':<16}{what_runs()}")
