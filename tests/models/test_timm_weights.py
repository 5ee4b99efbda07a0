"""What timm's pretrained weights want to see, and the line before they are downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from interlude_fast.errors import ConfigError
from interlude_fast.models import EmbeddingFusion, PretrainedInput, Shape, build_model, pretrained_input

timm = pytest.importorskip("timm")


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path


def downloading(monkeypatch: pytest.MonkeyPatch, name: str, **options: Any) -> list[str]:
    """The notes of a network whose weights come at once, and are those of a fresh one."""
    weights = timm.create_model(name, num_classes=1000).state_dict()
    for module in (timm.models._builder,):
        monkeypatch.setattr(module, "load_state_dict_from_hf", lambda *a, **k: dict(weights))
        monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: dict(weights))

    def no_network(*arguments: Any, **named: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.get_session", no_network)
    lines: list[str] = []
    build_model(f"timm:{name}", options, Shape(5), EmbeddingFusion(), note=lines.append)
    return lines


def test_what_they_want_is_timms_word() -> None:
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert pretrained_input("timm:resnet18", {"pretrained": True}) == PretrainedInput(*imagenet, "bicubic", 224)
    older = pretrained_input("timm:resnet18.tv_in1k", {"pretrained": True})
    assert older == PretrainedInput(*imagenet, "bilinear", 224)
    half = (0.5,) * 3
    wanted = pretrained_input("timm:vit_base_patch16_384", {"pretrained": True})
    assert wanted == PretrainedInput(half, half, "bicubic", 384)
    assert pretrained_input("timm:resnet18", {}) is None
    assert pretrained_input("timm:regnetz_005", {"pretrained": True}) is None  # timm has no weights of it
    assert pretrained_input("wideresnet", {}) is None
    assert pretrained_input("efficientnet_lite0", {"pretrained": False}) is None
    with pytest.raises(ConfigError, match=r"unknown key 'model\.pretrained'"):
        pretrained_input("wideresnet", {"pretrained": True})


def test_grey_images_have_the_average_of_the_channels() -> None:
    wanted = PretrainedInput((0.5, 0.4, 0.3), (0.3, 0.2, 0.1), "bicubic", 224)
    grey = wanted.of_channels(1)
    assert grey.mean == pytest.approx((0.4,))
    assert grey.std == pytest.approx((0.2,))
    assert (grey.interpolation, grey.size, grey.channels) == ("bicubic", 224, 1)
    assert wanted.of_channels(3) is wanted


def test_one_line_before_a_download(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    (line,) = downloading(monkeypatch, "resnet18", pretrained=True)
    assert line == (
        "timm:resnet18: downloading its pretrained weights (timm/resnet18.a1_in1k, about 47 MB, "
        f"licence apache-2.0) to {empty_cache / 'hub'}"
    )
    assert downloading(monkeypatch, "resnet18") == []
    timm.get_pretrained_cfg("resnet18")
    entry = timm.models._registry._model_pretrained_cfgs["resnet18.a1_in1k"]
    monkeypatch.setattr(entry, "license", None)
    (line,) = downloading(monkeypatch, "resnet18", pretrained=True)
    assert "licence not stated" in line


def test_no_line_where_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    from huggingface_hub import constants

    kept = empty_cache / "hub" / "models--timm--resnet18.a1_in1k"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots" / "abc").mkdir(parents=True)
    (kept / "snapshots" / "abc" / "model.safetensors").write_bytes(b"")
    assert downloading(monkeypatch, "resnet18", pretrained=True) == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert downloading(monkeypatch, "resnet34", pretrained=True) == []


def test_weights_of_an_address(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    timm.get_pretrained_cfg("resnet18")
    entry = timm.models._registry._model_pretrained_cfgs["resnet18.a1_in1k"]
    monkeypatch.setattr(entry, "hf_hub_id", None)
    (line,) = downloading(monkeypatch, "resnet18", pretrained=True)
    assert line.endswith(f"to {empty_cache / 'torch' / 'checkpoints'}")
    file = entry.url.rsplit("/", 1)[-1]
    (empty_cache / "torch" / "checkpoints").mkdir(parents=True)
    (empty_cache / "torch" / "checkpoints" / file).write_bytes(b"")
    assert downloading(monkeypatch, "resnet18", pretrained=True) == []


def test_a_file_of_weights_takes_the_place_of_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = timm.create_model("resnet18", num_classes=5)
    torch.save(there.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *a, **k: pytest.fail("downloaded"))
    options = {"pretrained": True, "weights": tmp_path / "w.pth"}
    net = build_model("timm:resnet18", options, Shape(5), EmbeddingFusion())
    assert torch.equal(net.net.fc.weight, there.fc.weight)  # type: ignore[union-attr]
