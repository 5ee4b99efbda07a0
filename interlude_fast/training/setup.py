"""From a configuration to a run that is ready to train: the one file that names every stage."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.augment import Policy
from interlude_fast.data.datasets import Dataset, LoadContext
from interlude_fast.data.decode import cores
from interlude_fast.data.eval_set import held_out_sets
from interlude_fast.data.kept import KeptViews
from interlude_fast.data.manifest import read_manifest, replay
from interlude_fast.data.pipelines import Pipeline, build_pipeline, choose_pipeline
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress, Silent
from interlude_fast.data.split import Split, draw_split, with_every_label
from interlude_fast.methods import METHODS, Method, TaskInfo, build_method
from interlude_fast.models.sync_batch_norm import synchronize_batch_norms
from interlude_fast.options import Precision

from .checks import SettingChecks, TrainingChecks, check_machine, row_order, shows_strong
from .device import image_dtype, resolve_precision
from .distributed import World
from .head import start_from_probe
from .inputs import load_images
from .kept import keep_views
from .optim import learning_rate_factor
from .outlook import outlook
from .run import Run
from .selection import Selection
from .state import TrainState
from .ways import build_stepper


def load_data(
    config: ExperimentConfig,
    progress: Progress | None = None,
    split_file: Path | None = None,
    checks: SettingChecks | None = None,
) -> tuple[Dataset, Split]:
    """Dataset and split of a configuration; `split_file`, a run's own, is replayed where it is given, as
    data.split.file is; of the latter a method that trains with every label takes what is held out alone.

    Args:
        checks: of settings against the classes and the images' shape, before images are opened and decoded; None
            checks the settings of the split alone.

    Raises:
        ConfigError, DataError: a setting, dataset or split file that does not fit.
    """
    file, checks = split_file or config.data.split.file, checks or SettingChecks(config)
    checks.replayed = file is not None
    if file:
        read_manifest(file)
    context = LoadContext(progress or Silent(), checks.with_classes, checks.with_shape)
    dataset = load_images(config, context)
    split = replay(file, dataset) if file else draw_split(dataset, config.data, config.seed)
    if file and not split_file and METHODS.find(config.method.name).every_label:
        split = with_every_label(dataset, split)
    return dataset, split


def view_policy(config: ExperimentConfig, dataset: Dataset) -> Policy:
    """How the views of a dataset are drawn."""
    a = config.augment
    flip = dataset.flip if a.flip is None else a.flip
    return Policy(flip, a.crop, a.n, a.m, a.cutout, a.paired == "shared", a.form)


def task_info(config: ExperimentConfig, dataset: Dataset, split: Split) -> TaskInfo:
    """What the method may know of a run."""
    optim, steps = config.optim, config.train.steps
    lowest, highest = (
        tuple((end - m) / s for m, s in zip(dataset.mean, dataset.std, strict=True)) for end in (0.0, 1.0)
    )
    return TaskInfo(
        len(dataset.classes),
        len(split.unlabeled),
        steps,
        lowest,
        highest,
        lambda step: optim.lr * learning_rate_factor(optim, step, steps),
    )


def prepare(config: ExperimentConfig, progress: Progress | None = None, split_file: Path | None = None) -> Run:
    """Build a run: dataset -> split -> store, sampler and pipeline -> model and method -> state. Settings are
    judged first: those that need no data before anything is read, the others once classes and sizes are known.

    Args:
        split_file: a split to replay, whatever the configuration says. A run that is resumed names its own; its
            weights are the caller's to load, so those that it started from are not read.

    Raises:
        ConfigError, DataError: a setting or a dataset that does not fit.
    """
    began, world, fresh = time.monotonic(), World.current(), split_file is None
    device, checks = check_machine(config, world, fresh), TrainingChecks(config, world, fresh, progress)
    with world.first_here_then_others():
        dataset, split = load_data(config, progress, split_file, checks)
    t, is_kept = config.train, config.data.pipeline == "kept"
    precision = resolve_precision(t.precision, device, dataset.size, is_kept)
    method = build_method(config.method.name, config.method.options, task_info(config, dataset, split)).to(device)
    assert checks.network is not None
    model = checks.network.to(device).to(memory_format=torch.channels_last)
    if t.sync_batch_norm and world.size > 1:
        synchronize_batch_norms(model, device)
    policy, kept = view_policy(config, dataset), None
    if is_kept:
        kept, config = keep_views(
            config, dataset, policy, model.trunk, device, world, progress, strong=shows_strong(config, method)
        )
    told = progress if progress and world.first else Silent()
    for line in model.trunk.remarks:
        told.note(f"{config.model.name}: {line}")
    if kept:
        told.note(outlook(config, method, model, kept, row_order(config, method), precision, len(dataset.classes)))
    pipeline, why = _pipeline(config, dataset, split, method, world, device, precision, kept)
    store, head = pipeline.sampler.store, None
    if fresh and getattr(config.model.options, "head", None) == "probe":
        normalize = Preprocessing.of(dataset).normalize
        head = start_from_probe(model, store, kept, normalize, len(dataset.classes), config.seed)
        if not head.fits:
            told.note(f"{config.method.name} has a classifier of its own, which begins with fresh values")
    state = TrainState(model, method, config.optim, t.steps, config.seed, scale_loss=precision == "fp16")
    if not method.every_label:  # whose split is its own, not the file's
        split_file = split_file or config.data.split.file
    return Run(
        config=config,
        device=device,
        precision=precision,
        dataset=dataset,
        split=split,
        eval_sets=held_out_sets(dataset, split, device, store.images if store.resident else None, kept),
        pipeline=pipeline,
        pipeline_choice=why,
        kept=kept,
        head=head,
        split_file=split_file,
        state=state,
        selection=Selection(t.select_by, t.select_network),
        stepper=build_stepper(state, pipeline, t, precision, alone=world.size == 1),
        world=world,
        began=began,
    )


def _pipeline(
    config: ExperimentConfig,
    dataset: Dataset,
    split: Split,
    method: Method,
    world: World,
    device: torch.device,
    precision: Precision,
    kept: KeptViews | None,
) -> tuple[Pipeline, str]:
    """The pipeline, and in words which one and why."""
    name, why = choose_pipeline(config.data.pipeline, dataset, device)
    # Methods that run the network on groups of rows get all of them, and the network shares each group.
    shared, workers = method.forwards == "together", config.data.workers
    pipeline = build_pipeline(
        name,
        dataset,
        split,
        row_order(config, method),
        view_policy(config, dataset),
        seed=config.seed,
        device=device,
        dtype=image_dtype(precision),
        workers=cores() // world.local_size if workers is None and world.size > 1 else workers,
        rank=world.rank if shared else 0,
        world=world.size if shared else 1,
        kept=kept,
    )
    if kept:
        why = f"{kept.plan.weak} weak and {kept.plan.strong} strong views, front in {kept.options.precision}"
    return pipeline, f"{name} ({why})"
