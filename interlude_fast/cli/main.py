"""`interlude-fast`: one command a file, listed here."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import io
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any

import click

import interlude_fast
from interlude_fast.errors import InterludeError, Interrupted, nearest

# command -> module of this package that defines it under the same name; imported when it is called for.
COMMANDS = {
    "ablate": "ablate",
    "bench": "bench",
    "compare": "compare",
    "data": "data",
    "doctor": "doctor",
    "embed": "embed",
    "eval": "evaluate",
    "import": "importing",
    "parity": "parity",
    "predict": "predict",
    "probe": "probe",
    "train": "train",
}
# What writing to a file that is open already may meet.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# What a path may meet wherever it is looked at.
OUT_OF_REACH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
# Their runs are of one process each; torchrun would have every process do them all.
OF_ONE_PROCESS = ("ablate", "bench", "compare")


def one_line_errors(run: Callable[..., Any]) -> Callable[..., Any]:
    """Errors that are the input's fault: one line, exit code 2, no traceback. Interruptions: one line, 130."""

    @functools.wraps(run)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except InterludeError as error:
            complain(f"error: {error}")
            sys.exit(2)
        except Interrupted as interrupted:
            run_directory = shlex.quote(str(interrupted.checkpoint.parent.parent))
            complain(f"interrupted after a checkpoint; go on with --run-dir {run_directory} --resume")
            sys.exit(130)
        except KeyboardInterrupt:
            complain("interrupted")
            sys.exit(130)

    return wrapped


def complain(text: str) -> None:
    """One line on standard error, also where a file's name has several."""
    line = text.replace("\n", "\\n").replace("\r", "\\r")
    click.echo(f"interlude-fast: {line}", err=True)


def write_bytes(content: bytes) -> None:
    """To standard output, unchanged."""
    if sys.stdout is not None:  # None: it is closed
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.flush()


def _give_up_output() -> None:
    """What standard output refused is not tried, and refused, once more when Python ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file below it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Commands(click.Group):
    def main(self, *args: Any, **kwargs: Any) -> Any:
        """click's own complaints (options, arguments) in one line too, and those of the file system."""
        if not kwargs.pop("standalone_mode", True):
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        if isinstance(sys.stdout, io.TextIOWrapper):  # names that are no text are shown as escapes
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            sys.exit(super().main(*args, **{**kwargs, "standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help() if error.ctx else "", err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            if os.environ.get("RANK", "0") != "0":  # the first process of the job says it
                sys.exit(error.exit_code)
            complain(f"error: {' '.join(error.format_message().split())}")
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(130)
        except OSError as error:  # of a closed pipe click has made an exit code
            if error.filename is not None and error.errno in (*CANNOT_WRITE, *OUT_OF_REACH):
                complain(f"error: {os.fsdecode(error.filename)}: {error.strerror}")
            elif error.filename is None and error.errno in CANNOT_WRITE:
                _give_up_output()
                complain(f"error: the output cannot be written: {error.strerror}")
            else:
                raise
            sys.exit(2)

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"interlude_fast.cli.{COMMANDS[name]}")
        return module.command

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            context.fail(f"no such command '{args[0]}'{nearest(args[0], COMMANDS)}")
        if args and args[0] in OF_ONE_PROCESS and os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
            context.fail(
                f"{args[0]} is the work of one process: leave out torchrun (WORLD_SIZE is set), or use train"
            )
        return super().resolve_command(context, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(interlude_fast.__version__, prog_name="interlude-fast")
def main() -> None:
    """Semi-supervised image classification, fast."""
