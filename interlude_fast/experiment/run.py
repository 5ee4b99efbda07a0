"""A run with its folder: train, resume, evaluate again."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from interlude_fast.config import Config, dump, merge_config, read_yaml
from interlude_fast.data.manifest import to_text
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import RichProgress
from interlude_fast.errors import CheckpointError, ConfigError
from interlude_fast.metrics import Scores
from interlude_fast.train.checkpoint import load_checkpoint, save_tensors
from interlude_fast.train.distributed import World
from interlude_fast.train.exhaustion import explained, refuse_too_large
from interlude_fast.train.loop import Run, prepare, resolve, train, what_counts
from interlude_fast.train.selection import BY_TEST, BY_VALIDATION, Evaluation

from .environment import passport
from .full_report import details, with_selected
from .loggers import FileRecorder, ProgressRecorder, Several
from .run_directory import RunDirectory, load_weights

LAST = "last"
DEFAULT_FOLDER = Path("runs")
NOT_FAIR = "selected on the test set: not a fair figure, printed because the published tables are such"


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        scores: after the last step, as Run.evaluate gives them. seconds: of this process.
        evaluations: "last", "best_on_validation" and "best_on_test", each by network, "raw" and "ema"; without
            those of images that there are none of. selected_by: the score that chose the two best ones.
    """

    directory: Path
    scores: dict[str, Scores]
    seconds: float
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    selected_by: str = "accuracy"


def default_directory(config: Config, labels: int) -> Path:
    """runs/<data set>-<method>-<labels>-seed<s>, numbered on where that exists."""
    stem = f"{config.data.dataset}-{config.method.name}-{labels}-seed{config.seed}"
    path, number = DEFAULT_FOLDER / stem, 2
    while path.exists():
        path, number = DEFAULT_FOLDER / f"{stem}-{number}", number + 1
    return path


def resume_config(directory: Path | None, file: Path | None, overrides: list[dict[str, Any]]) -> Config:
    """The configuration of the run in `directory`, with what the command line asks for on top; train_run
    refuses what differs."""
    folder = _to_resume(directory)
    asked = [read_yaml(file)] if file else []
    return merge_config(folder.config(), [*asked, *overrides])


def train_run(
    config: Config, directory: Path | None = None, *, resume: bool = False, console: Console | None = None
) -> RunResult:
    """Train as configured, leaving everything in a run directory. In a job of several processes all of them call
    this, inside train.distributed.joined; the first writes.

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
        _refuse_changes(folder.config(), resolve(config))
        if not folder.checkpoint.exists():
            raise CheckpointError(
                f"{folder.checkpoint} does not exist: the run stopped before its first checkpoint; "
                "start it anew in another --run-dir"
            )
        run = _prepared(config, screen, folder.split)
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
            scores = train(run, Several(), folder.checkpoint)
        world.after_first()
        return _result(folder, run, scores, began)
    files = FileRecorder(folder, purge_step=step + 1 if resume else None)
    chosen = _what_was_chosen(run)
    files.log.info(chosen)
    for path, reason in run.dataset.files.skipped if run.dataset.files else ():
        files.log.info("skipped: %r (%s)", path, reason)
    if screen.is_terminal:
        screen.print(chosen, markup=False, highlight=False, soft_wrap=True)
    try:
        show = ProgressRecorder(screen, f"{run.dataset.name} {run.config.method.name}", run.config.train.steps)
        with explained(run.config, (run.dataset, run.split), folder.checkpoint), show as progress:
            scores = train(run, Several(files, progress), folder.checkpoint)
    except (Exception, KeyboardInterrupt) as error:
        files.log.info("stopped: %s", str(error) or "interrupted")
        raise
    finally:
        files.close()
    _keep_weights(folder, run)
    result = _result(folder, run, scores, began)
    if step < run.state.step or not folder.result.exists():
        folder.write("result.json", _as_json(result, run))
    world.after_first()
    return result  # where it had finished before, its own result.json stands


def _prepared(config: Config, screen: Console, split_file: Path | None = None) -> Run:
    with explained(config):
        run = prepare(config, RichProgress(screen), split_file)
    refuse_too_large(run.config, run.dataset, run.split)
    return run


def _what_was_chosen(run: Run) -> str:
    job = f"{run.world}; " if run.world.size > 1 else ""
    return f"{job}pipeline: {run.pipeline_choice}; {run.precision} on {run.device}; steps: {run.stepper.choice}"


def _begin(run: Run, directory: Path | None) -> RunDirectory:
    folder = RunDirectory.create(directory or default_directory(run.config, len(run.split.labeled)))
    write_passport(folder, run)
    return folder


def _result(folder: RunDirectory, run: Run, scores: dict[str, Scores], began: float) -> RunResult:
    last = {name: Evaluation.of(name, run.state.step, scores) for name in run.networks()} if scores else {}
    evaluations = {LAST: last, **run.selection.best}
    return RunResult(folder.path, scores, time.perf_counter() - began, evaluations, run.selection.by)


def _keep_weights(folder: RunDirectory, run: Run) -> None:
    for name, network in run.networks().items():
        save_tensors(folder.weights(name), dict(network.state_dict()), {"network": name})
    chosen = run.selection
    if chosen.weights:
        step = str(chosen.best[BY_VALIDATION][chosen.network].step)
        about = {"network": chosen.network, "step": step, "selected_by": chosen.by}
        save_tensors(folder.weights(BY_VALIDATION), chosen.weights, about)


def _as_json(result: RunResult, run: Run) -> dict[str, Any]:
    """result.json: scores after the last step, then the three evaluations by their names, then the full report."""
    report = details(run, with_selected(run, run.selection.weights or None))
    return {
        **{name: scores.as_dict() for name, scores in result.scores.items()},
        "seconds": result.seconds,
        **{
            kind: {name: evaluation.as_dict() for name, evaluation in found.items()}
            for kind, found in result.evaluations.items()
        },
        "selection": {"by": result.selected_by, "kept_network": run.selection.network, BY_TEST: NOT_FAIR},
        "report": {part: {name: d.as_dict() for name, d in found.items()} for part, found in report.items()},
    }


def read_result(directory: Path) -> RunResult:
    """What a finished run left in its result.json; what else stands there is not read.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    folder = RunDirectory.open(directory)
    values, known = folder.read_json(folder.result.name), {f.name for f in fields(Scores)}
    try:
        scores = {
            name: Scores(**{key: value for key, value in entry.items() if key in known})
            for name, entry in values.items()
            if isinstance(entry, dict) and "error" in entry
        }
        evaluations = {
            kind: {name: Evaluation.from_dict(entry) for name, entry in values[kind].items()}
            for kind in (LAST, BY_VALIDATION, BY_TEST)
            if kind in values
        }
        by = values.get("selection", {}).get("by", RunResult.selected_by)
        return RunResult(directory, scores, float(values["seconds"]), evaluations, by)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{folder.result} is damaged: it does not hold what a run writes") from None


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


def write_passport(folder: RunDirectory, run: Run) -> None:
    folder.write("config.yaml", dump(run.config))
    used = {"precision_used": run.precision, "pipeline": run.pipeline_choice, "steps": run.stepper.choice}
    used["processes"] = str(run.world)
    folder.write("passport.json", {"command": sys.argv, **used, **passport()})
    folder.write("split.json", to_text(run.manifest()))
    folder.write("preprocessing.json", Preprocessing.of(run.dataset).as_dict())


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def first_change(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Two configurations' first difference in words, `"optim.lr = 0.1, but 0.5 is asked for now"`, or None."""
    old, new = _flat(before), _flat(now)
    # A part's name first: the options of another part differ anyway.
    for key in sorted(old.keys() | new.keys(), key=lambda k: (not k.endswith(".name"), k)):
        if old.get(key) != new.get(key):
            return f"{key} = {old.get(key)}, but {new.get(key)} is asked for now"
    return None


def _refuse_changes(before: Config, now: Config) -> None:
    """Raises CheckpointError where a run to resume has another configuration."""
    if change := first_change(what_counts(before), what_counts(now)):
        raise CheckpointError(f"the run to resume has {change}; a resumed run keeps its configuration")


def evaluate_run(path: Path, overrides: list[dict[str, Any]] | None = None) -> dict[str, Scores]:
    """Scores of a run's saved networks on its test and validation images.

    Args:
        overrides: nested settings, such as another device or place of the data.

    Raises:
        CheckpointError: the folder is not a run's, or its weights are missing or damaged.
    """
    return open_run(path, overrides)[1].evaluate()


def open_run(path: Path, overrides: list[dict[str, Any]] | None = None) -> tuple[RunDirectory, Run]:
    """A finished run's folder, and the run with its last weights in its networks; as evaluate_run."""
    folder = RunDirectory.open(path)
    config = merge_config(folder.config(), overrides or [])
    run = prepare(config, split_file=folder.split)
    for name, network in run.networks().items():
        load_weights(network, folder, name)
    return folder, run
