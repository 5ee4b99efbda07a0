"""Evaluations in words and tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from interlude_fast.data.images import shown
from interlude_fast.experiment.result import FGSM_UNITS, NOT_FAIR, Result
from interlude_fast.metrics import LEVEL, Scores
from interlude_fast.training.selection import BY_TEST, BY_VALIDATION, Evaluation

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


def result_lines(result: Result) -> Iterator[str]:
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
    yield from _frozen(result)
    if not result.scores:
        yield "no test or validation images: nothing was evaluated (--set data.split.validation=0.2)"


def _frozen(result: Result) -> Iterator[str]:
    """What the features were worth before training."""
    for part, networks in result.scores.items():
        if "probe" in networks:
            linear, near = (f"{networks[name].error:.2%}" for name in ("probe", "knn"))
            low, high = (networks["probe"].intervals or {}).get("error", (None, None))
            interval = "" if low is None else f" ({LEVEL * 100:.0f} % interval {low:.1%} to {high:.1%})"
            yield f"a linear head on frozen features: {part} error {linear}{interval}; nearest neighbours {near}"


def _evaluation(network: str, e: Evaluation) -> str:
    told = [f"{p} error {network}: {s.error:.2%} ({s.n} images)" for p, s in e.scores.items()]
    return f"{', '.join(told)} at step {e.step}"


def evaluation_tables(found: Result) -> Iterator[Table | str]:
    """A table for each set of images, one of FGSM, and lines."""
    for part, networks in found.scores.items():
        yield _table(part, networks, found.fgsm if part == found.fgsm_on else {})
    if found.fgsm:
        yield f"FGSM: {FGSM_UNITS}"
    if found.selected:
        s = found.selected
        yield f"{BY_VALIDATION}: {s['network']} network after step {s['step']}, by {s['selected_by']}"
    for name, skipped in found.skipped.items():
        yield from (f"{name}: skipped {shown(path)}: {reason}" for path, reason in skipped)


def _table(part: str, networks: dict[str, Scores], fgsm: dict[str, dict[int, float]]) -> Table:
    columns = list(networks.values())
    table = Table(title=f"{part}: {columns[0].n} images")
    table.add_column("")
    for network in networks:
        table.add_column(f"{part}/{network}", justify="right", overflow="fold")
    for key, title in SHARES.items():
        table.add_row(title, *(_share(getattr(d, key)) for d in columns))
        intervals = [d.intervals or {} for d in columns]
        if all(key in found for found in intervals):
            bounds = ("{:.1%} to {:.1%}".format(*found[key]) for found in intervals)
            table.add_row(f"  {LEVEL:.0%} interval".replace("%", " %"), *bounds)
    recalls = [d.recall or {} for d in columns]
    for name in recalls[0] if len(recalls[0]) <= MOST_CLASSES else ():
        table.add_row(f"recall {shown(name)}", *(_share(recall[name]) for recall in recalls))
    for step in next(iter(fgsm.values()), ()):
        table.add_row(f"error, FGSM {step}/255", *(_share(fgsm[network][step]) for network in networks))
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
