"""The training run from end to end: the one file that names every stage."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from interlude_fast.config import Config, Named, Precision
from interlude_fast.data.augment import Policy
from interlude_fast.data.batch import RowOrder
from interlude_fast.data.datasets import Dataset, load_dataset
from interlude_fast.data.decode import cores
from interlude_fast.data.manifest import manifest, replay
from interlude_fast.data.pipelines import Pipeline, build_pipeline, choose_pipeline
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress
from interlude_fast.data.split import Split, draw_split, with_every_label
from interlude_fast.errors import Interrupted, NonFiniteLossError
from interlude_fast.methods import Problem, build_method, method_class
from interlude_fast.methods import resolve_options as resolve_method_options
from interlude_fast.metrics import Scores, evaluate, predict_logits, pseudo_label_scores
from interlude_fast.models import Shape
from interlude_fast.models import resolve_options as resolve_model_options
from interlude_fast.models.sync_batch_norm import synchronize_batch_norms

from .build import build_network, refuse_single_rows
from .checkpoint import save_checkpoint
from .device import float32_products, image_dtype, resolve_precision
from .distributed import Asked, World, end_in_time, loss_of_a_process
from .interrupt import Interrupt
from .meter import Meter
from .optim import learning_rate_factor, refuse_contradictions, refuse_unscaled_shrink
from .pace import BudgetPace, Pace
from .parallel import SharedPace, shared_steps
from .selection import Selection
from .state import TrainState
from .ways import Stepper, build_stepper

# Settings that may differ when a run goes on: they do not change what is computed, or, as the number of processes
# and whether their batch norms are one, are those of a job and not of the run.
FREE_TO_CHANGE = {
    "train": {
        *("device", "compile", "capture", "sync_batch_norm"),
        *("log_every", "eval_every", "checkpoint_every", "eval_batch"),
    },
    "data": {"root", "labeled", "unlabeled", "test", "cache", "workers"},  # the split's hash tells other images
}
PSEUDO_LABELED = 2000  # images whose pseudo labels an evaluation looks at
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

    def noted(self, line: str) -> None:
        """Something that the user should know."""


@dataclass
class Run:
    """Everything that a configuration stands for, built and ready to train."""

    config: Config
    device: torch.device
    precision: Precision
    dataset: Dataset
    split: Split
    pipeline: Pipeline
    pipeline_choice: str
    split_file: Path | None
    state: TrainState
    selection: Selection
    stepper: Stepper
    world: World
    began: float = field(default_factory=time.monotonic)

    def pace(self) -> Pace:
        """What times the run; under a budget, an evaluation's length is judged by one batch of images."""
        t = self.config.train
        if t.budget is None:
            return Pace(t, self.state)
        pace = BudgetPace(t, self.state, self.began, self.evaluation_seconds())
        return pace if self.world.size == 1 else SharedPace(pace)

    def evaluation_seconds(self) -> float:
        """About how long `evaluate` takes, judged by one batch of images."""
        held_out = sum(len(self.held_out_labels(part)) for part in ("test", "validation"))
        part = "test" if len(self.held_out_labels("test")) else "validation"
        sizes, seconds = [], []
        for images in itertools.islice(self.held_out_batches(part), 2):  # the first one may allocate
            began = time.perf_counter()
            predict_logits(self.state.ema.model, [images], Preprocessing.of(self.dataset).normalize).sum().item()
            sizes.append(len(images))
            seconds.append(time.perf_counter() - began)
        return len(self.networks()) * held_out * seconds[-1] / sizes[-1] if sizes else 0.0

    def identity(self) -> dict[str, Any]:
        """The settings that a checkpoint is bound to."""
        return {**what_counts(self.config), "precision": self.precision}

    def manifest(self) -> dict[str, Any]:
        """The split as a file's content: that which was replayed, or this one."""
        return manifest(self.dataset, self.split, self.config.data, self.config.seed, self.split_file)

    def networks(self) -> dict[str, nn.Module]:
        return {"raw": self.state.model, "ema": self.state.ema.model}

    def evaluate(self) -> dict[str, Scores]:
        """Scores of the raw and the EMA network: "raw" and "ema" on the test set, "raw_validation" and
        "ema_validation" on the validation images; without the one or the other where there are none."""
        normalize, scores = Preprocessing.of(self.dataset).normalize, {}
        with float32_products(self.precision):
            for part, suffix in (("test", ""), ("validation", "_validation")):
                labels = self.held_out_labels(part)
                for name, network in self.networks().items() if len(labels) else ():
                    scores[name + suffix] = evaluate(network, self.held_out_batches(part), labels, normalize)
        return scores

    def pseudo_labels(self) -> dict[str, float]:
        """How good the raw network's pseudo labels are (metrics/pseudo_labels.py), on a sample of the images seen
        without labels whose classes the data set knows all the same; nothing where there are none."""
        store = self.pipeline.sampler.store
        hidden = store.unlabeled[
            (store.all_labels[store.unlabeled] >= 0) & ~torch.isin(store.unlabeled, store.labeled)
        ]
        if not len(hidden):
            return {}
        count = min(len(hidden), PSEUDO_LABELED)
        sample = hidden[torch.arange(count, device=hidden.device) * len(hidden) // count]  # over all of the pool
        images = store.batches(sample, self.config.train.eval_batch)
        logits = predict_logits(self.state.model, images, Preprocessing.of(self.dataset).normalize)
        return pseudo_label_scores(logits, store.all_labels[sample])

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
) -> tuple[Dataset, Split]:
    """Dataset and split of a configuration; `split_file`, a run's own, is replayed where it is given, as
    data.split.file is; of the latter a method that trains with every label takes what is held out alone.

    Raises:
        ConfigError, DataError: a setting, data set or split file that does not fit.
    """
    dataset = load_dataset(config.data, progress)
    file = split_file or config.data.split.file
    split = replay(file, dataset) if file else draw_split(dataset, config.data, config.seed)
    if file and not split_file and method_class(config.method.name).every_label:
        split = with_every_label(dataset, split)
    return dataset, split


def view_policy(config: Config, dataset: Dataset) -> Policy:
    """How the views of a data set are drawn."""
    a = config.augment
    flip = dataset.flip if a.flip is None else a.flip
    return Policy(flip, a.crop, a.n, a.m, a.cutout, a.paired == "shared", a.form)


def problem(config: Config, dataset: Dataset, split: Split) -> Problem:
    """What the method may know of a run."""
    optim, steps = config.optim, config.train.steps
    lowest, highest = (
        tuple((end - m) / s for m, s in zip(dataset.mean, dataset.std, strict=True)) for end in (0.0, 1.0)
    )
    return Problem(
        len(dataset.classes),
        len(split.unlabeled),
        steps,
        lowest,
        highest,
        lambda step: optim.lr * learning_rate_factor(optim, step, steps),
    )


def prepare(config: Config, progress: Progress | None = None, split_file: Path | None = None) -> Run:
    """Build a run: dataset -> split -> store, sampler and pipeline -> model and method -> state.

    Args:
        split_file: a split to replay, whatever the configuration says. A run that goes on or is evaluated names
            its own; its weights are the caller's to load, so those that it started from are not read.

    Raises:
        ConfigError, DataError: a setting or a data set that does not fit.
    """
    began = time.monotonic()
    config = resolve(config)
    t, world = config.train, World.current()
    world.refuse_uneven(t.batch)
    device = world.device(t.device)
    refuse_unscaled_shrink(config.optim, t.precision)
    refuse_contradictions(config.optim, t.steps)
    with world.first_here_then_others():
        dataset, split = load_data(config, progress, split_file)
    precision = resolve_precision(t.precision, device, dataset.size)
    method = build_method(config.method.name, config.method.options(), problem(config, dataset, split)).to(device)
    shape = Shape(len(dataset.classes), dataset.channels, dataset.size)
    model = build_network(config, method, shape, fresh=split_file is None)
    model = model.to(device).to(memory_format=torch.channels_last)
    if t.sync_batch_norm and world.size > 1:
        synchronize_batch_norms(model, device)
    order = RowOrder(t.batch, t.mu, method.labeled_views, method.unlabeled_views, method.layout)
    refuse_single_rows(config, method, model, order.count, world.size)
    name, why = choose_pipeline(config.data.pipeline, dataset, device)
    # Methods that run the network on groups of rows get all of them, and the network shares each group.
    shared, workers = method.forwards == "together", config.data.workers
    pipeline = build_pipeline(
        name,
        dataset,
        split,
        order,
        view_policy(config, dataset),
        seed=config.seed,
        device=device,
        dtype=image_dtype(precision),
        workers=cores() // world.local_size if workers is None and world.size > 1 else workers,
        rank=world.rank if shared else 0,
        world=world.size if shared else 1,
    )
    state = TrainState(model, method, config.optim, t.steps, config.seed, scale_loss=precision == "fp16")
    stepper = build_stepper(state, pipeline, t, precision, alone=world.size == 1)
    if not method.every_label:  # whose split is its own, not the file's
        split_file = split_file or config.data.split.file
    selection = Selection(t.select_by, t.select_network)
    chosen = f"{name} ({why})"
    return Run(
        *(config, device, precision, dataset, split, pipeline, chosen),
        *(split_file, state, selection, stepper, world, began),
    )


def train(run: Run, recorder: Recorder, checkpoint: Path | None = None) -> dict[str, Scores]:
    """Train from run.state's step to the last and evaluate. An interrupt (Ctrl-C) is answered between two steps,
    after a checkpoint. Of several processes, all call this, and the first keeps the checkpoint.

    Args:
        checkpoint: where the state is kept; None keeps none.

    Returns:
        Scores of the raw and the EMA network after the last step, as Run.evaluate gives them.

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
            return _train(run, recorder, checkpoint, interrupt)
    finally:
        run.pipeline.close()


def _train(run: Run, recorder: Recorder, checkpoint: Path | None, interrupt: Interrupt) -> dict[str, Scores]:
    state, pace = run.state, run.pace()
    meter, asked, scores = Meter(), Asked(run.world), None
    run.stepper.tell = recorder.noted
    if state.step == 0 and checkpoint is not None:
        _save(run, checkpoint)  # a run can go on from its very beginning
    while not state.finished:
        losses = run.stepper()
        meter.add(losses, run.stepper.waited)
        pace.stepped()
        step, last = state.step, state.finished
        recorder.stepped(int(state.position))
        # Looked at once: what comes while this step is saved is answered after the next.
        stop = asked.everywhere(interrupt.asked, at_once=last)
        save_now = (pace.saves() or stop) and checkpoint is not None
        if pace.logs() or save_now:
            _log(meter, recorder, step, run, checkpoint, pace)
        began = time.perf_counter()
        if pace.evaluates():
            scores = run.evaluate()
            run.selection.add(step, scores, run.networks())
            recorder.evaluated(step, scores)
            if found := run.pseudo_labels():
                recorder.logged(step, found)
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
        recorder.noted(line)
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


def _log(meter: Meter, recorder: Recorder, step: int, run: Run, checkpoint: Path | None, pace: Pace) -> None:
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
    recorder.logged(step, {**metrics, **pace.metrics()})
