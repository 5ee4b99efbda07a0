"""Evaluations in words and tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from interlude_fast.data.images import shown
from interlude_fast.evaluation.evaluate import FGSM_UNITS, Evaluated
from interlude_fast.experiment.run import NOT_FAIR, RunResult
from interlude_fast.metrics import Detail
from interlude_fast.train.selection import BY_TEST, BY_VALIDATION, Evaluation

SHARES = {  # a score and how it is called
    "error": "error",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "top5_accuracy": "top-5 accuracy",
    "macro_f1": "macro-F1",
    "auroc": "AUROC",
    "calibration_error": "calibration error",
}
MOST_CLASSES = 12  # whose recalls are shown; all are in the file of --out


def result_lines(result: RunResult) -> Iterator[str]:
    """The networks after the last step, then what was best on validation and on test, each by its name."""
    for kind, found in result.evaluations.items():
        if kind == BY_TEST and found:
            yield f"{BY_TEST}, {NOT_FAIR}:"
        elif kind == BY_VALIDATION and found:
            yield f"{BY_VALIDATION}, by {result.selected_by}:"
        elif found:
            yield f"{kind}:"
        for network, evaluation in found.items():
            yield f"  {_evaluation(network, evaluation)}"
    if not result.scores:
        yield "no test or validation images: nothing was evaluated (--set data.split.validation=0.2)"


def _evaluation(network: str, e: Evaluation) -> str:
    parts = {"test": e.test, "validation": e.validation}
    told = [f"{p} error {network}: {s.error:.2%} ({s.n} images)" for p, s in parts.items() if s]
    return f"{', '.join(told)} at step {e.step}"


def evaluation_tables(found: Evaluated) -> Iterator[Table | str]:
    """A table for each set of images, one of FGSM, and lines."""
    for part, networks in found.details.items():
        yield _table(part, networks, found.fgsm if part == found.fgsm_on else {})
    if found.fgsm:
        yield f"FGSM: {FGSM_UNITS}"
    if found.selected:
        s = found.selected
        yield f"{BY_VALIDATION}: {s['network']} network after step {s['step']}, by {s['selected_by']}"
    for name, skipped in found.skipped.items():
        yield from (f"{name}: skipped {shown(path)}: {reason}" for path, reason in skipped)


def _table(part: str, networks: dict[str, Detail], fgsm: dict[str, dict[int, float]]) -> Table:
    columns = list(networks.values())
    table = Table(title=f"{part}: {columns[0].scores.n} images")
    table.add_column("")
    for network in networks:
        table.add_column(f"{part}/{network}", justify="right", overflow="fold")
    for key, title in SHARES.items():
        table.add_row(title, *(_share(getattr(d.scores, key)) for d in columns))
        if key in columns[0].intervals:
            table.add_row("  95 % interval", *("{:.1%} to {:.1%}".format(*d.intervals[key]) for d in columns))
    for name in columns[0].recall if len(columns[0].recall) <= MOST_CLASSES else ():
        table.add_row(f"recall {shown(name)}", *(_share(d.recall[name]) for d in columns))
    for step in next(iter(fgsm.values()), ()):
        table.add_row(f"error, FGSM {step}/255", *(_share(fgsm[network][step]) for network in networks))
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
