"""The training loop: steps, logging, evaluations, checkpoints, until the schedule ends or somebody interrupts."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Protocol

import torch

from interlude_fast.errors import Interrupted, NonFiniteLossError
from interlude_fast.metrics import Scores

from .checkpoint import save_checkpoint
from .device import float32_products
from .distributed import Asked, end_in_time, loss_of_a_process
from .interrupt import Interrupt
from .meter import Meter
from .pace import Pace
from .parallel import shared_steps
from .run import Run
from .state import TrainState


class Logger(Protocol):
    """Who listens to a run. Called at logging points only, but for `stepped`, which must not touch tensors."""

    def stepped(self, step: int) -> None: ...

    def logged(self, step: int, metrics: dict[str, float]) -> None: ...

    def evaluated(self, step: int, scores: dict[str, dict[str, Scores]]) -> None:
        """scores: as Run.evaluate gives them."""

    def noted(self, line: str) -> None:
        """Something that the user should know."""


def train(run: Run, logger: Logger, checkpoint: Path | None = None) -> dict[str, dict[str, Scores]]:
    """Train from run.state's step to the last and evaluate. An interrupt (Ctrl-C) is answered between two steps,
    after a checkpoint. Of several processes, all call this, and the first keeps the checkpoint.

    Args:
        checkpoint: where the state is kept; None keeps none.

    Returns:
        Scores after the last step, as Run.evaluate gives them.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite; the last checkpoint stays as it was.
        CheckpointError: the checkpoint cannot be written.
        RunError: another process of the job is gone.
    """
    try:
        # A step seeds torch's generators; the caller finds them as they were.
        gpus = [run.device] if run.device.type == "cuda" else []
        with (
            Interrupt(of_several=run.world.size > 1) as interrupt,
            torch.random.fork_rng(devices=gpus),
            float32_products(run.precision),
            loss_of_a_process(run.world, checkpoint),
            end_in_time(run.world, checkpoint) if run.device.type == "cuda" else contextlib.nullcontext(),
            shared_steps(run.state, run.world),
        ):
            return _train(run, logger, checkpoint, interrupt)
    finally:
        run.pipeline.close()


def _train(
    run: Run, logger: Logger, checkpoint: Path | None, interrupt: Interrupt
) -> dict[str, dict[str, Scores]]:
    state = run.state
    if state.step == 0 and checkpoint is not None:
        _save(run, checkpoint)  # a run can be resumed from its very beginning
    pace, meter, asked, scores = run.pace(), Meter(), Asked(run.world), None
    run.stepper.tell = logger.noted
    while not state.finished:
        losses = run.stepper()
        meter.add(losses, run.stepper.waited)
        pace.stepped()
        step, last = state.step, state.finished
        logger.stepped(int(state.position))
        # Looked at once: what comes while this step is saved is answered after the next.
        stop = asked.everywhere(interrupt.asked, at_once=last)
        save_now = (pace.saves() or stop) and checkpoint is not None
        if pace.logs() or save_now:
            _log(meter, logger, step, run, checkpoint, pace)
        began = time.perf_counter()
        if pace.evaluates():
            scores = run.evaluate()
            run.selection.add(step, scores, run.networks())
            logger.evaluated(step, scores)
            if found := run.pseudo_labels():
                logger.logged(step, found)
            pace.paused(time.perf_counter() - began, evaluating=True)
            meter.since += time.perf_counter() - began  # speed is that of training
        began = time.perf_counter()
        if save_now and checkpoint:
            _refuse_bad_weights(state, checkpoint)
            _save(run, checkpoint)
            pace.paused(time.perf_counter() - began)
        if stop or (last and interrupt.asked and run.world.size == 1):
            run.world.after_first()
            raise Interrupted(checkpoint) if checkpoint else KeyboardInterrupt
    for line in pace.remarks():
        logger.noted(line)
    return run.evaluate() if scores is None else scores


def _save(run: Run, checkpoint: Path) -> None:
    if run.world.first:
        save_checkpoint(checkpoint, run.state, run.identity(), run.selection)


def _refuse_bad_weights(state: TrainState, checkpoint: Path) -> None:
    """A finite loss may still leave weights behind that are not; they never replace a good checkpoint."""
    norms = torch._foreach_norm([p.detach() for p in state.model.parameters()])
    if not bool(torch.stack(norms).isfinite().all()):
        kept = f"; the last checkpoint in {checkpoint} is intact" if checkpoint.exists() else ""
        raise NonFiniteLossError(
            f"weights became NaN or infinite by step {state.step}; try a lower optim.lr{kept}"
        )


def _log(meter: Meter, logger: Logger, step: int, run: Run, checkpoint: Path | None, pace: Pace) -> None:
    """Fetch the interval's means; a loss that is not finite ends the run before anything is overwritten."""
    first = step - meter.steps + 1
    metrics = meter.fetch()
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        kept = f"; the last checkpoint in {checkpoint} is intact" if checkpoint and checkpoint.exists() else ""
        raise NonFiniteLossError(
            f"{', '.join(bad)} became NaN or infinite between steps {first} and {step}; "
            f"try a lower optim.lr (now {run.config.optim.lr}) or precision fp32 (now {run.precision}){kept}"
        )
    logger.logged(step, {**metrics, **pace.metrics()})
