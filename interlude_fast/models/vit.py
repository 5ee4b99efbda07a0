"""Vision transformers as USB trains them (docs/networks.md), built of timm's blocks."""

from __future__ import annotations

import re
from functools import partial
from typing import Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from interlude_fast.errors import ConfigError

from .base import NetworkOptions, Shape
from .fusion import EmbeddingFusion
from .timm_network import TimmBacked, import_timm, last_quarter

DEPTH = 12
# What pre-training has beside the network: other heads, as USB skips them, and the decoder of masked autoencoders.
PRETRAINING = re.compile(r"(fc|classifier|mlp)\.|head\.(?!(weight|bias)$)|mask_token$|decoder_")


class Size(NamedTuple):
    """Embedding dimension, heads, and what options default to."""

    width: int
    heads: int
    patch: int
    drop_path: float


SIZES = {"tiny": Size(192, 3, 2, 0.1), "small": Size(384, 6, 2, 0.2), "base": Size(768, 12, 16, 0.2)}


class ViTOptions(NetworkOptions):
    size: Literal["tiny", "small", "base"] = "small"
    patch: int | None = Field(
        None, ge=1, le=64, description="side of a patch; None: 2 of tiny and small, 16 of base"
    )
    drop_path: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="stochastic depth of the last block; None: 0.1 of tiny, 0.2 of small and base",
    )
    init: Literal["usb", "timm"] = Field("usb", description="how weights are drawn where there is no weight file")
    fusion_block: int = Field(
        last_quarter(DEPTH), ge=0, lt=DEPTH, description="the token embeddings that enter this block are fused"
    )


class ViT(TimmBacked):
    """images [N, C, S, S] -> logits [N, K]: 12 blocks, the class token's embedding, layer norms with eps 1e-6.

    Weights are drawn as USB draws them, position embedding and class token zero and linear layers by torch's
    default, or with `init: timm` from truncated normal distributions.

    Args:
        fusion: applied to all tokens [N, T, D] that enter block `options.fusion_block`.

    Raises:
        ConfigError: timm is not installed, or patches do not tile the image.
    """

    Options = ViTOptions
    classifier = "net.head"

    def __init__(self, options: ViTOptions, shape: Shape, fusion: EmbeddingFusion) -> None:
        super().__init__()
        import_timm("vit")
        from timm.models.vision_transformer import VisionTransformer

        size = SIZES[options.size]
        patch = options.patch or size.patch
        if shape.side % patch or shape.side < 2 * patch:
            raise ConfigError(
                f"model.patch = {patch}: the images' side, {shape.side} px, must be two or more times that"
            )
        self.fusion, self.embedding_size = fusion, size.width
        self.net = VisionTransformer(
            img_size=shape.side,
            patch_size=patch,
            in_chans=shape.channels,
            num_classes=shape.classes,
            embed_dim=size.width,
            depth=DEPTH,
            num_heads=size.heads,
            drop_path_rate=size.drop_path if options.drop_path is None else options.drop_path,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            weight_init="skip" if options.init == "usb" else "",
        )
        if options.init == "usb":
            nn.init.zeros_(self.net.pos_embed)
            nn.init.zeros_(self.net.cls_token)
        fusion.attach(self.net.blocks[options.fusion_block])

    def fit_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """As timm's networks do, without what only pre-training uses."""
        return super().fit_weights({n: v for n, v in weights.items() if not PRETRAINING.match(n)})
