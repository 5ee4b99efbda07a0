from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from interlude_fast.models import EmbeddingFusion, Shape
from interlude_fast.models.prototypes import PrototypeNetwork
from interlude_fast.models.wideresnet import WideResNet, WideResNetOptions
from interlude_fast.options import OptimConfig
from interlude_fast.training.optim import parameter_groups
from tests.methods.golden import close, golden


@pytest.fixture
def network() -> PrototypeNetwork:
    torch.manual_seed(0)
    backbone = WideResNet(WideResNetOptions(depth=10, width=1), Shape(4, 1), EmbeddingFusion(0.1))
    return PrototypeNetwork(backbone, 4, temperature=0.2)


def test_logits_are_cosines_over_the_temperature(network: PrototypeNetwork) -> None:
    x = torch.randn(5, 1, 8, 8)
    z = network.embed(x)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    with torch.no_grad():
        network.prototypes.mul_(3)
    expected = F.cosine_similarity(z[:, None], network.prototypes, dim=-1) / 0.2
    torch.testing.assert_close(network.classify(z), expected)
    network.eval()
    torch.testing.assert_close(network(x), network.classify(network.embed(x)))


def test_cross_entropy_of_recorded_projections(network: PrototypeNetwork) -> None:
    g = golden("semisupcon")
    network.prototypes, network.temperature = nn.Parameter(g["prototypes"]), g["tau"].item()
    logits = network.classify(F.normalize(g["h_lb"], dim=-1))
    close(F.cross_entropy(logits, g["y_lb"]), g["ce_prototypes_only_labeled"])


def test_parameters_of_the_published_network() -> None:
    """1,512,160 with a bias in the first convolution, and without the classifier that is not used."""
    net = PrototypeNetwork(WideResNet(WideResNetOptions(), Shape(100), EmbeddingFusion()), 100, 0.1)
    assert sum(p.numel() for p in net.parameters()) == 1_512_160 - 16


def test_embeddings_are_float32_also_under_autocast(network: PrototypeNetwork) -> None:
    x = torch.randn(5, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        z = network.embed(x)
        assert network.classify(z).dtype == z.dtype == torch.float32
    assert network.double().embed(x.double()).dtype == torch.float64


def test_the_backbone_keeps_fusion_and_layers_and_loses_its_classifier(network: PrototypeNetwork) -> None:
    assert network.fusion is network.backbone.fusion
    assert isinstance(network.backbone.fc, nn.Identity)
    names = {p: n for n, p in network.named_parameters()}
    groups = parameter_groups(network, OptimConfig(layer_decay=0.5))
    scales = {names[p]: g["scale"] for g in groups for p in g["params"]}
    assert scales["prototypes"] == scales["head.0.weight"] == 1
    assert scales["backbone.bn1.weight"] == 0.5
    assert scales["backbone.conv1.weight"] == 0.5**5
