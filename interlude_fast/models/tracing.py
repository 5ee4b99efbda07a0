"""Networks as graphs of their layers, by torch.fx: where they can be cut, and which norms follow a convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

BatchNorm = nn.modules.batchnorm._BatchNorm
# Containers whose members are stages of their own.
CONTAINERS = ("blocks", "stages", "layers", "features", "trunk")
# Forward code of a part of a network: (network, input) -> output. It holds no parameters: it reads the network's.
Code = Callable[..., Any]


class _Stages(fx.Tracer):
    """Goes into `embed`, into the modules around stages, and no further."""

    traced_func_name = "embed"

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_container = name.rpartition(".")[2] in CONTAINERS and isinstance(module, (nn.Sequential, nn.ModuleList))
        return not is_container


class _Layers(fx.Tracer):
    """Goes into everything but convolutions, norms and modules without children."""

    traced_func_name = "embed"

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, BatchNorm)) or not any(True for _ in module.children())


def stage_graph(network: nn.Module) -> fx.Graph:
    """`network.embed` down to its stages. Raises whatever tracing raises where Python decides by values."""
    return _Stages().trace(network)


def convolutions_before_norms(network: nn.Module) -> list[tuple[str, str]]:
    """(convolution, batch norm) by name, wherever a batch norm is all that reads a convolution. Raises whatever
    tracing raises."""
    graph, modules = _Layers().trace(network), dict(network.named_modules())
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], BatchNorm):
            continue
        source = node.args[0]
        norm = modules[str(node.target)]
        if not (
            isinstance(source, fx.Node) and source.op == "call_module" and norm.affine and norm.track_running_stats
        ):
            continue
        if isinstance(modules[str(source.target)], nn.Conv2d) and len(source.users) == 1:
            found.append((str(source.target), str(node.target)))
    return found


def is_stage(name: str, module: nn.Module) -> bool:
    """Whether a network may be cut before this module: it has parameters, and is no single norm."""
    if isinstance(module, BatchNorm) or not any(True for _ in module.parameters()):
        return False
    of_container = any(part in CONTAINERS for part in name.split(".")[:-1])
    return of_container or any(True for _ in module.children()) or isinstance(module, nn.Conv2d)


def live_values(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """Values that are computed before `node` and read by it or behind it; parameters are not among them."""
    nodes = list(graph.nodes)
    behind = nodes[nodes.index(node) :]
    read = dict.fromkeys(value for later in behind for value in later.all_input_nodes)
    return [value for value in read if value not in set(behind) and value.op != "get_attr"]


def part_of(network: nn.Module, graph: fx.Graph, inputs: Iterable[fx.Node], outputs: list[fx.Node]) -> Code:
    """The code that computes `outputs` from `inputs`: one value where there is one output, else a tuple."""
    part, copied = fx.Graph(), {}
    for node in inputs:
        copied[node] = part.placeholder(node.name)
    wanted = _ancestors(outputs, set(copied))
    for node in graph.nodes:
        if node in wanted and node not in copied:
            copied[node] = part.node_copy(node, lambda n: copied[n])
    results = tuple(copied[node] for node in outputs)
    part.output(results[0] if len(results) == 1 else results)
    return type(fx.GraphModule(network, part)).forward


def _ancestors(nodes: list[fx.Node], until: set[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [] if node in until else node.all_input_nodes
    return found


def modules_read(nodes: Iterable[fx.Node]) -> set[str]:
    """Names of the modules and parameters that nodes use."""
    return {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}


def result_node(graph: fx.Graph) -> fx.Node:
    """What the graph returns."""
    output = next(node for node in reversed(list(graph.nodes)) if node.op == "output")
    value = output.args[0]
    assert isinstance(value, fx.Node)
    return value


def same_values(a: Any, b: Any) -> bool:
    """Whether two passes over other images gave the same value, which then is a constant."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)
