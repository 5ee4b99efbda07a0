"""The reference recipe (bench/recipes/), timed in a process of its own: nothing of it is left in this one, neither
its workers nor its memory."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import sys
import threading
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from interlude_fast.config import ExperimentConfig, MethodSection
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.decode import cores
from interlude_fast.data.processes import start_process, take_output
from interlude_fast.data.split import Split
from interlude_fast.training.setup import load_data

from .timing import Timing, time_steps

NETWORK = ("depth", "width", "stages", "first_stride")


def recipes_folder() -> Path:
    """`bench/recipes/`: inside the installed package as `recipes`, or in the source tree."""
    installed = Path(str(resources.files("interlude_fast"))) / "recipes"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "bench" / "recipes"


def settings(config: ExperimentConfig, dataset: Dataset, split: Split, device: str) -> dict[str, Any]:
    """What a recipe's `build` takes, of a configuration: the images, and the sizes that cost depends on.
    Losses and optimizer are InterLUDE's as released, whatever the configuration trains."""
    options, t = config.model.options.model_dump(), config.train
    return {
        "images": dataset.images,
        "labels": dataset.labels,
        "labeled": split.labeled,
        "unlabeled": split.unlabeled,
        "classes": len(dataset.classes),
        "mean": dataset.mean,
        "std": dataset.std,
        "flip": dataset.flip if config.augment.flip is None else config.augment.flip,
        "device": device,
        "network": {**{name: options[name] for name in NETWORK}, "momentum": options["bn_momentum"]},
        "batch": t.batch,
        "mu": t.mu,
        "steps": t.steps,
        "seed": config.seed,
    }


def time_reference(config: ExperimentConfig, device: torch.device, seconds: float) -> Timing | str:
    """Steps of the reference recipe in the sizes of a configuration, or why there are none."""
    if config.model.name != "wideresnet":
        return f"the reference recipe has wide residual networks only, not {config.model.name}"
    try:
        process = start_process(__name__, torch.get_num_threads())
    except OSError as error:
        return f"no process to run it in: {error.strerror or error}"
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it died; the answer is missing
            # The split is InterLUDE's too; another method may be known to this process alone.
            config = config.model_copy(update={"method": MethodSection.model_validate({"name": "interlude"})})
            pickle.dump((config, str(device), seconds, torch.get_num_threads()), process.stdin)
            process.stdin.flush()
        answer: Timing | str = pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
        answer = f"its process died (exit code {process.wait()}); too little memory?"
    finally:
        # One whose standard input ends, ends: with its answer given, or interrupted.
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        process.wait()
    return answer


def serve() -> None:
    """The other end: one request from standard input, its answer to standard output."""
    answers = take_output()
    config, device, seconds, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer: Timing | str = _time(config, device, seconds)
    except Exception as error:
        answer = f"{type(error).__name__}: {error}".splitlines()[0]
    with contextlib.suppress(BrokenPipeError), answers:
        pickle.dump(answer, answers)


def _time(config: ExperimentConfig, device: str, seconds: float) -> Timing:
    dataset, split = load_data(config)
    sys.path.insert(0, str(recipes_folder()))  # by this name worker processes find it too, however they start
    recipe = importlib.import_module("reference").build(
        **settings(config, dataset, split, device),
        workers=cores() if config.data.workers is None else config.data.workers,
    )

    def step() -> float:
        recipe.step()
        return recipe.waited

    try:
        rows = 2 * config.train.batch * (1 + config.train.mu)
        return time_steps(step, rows, torch.device(device), seconds)
    finally:
        recipe.close()


def _end_with_parent() -> None:
    """Standard input ends when the parent has its answer, is interrupted or gone."""
    os.read(0, 1)
    for worker in multiprocessing.active_children():
        worker.terminate()
    os._exit(0)
