"""Axes, cells and names of a grid."""

from __future__ import annotations

import pytest

from interlude_fast.errors import ConfigError
from interlude_fast.sweeps.grid import Axis, cell_name, make_cells, parse_axis, short_names, show
from tests.helpers import SMALL


def names(*grid: str, seeds: tuple[int, ...] = (0,), each: bool = False) -> list[str]:
    return [cell.name for cell in make_cells([parse_axis(text) for text in grid], list(seeds), [SMALL], each=each)]


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("alpha=0,0.1", "method.alpha", (0, 0.1)),
        ("method.alpha = 0, 1e-3", "method.alpha", (0, 0.001)),
        ("layout=interdigitated,separate", "method.layout", ("interdigitated", "separate")),
        ("labels=40,null", "data.labels", (40, None)),
        ("optim.milestones=[1,2],[3]", "optim.milestones", ([1, 2], [3])),
        ("delta=mean,per_class", "method.delta", ("mean", "per_class")),
    ],
)
def test_axes_as_they_are_typed(text: str, key: str, values: tuple) -> None:
    assert parse_axis(text) == Axis(key, values)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("alpha", "wants KEY=VALUE"),
        ("=1", "wants KEY=VALUE"),
        ("alpha=", "at least one value"),
        ("alpha=0.1,0.10", r"method.alpha = 0.1 is named twice"),
        ("alpah=1", "did you mean 'alpha'"),
        ("seed=1,2", "--seeds"),
        ("alpha=[1", "not YAML"),
        ("alpha=1]: [2", "not YAML"),
    ],
)
def test_axes_that_are_none(text: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        parse_axis(text)


def test_the_product_in_the_order_of_the_axes() -> None:
    assert names("layout=interdigitated,separate", "alpha=0,0.1") == [
        "alpha=0,layout=interdigitated",
        "alpha=0.1,layout=interdigitated",
        "alpha=0,layout=separate",
        "alpha=0.1,layout=separate",
    ]


def test_each_axis_by_itself_with_the_base_once() -> None:
    found = names("alpha=0,0.1", "lambda_dc=0,1,10", each=True)  # 0.1 and 1 are the base
    assert found == ["base", "alpha=0", "lambda_dc=0", "lambda_dc=10"]


def test_cells_have_the_settings_that_they_are_named_after() -> None:
    cells = make_cells([parse_axis("alpha=0,0.3"), parse_axis("train.mu=1,3")], [4, 7], [SMALL])
    for cell in cells:
        assert list(cell.configs) == [4, 7]
        for seed, config in cell.configs.items():
            assert config.seed == seed
            assert config.method.options.alpha == cell.values["method.alpha"]
            assert config.train.mu == cell.values["train.mu"]
            assert config.train.steps == SMALL["train"]["steps"]
    assert [tuple(cell.values.values()) for cell in cells] == [(0, 1), (0, 3), (0.3, 1), (0.3, 3)]


def test_every_method_comes_with_its_preset() -> None:
    data = {"data": {"dataset": "digits", "labels": 40}}
    cells = make_cells([Axis("method.name", ("interlude", "supervised"))], [0], [data])
    assert [cell.name for cell in cells] == ["method=interlude", "method=supervised"]
    assert cells[0].configs[0].method.options.alpha == 0.1
    assert cells[1].configs[0].optim.lr == 0.1  # base.yaml's


def test_one_at_a_time_another_method_drops_the_base_methods_options() -> None:
    base = [SMALL, {"method": {"name": "interlude", "tau": 0.8}}]
    axes = [Axis("method.name", ("supervised",)), parse_axis("alpha=0")]
    cells = make_cells(axes, [0], base, each=True)
    assert [cell.values for cell in cells] == [
        {"method.name": "interlude", "method.alpha": 0.1},
        {"method.name": "supervised"},
        {"method.name": "interlude", "method.alpha": 0.0},
    ]
    assert cells[2].configs[0].method.options.tau == 0.8


@pytest.mark.parametrize(
    ("grid", "seeds", "over", "line"),
    [
        (["alpha=0", "method.alpha=1"], [0], {}, "method.alpha is an axis twice"),
        (["alpha=0"], [1, 1], {}, "a seed is named twice"),
        (["alpha=0"], [1], {"seed": 3}, "--seeds"),
        (["method=interlude,supervised", "alpha=0,0.1"], [0], {}, "supervised has no such option"),
        (["method.alpah=0"], [0], {}, "method.alpah.*did you mean 'alpha'"),
        (["alpha=0,1.5"], [0], {}, "method.alpha = 1.5"),
        (["train.mu=1,0"], [0], {}, "train.mu = 0"),
        (["method=interlude,nope"], [0], {}, "unknown method 'nope'"),
        (["data.split=1"], [0], {}, "data.split = 1"),
    ],
)
def test_grids_that_do_not_fit(grid: list[str], seeds: list[int], over: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        make_cells([parse_axis(text) for text in grid], seeds, [SMALL, over])
    assert "\n" not in str(caught.value)


def test_names_are_safe_and_different() -> None:
    assert cell_name({"b": 1.0, "a": 1e-05}) == cell_name({"a": 1e-05, "b": 1.0}) == "a=1e-05,b=1"
    strange = [cell_name({"k": v}) for v in ("a/b", "a b", "a\nb", "../x", "é", "x" * 300, "x" * 301)]
    assert len(set(strange)) == len(strange)
    for name in strange:
        assert len(name) < 200
        assert not set(name) & set("/ \n\\:*?\"'<>|é")
    shown = [show(v) for v in (0.0, 10.0, 3, True, None, "mean", [1, 2])]
    assert shown == ["0", "10", "3", "true", "null", "mean", "[1, 2]"]


def test_axes_that_would_be_called_the_same_keep_their_keys() -> None:
    axes = [Axis("model.depth", (10,)), Axis("method.depth", (1,)), Axis("optim.name", ("sgd",))]
    assert short_names(axes) == {
        "model.depth": "model.depth",
        "method.depth": "method.depth",
        "optim.name": "optim",
    }
