"""A network cut between two of its stages: the front is frozen, the tail is trained.

Both parts are code that reads the whole network's own parameters, so checkpoints, the average and exports hold one
network under its own names, and a copy of it is cut at the same place.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from interlude_fast.errors import ConfigError, nearest

from .base import Network, Shape
from .tracing import (
    Code,
    is_stage,
    live_values,
    modules_read,
    part_of,
    result_node,
    same_values,
    stage_graph,
)

CLASSIFIER = "classifier"


@dataclass(frozen=True)
class Cut:
    """Where a network is cut.

    Attributes:
        place: the first stage of the tail, or "classifier" where only that is trained. number: of that stage among
            `places`, the stages before which the network can be cut.
        front: images [N, C, S, S] -> activations [N, ...]. tails: activations -> embeddings [N, D], by whether the
            network trains. constants: what the tail reads of the front beside them, equal for all images.
        fuses_first: whether embeddings are fused at the cut, as their place lies before it.
        frozen: names of the modules and parameters of the front.
        shape: of one image's activations.
    """

    place: str
    number: int
    places: tuple[str, ...]
    front: Code
    tails: dict[bool, Code]
    constants: tuple[Any, ...]
    fuses_first: bool
    frozen: frozenset[str]
    shape: tuple[int, ...]

    def activations(self, network: Network, images: Tensor) -> Tensor:
        """images [N, C, S, S] -> activations [N, ...], without gradients and without fusion."""
        with torch.no_grad(), network.fusion.suspended():
            found = self.front(network, images)
        return found[0] if isinstance(found, tuple) else found

    def embed(self, network: Network, activations: Tensor) -> Tensor:
        """activations [N, ...] -> embeddings [N, D]."""
        x = network.fusion(activations) if self.fuses_first else activations
        constants = (c.to(x.device) if isinstance(c, Tensor) else c for c in self.constants)
        return self.tails[network.training](network, x, *constants)

    def holds(self, name: str) -> bool:
        """Whether a module or parameter of this name is of the front."""
        return any(name == part or name.startswith(f"{part}.") for part in self.frozen)


def cut_network(network: Network, where: str | int, shape: Shape) -> None:
    """Cut a network: what lies before `where` is frozen.

    Args:
        where: a stage's name or number, "classifier", or "auto" for the last third of the stages.

    Raises:
        ConfigError: no such stage, or the network cannot be cut.
    """
    graph = {mode: _traced(network.train(mode)) for mode in (True, False)}
    places = _places(network, graph[False])
    place = _choose(where, places)
    images = [_images(rows, shape) for rows in (2, 3)]
    if place == CLASSIFIER:
        cut = _behind_everything(network, graph[False], places, images[0])
    else:
        cut = _at(network, graph, places, place, images)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not cut.holds(name))
    network.cut = cut


def _traced(network: Network) -> fx.Graph:
    try:
        return stage_graph(network)
    except Exception as error:  # whatever a network's code does with a value that is none yet
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise ConfigError(f"model.cut: this network cannot be cut ({reason}); set model.cut=null") from None


def _places(network: Network, graph: fx.Graph) -> tuple[str, ...]:
    """Stages in order, without the first one of all: there would be no front."""
    modules = dict(network.named_modules())
    called = [node for node in graph.nodes if node.op == "call_module"]
    stages = [node for node in called if is_stage(str(node.target), modules[str(node.target)])]
    first = next((node for node in called if any(True for _ in modules[str(node.target)].parameters())), None)
    return tuple(str(node.target).removeprefix("net.") for node in stages if node is not first)


def _choose(where: str | int, places: tuple[str, ...]) -> str:
    if where == "auto" and places:
        return places[(blocks := _blocks(places)) - max(1, round(blocks / 3))]
    if isinstance(where, int):
        if 0 <= where < len(places):
            return places[where]
        if where == len(places):
            return CLASSIFIER
        names = ", ".join(f"{i} {name}" for i, name in enumerate((*places, CLASSIFIER)))
        raise ConfigError(f"model.cut = {where} leaves nothing to train; this network can be cut before {names}")
    if where in places or where == CLASSIFIER:
        return where
    known = [*places, CLASSIFIER]
    raise ConfigError(
        f"model.cut: this network cannot be cut before '{where}'"
        f"{nearest(where, difflib.get_close_matches(where, known, 3, 0.3) or known)}"
    )


def _blocks(places: tuple[str, ...]) -> int:
    """How many of the stages belong to the body: a last convolution behind numbered blocks does not."""
    numbered = [i for i, name in enumerate(places) if name[-1:].isdigit()]
    return numbered[-1] + 1 if numbered and 2 * len(numbered) >= len(places) else len(places)


def _images(rows: int, shape: Shape) -> Tensor:
    values = torch.linspace(-1, 1, rows * shape.channels * shape.side**2)
    return values.reshape(rows, shape.channels, shape.side, shape.side)


def _behind_everything(network: Network, graph: fx.Graph, places: tuple[str, ...], images: Tensor) -> Cut:
    """All but the classifier is the front."""
    (source,) = (node for node in graph.nodes if node.op == "placeholder")
    front = part_of(network, graph, [source], [result_node(graph)])
    everything = frozenset(name for name, _ in network.named_parameters() if not _of_classifier(network, name))
    with torch.no_grad():
        shape = tuple(front(network.eval(), images).shape[1:])
    fuses = network.fusion.alpha > 0
    tail = {mode: _as_it_is for mode in (True, False)}
    return Cut(CLASSIFIER, len(places), places, front, tail, (), fuses, everything, shape)


def _as_it_is(network: nn.Module, x: Tensor) -> Tensor:
    return x


def _of_classifier(network: Network, name: str) -> bool:
    return name.startswith(f"{network.classifier}.")


def _at(
    network: Network,
    graphs: dict[bool, fx.Graph],
    places: tuple[str, ...],
    place: str,
    images: list[Tensor],
) -> Cut:
    parts = {mode: _parts(network, graph, place) for mode, graph in graphs.items()}
    front, _, frozen = parts[False]
    network.eval()
    with torch.no_grad(), network.fusion.suspended():
        few, more = (front(network, x) for x in images)
    few, more = ((x if isinstance(x, tuple) else (x,)) for x in (few, more))
    varying = [i for i, (a, b) in enumerate(zip(few, more, strict=True)) if not same_values(a, b)]
    rows = [i for i in varying if isinstance(few[i], Tensor) and len(few[i]) == len(images[0])]
    if varying != [0] or rows != [0]:
        raise ConfigError(
            f"model.cut: more than one tensor crosses the network before '{place}'; it can be cut before "
            f"{', '.join(name for name in places if name != place)}"
        )
    constants = tuple(value.clone() if isinstance(value, Tensor) else value for value in few[1:])
    tails = {mode: tail for mode, (_, tail, _) in parts.items()}
    cut = Cut(place, places.index(place), places, front, tails, constants, False, frozen, tuple(few[0].shape[1:]))
    return cut if _fuses(network, cut, few[0]) else _fusing_first(cut, network)


def _parts(network: Network, graph: fx.Graph, place: str) -> tuple[Code, Code, frozenset[str]]:
    """Front, tail, and what the front reads."""
    (source,) = (node for node in graph.nodes if node.op == "placeholder")
    names = (place, f"net.{place}")
    at = next(node for node in graph.nodes if node.op == "call_module" and node.target in names)
    live = live_values(graph, at)
    entering = at.args[0]
    live.sort(key=lambda node: node is not entering)  # the input of the stage comes first
    nodes = list(graph.nodes)
    before = modules_read(nodes[: nodes.index(at)]) - modules_read(nodes[nodes.index(at) :])
    front, tail = part_of(network, graph, [source], live), part_of(network, graph, live, [result_node(graph)])
    return front, tail, frozenset(name for name in before if name != "fusion")


def _fuses(network: Network, cut: Cut, activations: Tensor) -> bool:
    """Whether the tail has the place of fusion in it, or nothing is fused anyway."""
    if network.fusion.alpha == 0:
        return True
    called: list[bool] = []
    handle = network.fusion.register_forward_hook(lambda *_: called.append(True))
    try:
        with torch.no_grad():
            cut.embed(network.eval(), activations)
    finally:
        handle.remove()
    return bool(called)


def _fusing_first(cut: Cut, network: Network) -> Cut:
    return Cut(**{**vars(cut), "fuses_first": True})
