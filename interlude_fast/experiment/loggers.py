"""Listeners of the training loop: the run directory's files, and the terminal."""

from __future__ import annotations

import logging
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from interlude_fast.errors import CheckpointError
from interlude_fast.metrics import Scores
from interlude_fast.training.loop import Logger

from .run_directory import RunDirectory


class FileLogger:
    """metrics.jsonl, TensorBoard events and log.txt."""

    def __init__(self, directory: RunDirectory, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.directory = directory
        self.board = SummaryWriter(str(directory.path / "tensorboard"), purge_step=purge_step)
        self.log = logging.getLogger(f"interlude_fast.run.{directory.path}")
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        self.handler = logging.FileHandler(directory.path / "log.txt")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.log.addHandler(self.handler)

    def stepped(self, step: int) -> None: ...

    def logged(self, step: int, metrics: dict[str, float]) -> None:
        self._keep(step, metrics)
        self.log.info("step %d  %s", step, "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

    def evaluated(self, step: int, scores: dict[str, dict[str, Scores]]) -> None:
        named = {f"{part}/{net}": s.as_dict() for part, networks in scores.items() for net, s in networks.items()}
        values = ((f"{name}/{k}", v) for name, s in named.items() for k, v in s.items() if k != "n")
        self._keep(step, {name: v for name, v in values if v is not None})
        errors = "  ".join(f"{name} {s['error']:.2%}" for name, s in named.items())
        self.log.info("step %d  error: %s", step, errors or "no test or validation images")

    def noted(self, line: str) -> None:
        self.log.info(line)

    def _keep(self, step: int, values: dict[str, float]) -> None:
        try:
            self.directory.append_metrics({"step": step, **values})
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        except OSError as error:
            raise CheckpointError(f"{self.directory.path} cannot be written: {error.strerror or error}") from None

    def close(self) -> None:
        self.board.close()
        self.log.removeHandler(self.handler)
        self.handler.close()


class ProgressLogger:
    """One line that shows where the run is; nothing where the console is not a terminal."""

    def __init__(self, console: Console, title: str, steps: int) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(title, total=steps, status="")
        self.metrics: dict[str, float] = {}
        self.errors = ""

    def __enter__(self) -> ProgressLogger:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stepped(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def logged(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics = {**self.metrics, **metrics}
        self._show()

    def evaluated(self, step: int, scores: dict[str, dict[str, Scores]]) -> None:
        shown = next((networks["ema"] for networks in scores.values()), None)
        self.errors = f"error {shown.error:.1%}" if shown else ""
        self._show()

    def noted(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        m = self.metrics
        shown = (
            ("steps_per_second", "{:.1f} steps/s"),
            ("data_wait", "data wait {:.0%}"),
            ("mask_rate", "mask {:.0%}"),
        )
        parts = [text.format(m[name]) for name, text in shown if name in m]
        self.progress.update(self.task, status=" ".join([*parts, self.errors]))


class LoggerList:
    """Passes every call on to each of several loggers."""

    def __init__(self, *loggers: Logger) -> None:
        self.loggers = loggers

    def stepped(self, step: int) -> None:
        for logger in self.loggers:
            logger.stepped(step)

    def logged(self, step: int, metrics: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.logged(step, metrics)

    def evaluated(self, step: int, scores: dict[str, dict[str, Scores]]) -> None:
        for logger in self.loggers:
            logger.evaluated(step, scores)

    def noted(self, line: str) -> None:
        for logger in self.loggers:
            logger.noted(line)
