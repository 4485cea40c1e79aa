"""ViT against timm, transformers and torchvision."""

from functools import partial

import torch
import torch.nn.functional as F
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionTransformer

from bench.training import Paper, Reference, Size, measure_training
from paperwalk.published.vit import TIMM, TORCHVISION, TRANSFORMERS, our_names
from paperwalk.vit import ViT, ViTConfig

SIZES = {
    "small": Size(ViTConfig(32, 8, 3, 10, d_model=96, n_layers=4, n_heads=3, d_mlp=384), 64),
    "middle": Size(ViTConfig(32, 4, 3, 10, d_model=192, n_layers=6, n_heads=3, d_mlp=768), 64),
    "large": Size(ViTConfig(32, 4, 3, 10, d_model=384, n_layers=8, n_heads=6, d_mlp=1536), 16),
}


def inputs(size: Size) -> tuple[Tensor, Tensor]:
    """Images and their classes."""
    config = size.config
    draws = torch.Generator().manual_seed(0)
    shape = (size.batch, config.in_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=draws), torch.randint(config.n_classes, (size.batch,), generator=draws)


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of the logits."""
    return F.cross_entropy(model(images), labels)


def timm_vit(config: ViTConfig) -> nn.Module:
    """timm's."""
    return VisionTransformer(
        config.image_size,
        config.patch_size,
        config.in_channels,
        config.n_classes,
        embed_dim=config.d_model,
        depth=config.n_layers,
        num_heads=config.n_heads,
        mlp_ratio=config.d_mlp / config.d_model,
    )


def torchvision_vit(config: ViTConfig) -> nn.Module:
    """torchvision's."""
    sizes = (config.image_size, config.patch_size, config.n_layers, config.n_heads, config.d_model, config.d_mlp)
    return TorchvisionTransformer(*sizes, num_classes=config.n_classes)


def transformers_vit(config: ViTConfig) -> nn.Module:
    """transformers'."""
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_channels=config.in_channels,
            num_labels=config.n_classes,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.d_mlp,
            layer_norm_eps=config.norm_eps,
        )
    )


PAPER = Paper(
    name="vit",
    unit="images",
    items=lambda size: size.batch,
    sizes=SIZES,
    model=ViT,
    loss=loss,
    inputs=inputs,
    flops=ViTConfig.forward_flops,
    references={
        "timm": Reference(timm_vit, loss, partial(our_names, table=TIMM)),
        "transformers": Reference(
            transformers_vit,
            lambda model, x, y: F.cross_entropy(model(x).logits, y),
            partial(our_names, table=TRANSFORMERS),
        ),
        "torchvision": Reference(torchvision_vit, loss, partial(our_names, table=TORCHVISION)),
    },
)
measure = partial(measure_training, PAPER)

if __name__ == "__main__":
    from bench.run import main

    main(PAPER.name)
