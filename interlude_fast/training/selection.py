"""Which evaluation stands for a run beside its last: the best on validation, and the best on test, by its name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from interlude_fast.data.eval_set import HELD_OUT
from interlude_fast.errors import CheckpointError
from interlude_fast.metrics import Scores
from interlude_fast.options import SelectionMetric, SelectionNetwork

PREFIX = "selected/"  # of the kept weights in a checkpoint
BY_VALIDATION, BY_TEST = "best_on_validation", "best_on_test"


@dataclass(frozen=True)
class Evaluation:
    """Scores of one network after a step, by images: "test" and "validation", as far as there are some."""

    step: int
    scores: dict[str, Scores]

    @classmethod
    def of(cls, network: str, step: int, scores: dict[str, dict[str, Scores]]) -> Evaluation:
        """A network's part of Run.evaluate()."""
        return cls(
            step, {part: by_network[network] for part, by_network in scores.items() if network in by_network}
        )

    def as_dict(self) -> dict[str, Any]:
        found = {part: scores.as_dict() for part, scores in self.scores.items()}
        return {"step": self.step, **{part: found.get(part) for part in HELD_OUT}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evaluation:
        """as_dict()'s."""
        found = {part: Scores.from_dict(values[part]) for part in HELD_OUT if values[part]}
        return cls(int(values["step"]), found)


class Selection:
    """The best evaluation of each network so far; of equals the earlier. Validation alone chooses weights.

    Args:
        by: the score that is compared. network: whose weights are kept at its best validation score.

    Attributes:
        best: network -> evaluation, under BY_VALIDATION and BY_TEST; empty where there are no such images.
        weights: the kept network's tensors; empty without validation images.
    """

    def __init__(self, by: SelectionMetric = "accuracy", network: SelectionNetwork = "ema") -> None:
        self.by, self.network = by, network
        self.best: dict[str, dict[str, Evaluation]] = {BY_VALIDATION: {}, BY_TEST: {}}
        self.weights: dict[str, Tensor] = {}

    def add(self, step: int, scores: dict[str, dict[str, Scores]], networks: dict[str, nn.Module]) -> None:
        """Take an evaluation after `step` into account; scores as Run.evaluate gives them."""
        for name, network in networks.items():
            now = Evaluation.of(name, step, scores)
            if self._is_better(BY_VALIDATION, name, now) and name == self.network:
                self.weights = {key: value.detach().clone() for key, value in network.state_dict().items()}
            self._is_better(BY_TEST, name, now)

    def _is_better(self, kind: str, network: str, now: Evaluation) -> bool:
        """Whether it is the best of its kind so far; it is then kept."""
        before = self.best[kind].get(network)
        value, highest = self._value(kind, now), self._value(kind, before) if before else None
        if value is None or (highest is not None and value <= highest):
            return False
        self.best[kind][network] = now
        return True

    def _value(self, kind: str, evaluation: Evaluation) -> float | None:
        scores = evaluation.scores.get("validation" if kind == BY_VALIDATION else "test")
        return getattr(scores, self.by) if scores else None

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it beside `text`."""
        return {PREFIX + name: value for name, value in self.weights.items()}

    def text(self) -> str:
        found = {k: {net: e.as_dict() for net, e in best.items()} for k, best in self.best.items()}
        return json.dumps(found)

    def restore(self, text: str, tensors: dict[str, Tensor]) -> None:
        """What text() and tensors() gave; `tensors` may hold others too.

        Raises:
            CheckpointError: they do not belong together.
        """
        try:
            found = json.loads(text)
            best = {k: {n: Evaluation.from_dict(e) for n, e in found[k].items()} for k in self.best}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint's selection is damaged: {error}") from None
        weights = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
        if bool(weights) != (self.network in best[BY_VALIDATION]):
            raise CheckpointError("the checkpoint's selection is damaged: its weights and its step do not fit")
        self.best, self.weights = best, weights
