"""`interlude-fast train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .main import one_line_errors
from .settings import overrides, shared_options


@click.command("train")
@shared_options
@click.option("--method", help="Method: interlude (default), supervised, fixmatch and others.")
@click.option("--seed", type=int, help="Labels, weights, batches and views all follow from it.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder of the run; it must not exist yet.")
@click.option("--resume", is_flag=True, help="Go on with the run in --run-dir, exactly.")
@one_line_errors
def command(
    config_file: Path | None, assignments: tuple[str, ...], run_dir: Path | None, resume: bool, **flags: Any
) -> None:
    """Train. With no options: InterLUDE on the embedded digits, 40 labels."""
    from interlude_fast.config import load
    from interlude_fast.report import train_run
    from interlude_fast.report.run import resume_config
    from interlude_fast.report.scores import result_lines

    console = Console(stderr=True)
    asked = overrides(assignments, **flags)
    config = resume_config(run_dir, config_file, asked) if resume else load(config_file, asked)
    result = train_run(config, run_dir, resume=resume, console=console)
    for line in result_lines(result):
        click.echo(line)
    click.echo(f"{result.seconds:.0f} s, everything in {result.directory}")
