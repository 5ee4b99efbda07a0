"""What a run came to: one result, for training, evaluation and import."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interlude_fast.data.eval_set import HELD_OUT
from interlude_fast.errors import CheckpointError, DataError
from interlude_fast.metrics import Scores
from interlude_fast.training.checkpoint import write_atomically
from interlude_fast.training.selection import BY_TEST, BY_VALIDATION, Evaluation

from .run_directory import RunDirectory, to_json

NETWORKS = {"ema": "EMA network", "raw": "raw network"}
LAST = "last"
NOT_FAIR = "selected on the test set: not a fair figure, printed because the published tables are such"
FGSM_UNITS = "step in pixel units of 0 to 255, before normalization"


@dataclass(frozen=True)
class Result:
    """What is known of a run.

    Attributes:
        directory: of the run.
        scores: images ("test", "validation", names of transfer sets) -> network ("ema", "raw", and
            "best_on_validation" where it was kept) -> scores, after the last step.
        seconds: of the process that trained or evaluated.
        evaluations: "last", "best_on_validation" and "best_on_test", each by network; without those of images that
            there are none of. selected_by: the score that chose the two best ones.
        classes: the K class names, where the confusion matrices are there too.
        fgsm: network -> step size -> error. fgsm_on: the images that were attacked.
        skipped: transfer set -> (path, reason) of files that could not be read.
        selected: of the weights that validation kept: network, step, selected_by.
    """

    directory: Path
    scores: dict[str, dict[str, Scores]]
    seconds: float = 0.0
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    selected_by: str = "accuracy"
    classes: tuple[str, ...] = ()
    fgsm: dict[str, dict[int, float]] = field(default_factory=dict)
    fgsm_on: str = "test"
    skipped: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    selected: dict[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> tuple[str, str, Scores] | None:
        """(images, network, scores) that stand for the run: the EMA network on the test images, else on validation
        images; None where nothing was evaluated."""
        for part in (*HELD_OUT, *self.scores):
            for network in (*NETWORKS, BY_VALIDATION):
                if found := self.scores.get(part, {}).get(network):
                    return part, network, found
        return None

    @property
    def error(self) -> float:
        """Share of wrong predictions in [0, 1]: of the headline.

        Raises:
            DataError: the run has neither test nor validation images.
        """
        if self.headline is None:
            raise DataError(
                f"{self.directory} has no test or validation images, so its error is not known; hold some out: "
                "data.split.validation=0.2"
            )
        return self.headline[2].error

    def best_errors(self, kind: str) -> Iterator[tuple[str, str, float]]:
        """(images, network, error) of "last", "best_on_validation" or "best_on_test"."""
        for network, evaluation in self.evaluations.get(kind, {}).items():
            for part, scores in evaluation.scores.items():
                yield part, network, scores.error

    def as_dict(self) -> dict[str, Any]:
        """An evaluation as `eval --out` writes it."""
        return {
            "run": str(self.directory),
            "classes": list(self.classes),
            BY_VALIDATION: self.selected,
            "report": scores_as_dict(self.scores),
            "fgsm": {"units": FGSM_UNITS, "images": self.fgsm_on, "error": self.fgsm} if self.fgsm else None,
            "skipped": self.skipped,
        }

    def save(self, path: Path) -> None:
        """as_dict() as JSON, or the confusion matrices as CSV where the name ends so; written atomically."""
        text = self.confusion_csv() if path.suffix.lower() == ".csv" else to_json(self.as_dict()) + "\n"
        write_atomically(path, text.encode("utf-8", "surrogateescape"))

    def confusion_csv(self) -> str:
        """A row for every true class of every network on every set of images, a column for every predicted one."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["images", "network", "true class", *(f"predicted {name}" for name in self.classes)])
        for part, networks in self.scores.items():
            for network, scores in networks.items():
                matrix = scores.confusion or []
                rows.writerows([part, network, c, *row] for c, row in zip(self.classes, matrix, strict=True))
        return text.getvalue()

    def _repr_html_(self) -> str:
        """A small table for notebooks."""
        rows = [
            f"<tr><td>{html.escape(part)}</td><td>{html.escape(network)}</td><td>{s.error:.2%}</td><td>{s.n:,}</td></tr>"
            for part, networks in self.scores.items()
            for network, s in networks.items()
        ]
        head = "<tr><th>images</th><th>network</th><th>error</th><th>n</th></tr>"
        body = f"<table>{head}{''.join(rows)}</table>" if rows else "<p>no test or validation images</p>"
        return f"{body}<p>{self.seconds:.0f} s, everything in <code>{html.escape(str(self.directory))}</code></p>"


def scores_as_dict(scores: dict[str, dict[str, Scores]]) -> dict[str, Any]:
    """The nested scores in JSON types."""
    return {part: {name: s.as_dict() for name, s in networks.items()} for part, networks in scores.items()}


def scores_from_dict(values: dict[str, Any]) -> dict[str, dict[str, Scores]]:
    """scores_as_dict()'s.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: they are not.
    """
    return {part: {name: Scores.from_dict(s) for name, s in networks.items()} for part, networks in values.items()}


def result_as_dict(result: Result, kept_network: str) -> dict[str, Any]:
    """The content of result.json: scores after the last step, then the three evaluations by their names."""
    return {
        "scores": scores_as_dict(result.scores),
        "seconds": result.seconds,
        **{
            kind: {name: evaluation.as_dict() for name, evaluation in found.items()}
            for kind, found in result.evaluations.items()
        },
        "selection": {"by": result.selected_by, "kept_network": kept_network, BY_TEST: NOT_FAIR},
    }


def read_result(directory: Path) -> Result:
    """What a finished run left in its result.json, also one of an earlier version; what else stands there is not
    read.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    folder = RunDirectory.open(directory)
    values = folder.read_json(folder.result.name)
    try:
        nested = values["scores"] if "scores" in values else _earlier_scores(values)
        scores = scores_from_dict(nested)
        evaluations = {
            kind: {name: Evaluation.from_dict(entry) for name, entry in values[kind].items()}
            for kind in (LAST, BY_VALIDATION, BY_TEST)
            if kind in values
        }
        by = values.get("selection", {}).get("by", Result.selected_by)
        return Result(directory, scores, float(values["seconds"]), evaluations, by)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{folder.result} is damaged: it does not hold what a run writes") from None


def _earlier_scores(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Nested as they are now: earlier versions wrote "ema" and "raw" for the test images, "ema_validation" and
    "raw_validation", and the same in detail under "report"."""
    nested: dict[str, dict[str, Any]] = {}
    for part, suffix in zip(HELD_OUT, ("", "_validation"), strict=True):
        found = {name: values[name + suffix] for name in NETWORKS if name + suffix in values}
        if found:
            nested[part] = {**found, **values.get("report", {}).get(part, {})}
    return nested
