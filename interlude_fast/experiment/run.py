"""A run with its folder: train and resume."""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from interlude_fast.config import ExperimentConfig, dump, merge_config
from interlude_fast.data.manifest import to_text
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import RichProgress
from interlude_fast.errors import CheckpointError, ConfigError
from interlude_fast.metrics import Scores
from interlude_fast.models.norms import plain_state_dict
from interlude_fast.settings_files import read_yaml
from interlude_fast.training.checkpoint import load_checkpoint, save_tensors
from interlude_fast.training.distributed import World
from interlude_fast.training.evaluate import evaluate_networks
from interlude_fast.training.exhaustion import explained, refuse_too_large
from interlude_fast.training.identity import ADDED_LATER, what_counts
from interlude_fast.training.loop import train
from interlude_fast.training.run import Run
from interlude_fast.training.selection import BY_VALIDATION, Evaluation
from interlude_fast.training.setup import prepare

from .environment import environment
from .loggers import FileLogger, LoggerList, ProgressLogger
from .result import LAST, Result, result_as_dict, scores_as_dict, scores_from_dict
from .run_directory import RunDirectory

DEFAULT_FOLDER = Path("runs")
FROZEN = "frozen.json"  # scores of the features before training


def default_directory(config: ExperimentConfig, labels: int) -> Path:
    """runs/<data set>-<method>-<labels>-seed<s>, numbered on where that exists."""
    stem = f"{config.data.dataset}-{config.method.name}-{labels}-seed{config.seed}"
    path, number = DEFAULT_FOLDER / stem, 2
    while path.exists():
        path, number = DEFAULT_FOLDER / f"{stem}-{number}", number + 1
    return path


def resume_config(directory: Path | None, file: Path | None, overrides: list[dict[str, Any]]) -> ExperimentConfig:
    """The configuration of the run in `directory`, with what the command line asks for on top; train_run
    refuses what differs."""
    folder = _to_resume(directory)
    asked = [read_yaml(file)] if file else []
    return merge_config(folder.config(), [*asked, *overrides])


def train_run(
    config: ExperimentConfig,
    directory: Path | None = None,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> Result:
    """Train as configured, leaving everything in a run directory. In a job of several processes all of them call
    this, inside training.distributed.joined; the first writes.

    Args:
        directory: of the run; None chooses a free one under runs/.
        resume: go on with the run in `directory`, exactly.
        console: where progress is shown; None shows none.

    Raises:
        InterludeError: one line that says what is wrong; nothing that exists is changed.
    """
    began, world = time.perf_counter(), World.current()
    screen = console if console and world.first else Console(quiet=True)
    if resume:
        folder = _to_resume(directory)
        _refuse_changes(folder.config(), config)
        kept = folder.config().data.kept.model_dump(mode="json")
        config = merge_config(config, [{"data": {"kept": kept}}])  # with the precision that was chosen
        if not folder.checkpoint.exists():
            raise CheckpointError(
                f"{folder.checkpoint} does not exist: the run stopped before its first checkpoint; "
                "start it anew in another --run-dir"
            )
        run = _prepared(config, screen, folder.split)
        _refuse_other_images(folder, run)
        load_checkpoint(folder.checkpoint, run.state, run.identity(), run.selection)
        step = run.state.step
        if world.first:
            folder.rewind_metrics(step)
    else:
        world.from_first(lambda: RunDirectory.refuse_existing(directory) or "")
        run, step = _prepared(config, screen), 0
        folder = RunDirectory(Path(world.from_first(lambda: str(_begin(run, directory).path))))
    if not world.first:
        with explained(run.config, (run.dataset, run.split), folder.checkpoint):
            scores = train(run, LoggerList(), folder.checkpoint)
        world.after_first()
        return _result(folder, run, scores, began)
    files = FileLogger(folder, purge_step=step + 1 if resume else None)
    chosen = _what_was_chosen(run)
    files.log.info(chosen)
    if run.config.preset:
        files.log.info("preset: %s", run.config.preset)
    for path, reason in run.dataset.files.skipped if run.dataset.files else ():
        files.log.info("skipped: %r (%s)", path, reason)
    if screen.is_terminal:
        if run.config.preset:
            screen.print(f"preset: {run.config.preset}", markup=False, highlight=False, soft_wrap=True)
        screen.print(chosen, markup=False, highlight=False, soft_wrap=True)
    frozen = _frozen_scores(folder, run)
    try:
        show = ProgressLogger(screen, f"{run.dataset.name} {run.config.method.name}", run.config.train.steps)
        with explained(run.config, (run.dataset, run.split), folder.checkpoint), show as progress:
            scores = train(run, LoggerList(files, progress), folder.checkpoint)
    except (Exception, KeyboardInterrupt) as error:
        files.log.info("stopped: %s", str(error) or "interrupted")
        raise
    finally:
        files.close()
    _keep_weights(folder, run)
    result = _result(folder, run, scores, began)
    detailed = _in_detail(run)
    result = replace(result, scores={part: {**detailed[part], **frozen.get(part, {})} for part in detailed})
    if step < run.state.step or not folder.result.exists():
        folder.write("result.json", result_as_dict(result, run.selection.network))
    world.after_first()
    return result  # where it had finished before, its own result.json stands


def _prepared(config: ExperimentConfig, screen: Console, split_file: Path | None = None) -> Run:
    with explained(config):
        run = prepare(config, RichProgress(screen), split_file)
    refuse_too_large(run.config, run.dataset, run.split)
    return run


def _what_was_chosen(run: Run) -> str:
    job = f"{run.world}; " if run.world.size > 1 else ""
    return f"{job}pipeline: {run.pipeline_choice}; {run.precision} on {run.device}; steps: {run.stepper.choice}"


def _begin(run: Run, directory: Path | None) -> RunDirectory:
    folder = RunDirectory.create(directory or default_directory(run.config, len(run.split.labeled)))
    used = {"precision_used": run.precision, "pipeline": run.pipeline_choice, "steps": run.stepper.choice}
    used |= {"processes": str(run.world), "preset": run.config.preset}
    write_environment(folder, run.config, run.manifest(), Preprocessing.of(run.dataset), used)
    return folder


def _result(folder: RunDirectory, run: Run, scores: dict[str, dict[str, Scores]], began: float) -> Result:
    last = {name: Evaluation.of(name, run.state.step, scores) for name in run.networks()} if scores else {}
    evaluations = {LAST: last, **run.selection.best}
    return Result(
        directory=folder.path,
        scores=scores,
        seconds=time.perf_counter() - began,
        evaluations=evaluations,
        selected_by=run.selection.by,
        classes=run.dataset.classes,
    )


def _keep_weights(folder: RunDirectory, run: Run) -> None:
    for name, network in run.networks().items():
        save_tensors(folder.weights(name), plain_state_dict(network), {"network": name})
    chosen = run.selection
    if chosen.weights:
        step = str(chosen.best[BY_VALIDATION][chosen.network].step)
        about = {"network": chosen.network, "step": step, "selected_by": chosen.by}
        weights = plain_state_dict(run.state.model, chosen.weights)
        save_tensors(folder.weights(BY_VALIDATION), weights, about)


def _in_detail(run: Run) -> dict[str, dict[str, Scores]]:
    """Scores in detail of every network on every held-out image, the one that validation selected among them."""
    networks = run.networks()
    if run.selection.weights:
        networks[BY_VALIDATION] = copy.deepcopy(run.state.ema.model)
        networks[BY_VALIDATION].load_state_dict(run.selection.weights)
    return evaluate_networks(
        networks,
        run.eval_sets,
        Preprocessing.of(run.dataset),
        batch=run.config.train.eval_batch,
        precision=run.precision,
        seed=run.config.seed,
    )


def _frozen_scores(folder: RunDirectory, run: Run) -> dict[str, dict[str, Scores]]:
    """What a linear head and nearest neighbours make of the features before a step is done: images -> "probe" and
    "knn" -> scores in detail; of a resumed run as it wrote them when it began. Nothing without a probe."""
    if run.head is None:
        path = folder.path / FROZEN
        return scores_from_dict(folder.read_json(FROZEN)) if path.exists() else {}
    found = run.frozen_scores()
    folder.write(FROZEN, scores_as_dict(found))
    return found


def _to_resume(directory: Path | None) -> RunDirectory:
    if directory is None:
        raise ConfigError("--resume wants the run to go on with: --run-dir DIR --resume")
    folder = RunDirectory.open(directory)
    if folder.imported.exists():
        raise CheckpointError(
            f"{directory} is imported: it holds weights only, no training to go on with; start a run from them: "
            f"--set model.weights={folder.weights('ema')}"
        )
    return folder


def write_environment(
    folder: RunDirectory,
    config: ExperimentConfig,
    split: dict[str, Any],
    preprocessing: Preprocessing,
    used: dict[str, str] | None = None,
) -> None:
    """config.yaml, passport.json, split.json and preprocessing.json of a new run.

    Args:
        split: its manifest. used: what was chosen for training, by name.
    """
    folder.write("config.yaml", dump(config))
    folder.write("passport.json", {"command": sys.argv, **(used or {}), **environment()})
    folder.write("split.json", to_text(split))
    folder.write("preprocessing.json", preprocessing.as_dict())


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def first_change(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Two configurations' first difference in words, `"optim.lr = 0.1, but 0.5 is asked for now"`, or None."""
    old, new, later = _flat(before), _flat(now), _flat(ADDED_LATER)
    # A part's name first: the options of another part differ anyway.
    for key in sorted(old.keys() | new.keys(), key=lambda k: (not k.endswith(".name"), k)):
        was, is_now = (values.get(key, later.get(key)) for values in (old, new))
        if was != is_now:
            return f"{key} = {was}, but {is_now} is asked for now"
    return None


def _refuse_other_images(folder: RunDirectory, run: Run) -> None:
    """Raises CheckpointError where a run's images are no longer prepared as they were: the settings are the same,
    but what pretrained weights want has changed with a version."""
    before = Preprocessing.from_dict(folder.read_json("preprocessing.json"))
    if difference := before.difference(Preprocessing.of(run.dataset)):
        raise CheckpointError(
            f"{folder.path} was trained on images of {difference} as now; resume it with the versions of "
            "interlude-fast and timm that it was trained with, or start it anew in another --run-dir"
        )


def _refuse_changes(before: ExperimentConfig, now: ExperimentConfig) -> None:
    """Raises CheckpointError where a run to resume has another configuration."""
    if change := first_change(what_counts(before), what_counts(now)):
        raise CheckpointError(f"the run to resume has {change}; a resumed run keeps its configuration")
