from __future__ import annotations

from typing import Any

import pytest
import torch

from interlude_fast.errors import ConfigError
from interlude_fast.models import EmbeddingFusion, Network, Shape, build_model
from interlude_fast.options import OptimConfig
from interlude_fast.training.optim import parameter_groups

pytest.importorskip("timm")


def network(alpha: float = 0.0, side: int = 32, **options: Any) -> Network:
    torch.manual_seed(0)
    return build_model("vit", {"size": "tiny", "patch": 8, **options}, Shape(5, 3, side), EmbeddingFusion(alpha))


def test_layers_are_stem_blocks_and_head_with_the_norm_in_the_last_block() -> None:
    net = network()
    layers = net.layers()
    assert len(layers) == 14
    assert {n.split(".")[1] for n in layers[0]} == {"cls_token", "pos_embed", "patch_embed"}
    for i in range(12):
        extra = {"net.norm.weight", "net.norm.bias"} if i == 11 else set()
        assert {n for n in layers[i + 1] if not n.startswith(f"net.blocks.{i}.")} == extra
    assert set(layers[13]) == {"net.head.weight", "net.head.bias"}


def test_learning_rates_and_decay_as_usb_sets_them() -> None:
    net = network()
    names = {p: n for n, p in net.named_parameters()}
    groups = parameter_groups(net, OptimConfig(name="adamw", layer_decay=0.5))
    groups = {names[p]: g for g in groups for p in g["params"]}
    assert groups["net.head.weight"]["scale"] == 1
    assert groups["net.norm.weight"]["scale"] == groups["net.blocks.11.mlp.fc1.weight"]["scale"] == 0.5
    assert groups["net.blocks.1.attn.qkv.weight"]["scale"] == 0.5**11
    assert groups["net.blocks.10.attn.qkv.weight"]["scale"] == 0.5**2
    assert groups["net.pos_embed"]["scale"] == 0.5**13
    spared = {n for n, g in groups.items() if not g["weight_decay"]}
    vectors = {n for n, p in net.named_parameters() if p.ndim <= 1}
    assert spared == vectors | {"net.pos_embed", "net.cls_token"}


@pytest.mark.parametrize(("options", "block"), [({}, 9), ({"fusion_block": 0}, 0)])
def test_tokens_are_fused_where_they_enter_the_block(options: dict, block: int) -> None:
    net = network(0.3, **options).train()
    entered, fused = [], []
    net.fusion.register_forward_hook(lambda m, i, o: fused.append((i[0], o)))
    for number, module in enumerate(net.net.blocks):
        module.register_forward_pre_hook(lambda m, i, number=number: entered.append((number, i[0])))
    net(torch.randn(3, 3, 32, 32))
    assert len(fused) == 1
    before, after = fused[0]
    torch.testing.assert_close(after, 0.7 * before + 0.3 * before.roll(-1, 0))
    assert after.shape == (3, 17, 192)
    assert entered[block][1] is after


def test_initial_weights() -> None:
    usb, timm = network(), network(init="timm")
    assert not usb.net.pos_embed.any()
    assert not usb.net.cls_token.any()
    bound = 192**-0.5
    assert 0.9 * bound < usb.net.blocks[3].attn.qkv.weight.abs().max() <= bound
    assert 0.015 < timm.net.pos_embed.std() < 0.025
    assert 0.015 < timm.net.blocks[3].attn.qkv.weight.std() < 0.025


def test_stochastic_depth_grows_to_the_size_s_own() -> None:
    def rates(**options: Any) -> list[float]:
        return [getattr(block.drop_path1, "drop_prob", 0.0) for block in network(**options).net.blocks]

    assert rates() == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert rates(size="small")[-1] == pytest.approx(0.2)
    assert not any(rates(drop_path=0))


def test_sizes_and_patches() -> None:
    assert network().net.norm.eps == 1e-6
    net = build_model("vit", {"size": "base"}, Shape(10, 3, 96), EmbeddingFusion())
    assert net.net.patch_embed.grid_size == (6, 6)
    for side, patch in ((30, 4), (16, 16)):
        with pytest.raises(ConfigError, match=rf"model\.patch = {patch}: the images' side, {side} px"):
            network(side=side, patch=patch)


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    for name in ("vit", "timm:resnet18"):
        with pytest.raises(ConfigError, match=rf"model\.name = {name} needs timm: pip install"):
            build_model(name, {}, Shape(10, 3, 32), EmbeddingFusion())
