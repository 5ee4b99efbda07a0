"""The training run from end to end: the one file that names every stage."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from interlude_fast.config import Config, Named, Precision
from interlude_fast.data.augment import Policy
from interlude_fast.data.batch import RowOrder
from interlude_fast.data.manifest import manifest, replay
from interlude_fast.data.pipelines import Pipeline, build_pipeline, choose_pipeline
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress
from interlude_fast.data.sources import Source, load_source
from interlude_fast.data.split import Split, draw_split, with_every_label
from interlude_fast.errors import Interrupted, NonFiniteLossError
from interlude_fast.evaluate import Scores, evaluate
from interlude_fast.methods import Losses, Problem, build_method, method_class
from interlude_fast.methods import resolve_options as resolve_method_options
from interlude_fast.models import Shape
from interlude_fast.models import resolve_options as resolve_model_options

from .build import build_network, refuse_single_rows
from .checkpoint import save_checkpoint
from .optim import learning_rate_factor, refuse_contradictions
from .selection import Selection
from .state import TrainState
from .step import resolve_device, resolve_precision, train_step

# Settings that may differ when a run goes on: they do not change what is computed.
FREE_TO_CHANGE = {
    "train": {"device", "log_every", "eval_every", "checkpoint_every", "eval_batch"},
    "data": {"root", "labeled", "unlabeled", "test", "cache", "workers"},  # the split's hash tells other images
}
PATHS = ("root", "labeled", "unlabeled", "test", "cache")


def what_counts(config: Config) -> dict[str, Any]:
    """The settings that a run's computation depends on. Pipelines with equal bytes are one."""
    settings = config.model_dump(mode="json")
    for section, keys in FREE_TO_CHANGE.items():
        settings[section] = {k: v for k, v in settings[section].items() if k not in keys}
    settings["data"]["pipeline"] = "dali" if settings["data"]["pipeline"] == "dali" else "any but dali"
    settings["data"]["split"].pop("file")  # the run keeps the split itself
    return settings


class Recorder(Protocol):
    """Who listens to a run. Called at logging points only, but for `stepped`, which must not touch tensors."""

    def stepped(self, step: int) -> None: ...

    def logged(self, step: int, metrics: dict[str, float]) -> None: ...

    def evaluated(self, step: int, scores: dict[str, Scores]) -> None: ...


@dataclass
class Run:
    """Everything that a configuration stands for, built and ready to train."""

    config: Config
    device: torch.device
    precision: Precision
    source: Source
    split: Split
    pipeline: Pipeline
    pipeline_choice: str
    split_file: Path | None
    state: TrainState
    selection: Selection

    def identity(self) -> dict[str, Any]:
        """The settings that a checkpoint is bound to."""
        return {**what_counts(self.config), "precision": self.precision}

    def manifest(self) -> dict[str, Any]:
        """The split as a file's content: that which was replayed, or this one."""
        return manifest(self.source, self.split, self.config.data, self.config.seed, self.split_file)

    def networks(self) -> dict[str, nn.Module]:
        return {"raw": self.state.model, "ema": self.state.ema.model}

    def evaluate(self) -> dict[str, Scores]:
        """Scores of the raw and the EMA network: "raw" and "ema" on the test set, "raw_validation" and
        "ema_validation" on the validation images; without the one or the other where there are none."""
        normalize, scores = Preprocessing.of(self.source).normalize, {}
        for part, suffix in (("test", ""), ("validation", "_validation")):
            labels = self.held_out_labels(part)
            for name, network in self.networks().items() if len(labels) else ():
                scores[name + suffix] = evaluate(network, self.held_out_batches(part), labels, normalize)
        return scores

    def held_out_labels(self, part: str) -> Tensor:
        """int64, of the images of "test" or "validation"; empty where there are none."""
        store = self.pipeline.sampler.store
        return store.all_labels[getattr(store, part)]

    def held_out_batches(self, part: str) -> Iterator[Tensor]:
        """uint8 [n, S, S, C], in the order of held_out_labels."""
        store = self.pipeline.sampler.store
        return store.batches(getattr(store, part), self.config.train.eval_batch)


def resolve(config: Config) -> Config:
    """The configuration with every default of its method and network written out, and paths from the root.

    Raises:
        ConfigError: an unknown method, network or option.
    """
    model, method = config.model, config.method
    model_options = resolve_model_options(model.name, model.options())
    if model_options.weights is not None:
        model_options.weights = model_options.weights.absolute()
    method_options = resolve_method_options(method.name, method.options())
    data = config.data
    paths = {name: path.absolute() for name in PATHS if (path := getattr(data, name)) is not None}
    split = data.split.model_copy(update={"file": data.split.file.absolute()} if data.split.file else {})
    if method_class(method.name).every_label:
        data, split = data.model_copy(update={"labels": None}), split.model_copy(update={"counts": None})
    return config.model_copy(
        update={
            "data": data.model_copy(update={**paths, "split": split}),
            "model": Named(name=model.name, **model_options.model_dump()),
            "method": Named(name=method.name, **method_options.model_dump()),
        }
    )


def load_data(
    config: Config, progress: Progress | None = None, split_file: Path | None = None
) -> tuple[Source, Split]:
    """Source and split of a configuration; `split_file`, a run's own, is replayed where it is given, as
    data.split.file is; of the latter a method that trains with every label takes what is held out alone.

    Raises:
        ConfigError, DataError: a setting, data set or split file that does not fit.
    """
    source = load_source(config.data, progress)
    file = split_file or config.data.split.file
    split = replay(file, source) if file else draw_split(source, config.data, config.seed)
    if file and not split_file and method_class(config.method.name).every_label:
        split = with_every_label(source, split)
    return source, split


def view_policy(config: Config, source: Source) -> Policy:
    """How the views of a data set are drawn."""
    a = config.augment
    flip = source.flip if a.flip is None else a.flip
    return Policy(flip, a.crop, a.n, a.m, a.cutout, a.paired == "shared", a.form)


def problem(config: Config, source: Source, split: Split) -> Problem:
    """What the method may know of a run."""
    optim, steps = config.optim, config.train.steps
    lowest, highest = (
        tuple((end - m) / s for m, s in zip(source.mean, source.std, strict=True)) for end in (0.0, 1.0)
    )
    return Problem(
        len(source.classes),
        len(split.unlabeled),
        steps,
        lowest,
        highest,
        lambda step: optim.lr * learning_rate_factor(optim, step, steps),
    )


def prepare(config: Config, progress: Progress | None = None, split_file: Path | None = None) -> Run:
    """Build a run: source -> split -> store, sampler and pipeline -> model and method -> state.

    Args:
        split_file: a split to replay, whatever the configuration says. A run that goes on or is evaluated names
            its own; its weights are the caller's to load, so those that it started from are not read.

    Raises:
        ConfigError, DataError: a setting or a data set that does not fit.
    """
    config = resolve(config)
    t = config.train
    device = resolve_device(t.device)
    precision = resolve_precision(t.precision, device)
    refuse_contradictions(config.optim, t.steps)
    source, split = load_data(config, progress, split_file)
    method = build_method(config.method.name, config.method.options(), problem(config, source, split)).to(device)
    shape = Shape(len(source.classes), source.channels, source.size)
    model = build_network(config, method, shape, fresh=split_file is None)
    model = model.to(device).to(memory_format=torch.channels_last)
    order = RowOrder(t.batch, t.mu, method.labeled_views, method.unlabeled_views, method.layout)
    refuse_single_rows(config, method, model, order.count)
    name, why = choose_pipeline(config.data.pipeline, source, device)
    pipeline = build_pipeline(
        name,
        source,
        split,
        order,
        view_policy(config, source),
        seed=config.seed,
        device=device,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,  # as autocast would round them
        workers=config.data.workers,
    )
    state = TrainState(model, method, config.optim, t.steps, config.seed)
    if not method.every_label:  # whose split is its own, not the file's
        split_file = split_file or config.data.split.file
    selection = Selection(t.select_by, t.select_network)
    return Run(config, device, precision, source, split, pipeline, f"{name} ({why})", split_file, state, selection)


class Interrupt:
    """While it lasts, the first SIGINT only asks; the loop answers where its state is whole. A second one ends."""

    asked = False

    def __enter__(self) -> Interrupt:
        self.before: Any = None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Meter:
    """Sums metrics on the device; the host learns of them at `fetch`."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.names: list[str] = []
        self.steps = 0
        self.data_seconds = 0.0
        self.since = time.perf_counter()

    def add(self, losses: Losses, data_seconds: float) -> None:
        values = {"loss": losses.total.detach(), **losses.metrics}
        stacked = torch.stack([v.float() for v in values.values()])
        self.names, self.total = list(values), stacked if self.total is None else self.total + stacked
        self.steps += 1
        self.data_seconds += data_seconds

    def fetch(self) -> dict[str, float]:
        """Means since the last fetch, with the speed; starts anew."""
        assert self.total is not None
        means = dict(zip(self.names, (self.total / self.steps).tolist(), strict=True))
        seconds = time.perf_counter() - self.since
        speed = {"steps_per_second": self.steps / seconds, "data_wait": self.data_seconds / seconds}
        self.__init__()  # type: ignore[misc]
        return {**means, **speed}


def train(run: Run, recorder: Recorder, checkpoint: Path | None = None) -> dict[str, Scores]:
    """Train from run.state's step to the last and evaluate. An interrupt (Ctrl-C) is answered between two steps,
    after a checkpoint.

    Args:
        checkpoint: where the state is kept; None keeps none.

    Returns:
        Scores of the raw and the EMA network after the last step, as Run.evaluate gives them.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite; the last checkpoint stays as it was.
        CheckpointError: the checkpoint cannot be written.
    """
    try:
        # A step seeds torch's generators; the caller finds them as they were.
        gpus = [run.device] if run.device.type == "cuda" else []
        with Interrupt() as interrupt, torch.random.fork_rng(devices=gpus):
            return _train(run, recorder, checkpoint, interrupt)
    finally:
        run.pipeline.close()


def _train(run: Run, recorder: Recorder, checkpoint: Path | None, interrupt: Interrupt) -> dict[str, Scores]:
    t, state = run.config.train, run.state
    meter, scores = Meter(), None
    if state.step == 0 and checkpoint is not None:
        # A run can go on from its very beginning.
        save_checkpoint(checkpoint, state, run.identity(), run.selection)
    while state.step < t.steps:
        began = time.perf_counter()
        batch = run.pipeline.batch(state.step)
        waited = time.perf_counter() - began
        losses = train_step(state, batch, run.precision)
        meter.add(losses, waited)
        step, last = state.step, state.step == t.steps
        recorder.stepped(step)
        stop = interrupt.asked  # looked at once: what comes while this step is saved is answered after the next
        save_now = checkpoint is not None and (last or stop or step % t.checkpoint_every == 0)
        if last or save_now or step % t.log_every == 0:
            _log(meter, recorder, step, run, checkpoint)
        if last or step % t.eval_every == 0:
            began = time.perf_counter()
            scores = run.evaluate()
            run.selection.add(step, scores, run.networks())
            recorder.evaluated(step, scores)
            meter.since += time.perf_counter() - began  # speed is that of training
        if save_now and checkpoint:
            _refuse_bad_weights(state, checkpoint)
            save_checkpoint(checkpoint, state, run.identity(), run.selection)
        if stop or (last and interrupt.asked):
            raise Interrupted(checkpoint) if checkpoint else KeyboardInterrupt
    return run.evaluate() if scores is None else scores


def _refuse_bad_weights(state: TrainState, checkpoint: Path) -> None:
    """A finite loss may still leave weights behind that are not; they never replace a good checkpoint."""
    norms = torch._foreach_norm([p.detach() for p in state.model.parameters()])
    if not bool(torch.stack(norms).isfinite().all()):
        kept = f"; the last checkpoint in {checkpoint} is intact" if checkpoint.exists() else ""
        raise NonFiniteLossError(
            f"weights became NaN or infinite by step {state.step}; try a lower optim.lr{kept}"
        )


def _log(meter: Meter, recorder: Recorder, step: int, run: Run, checkpoint: Path | None) -> None:
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
    recorder.logged(step, metrics)
