from __future__ import annotations

from typing import Any

import pytest
import torch

from interlude_fast.errors import ConfigError
from interlude_fast.models import EmbeddingFusion, Network, Shape, build_model

timm = pytest.importorskip("timm")


def network(name: str = "resnet10t", alpha: float = 0.1, side: int = 32, **options: Any) -> Network:
    torch.manual_seed(0)
    return build_model(f"timm:{name}", options, Shape(5, 3, side), EmbeddingFusion(alpha))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("resnet10t", "layer4"),
        ("convnext_atto", "stages.3"),
        ("regnety_002", "s4"),
        ("swin_tiny_patch4_window7_224", "layers.3"),
        ("vit_tiny_patch16_224", "blocks.9"),
        ("mobilenetv3_small_050", "blocks.5"),
    ],
)
def test_known_places_of_fusion(name: str, place: str) -> None:
    net = network(name, 0.3, side=64).train()
    entered, fused = [], []
    net.fusion.register_forward_hook(lambda m, i, o: fused.append(o))
    net.net.get_submodule(place).register_forward_pre_hook(lambda m, i: entered.append(i[0]))
    net(torch.randn(2, 3, 64, 64))
    assert len(fused) == 1
    assert entered[0] is fused[0]


def test_fusion_at_a_named_module() -> None:
    net = network("densenet121", 0.3, fusion_module="features.denseblock4").train()
    fused = []
    net.fusion.register_forward_hook(lambda m, i, o: fused.append(o.shape))
    net(torch.randn(2, 3, 32, 32))
    assert fused == [(2, 512, 1, 1)]


def test_where_no_place_is_known() -> None:
    network("densenet121", alpha=0.0)
    network("hrnet_w18_small", alpha=0.0)
    with pytest.raises(ConfigError, match=r"no place to fuse.*model\.fusion_module, or set method\.alpha=0"):
        network("densenet121")
    with pytest.raises(ConfigError, match=r"no submodule 'layer5'; did you mean 'layer\d'\?"):
        network(fusion_module="layer5", alpha=0.0)
    with pytest.raises(ConfigError, match="stage4 does not receive one tensor with a row for every image"):
        network("hrnet_w18_small", fusion_module="stage4")


def test_names_that_timm_does_not_have() -> None:
    with pytest.raises(ConfigError, match="unknown timm network 'resnet81'; did you mean 'resnet18'") as caught:
        network("resnet81")
    assert len(str(caught.value)) < 300
    with pytest.raises(ConfigError, match="unknown timm network 'qqqqqq'") as caught:
        network("qqqqqq")
    assert len(str(caught.value)) < 400
    with pytest.raises(ConfigError, match=r"unknown pretrained weights 'resnet18\.a9_in1k'"):
        network("resnet18.a9_in1k")
    with pytest.raises(ConfigError, match=r"unknown key 'model\.pretained'; did you mean 'pretrained'"):
        network(pretained=True)


def test_networks_that_do_not_take_the_images_or_have_two_classifiers() -> None:
    with pytest.raises(ConfigError, match="inception_v3 does not take images of 3 channels and 32 px"):
        network("inception_v3", alpha=0.0)
    with pytest.raises(ConfigError, match="its classifier is not one layer"):
        network("deit_tiny_distilled_patch16_224")


def no_network(*arguments: Any, **named: Any) -> None:
    raise OSError("no route to host\nand more")


def test_pretrained_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", no_network)
    monkeypatch.setattr(huggingface_hub, "get_session", no_network)
    with pytest.raises(ConfigError) as caught:
        network("resnet18", pretrained=True)
    message = str(caught.value)
    assert "resnet18.a1_in1k could not be downloaded; use model.weights=FILE" in message
    assert "no route to host" in message
    assert "\n" not in message
    with pytest.raises(ConfigError, match="timm has no pretrained weights of it"):
        network("regnetz_005", pretrained=True)
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    asked, offline = [], []
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: asked.append(1) or no_network())
    monkeypatch.setattr(
        timm.models._hub,
        "hf_hub_download",
        lambda *a, **k: offline.append(constants.HF_HUB_OFFLINE) or no_network(),
    )
    with pytest.raises(ConfigError):
        network("resnet18", pretrained=True)
    assert asked == [1]
    assert offline == [True]
    assert not constants.HF_HUB_OFFLINE


def test_pretrained_weights_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    released = timm.create_model("resnet18", num_classes=1000).state_dict()
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *a, **k: dict(released))
    monkeypatch.setattr("huggingface_hub.get_session", no_network)
    net = network("resnet18", pretrained=True)
    assert torch.equal(net.net.layer3[0].conv1.weight, released["layer3.0.conv1.weight"])
    assert net.net.fc.weight.shape == (5, 512)
