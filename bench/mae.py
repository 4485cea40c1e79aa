"""The masked autoencoder against transformers."""

from functools import partial

import torch
import transformers
from torch import Tensor, nn

from bench.training import Paper, Reference, Size, measure_training
from paperwalk.mae import MAE, MAEConfig
from paperwalk.published.mae import TRANSFORMERS, our_names

SIZES = {
    "small": Size(MAEConfig(32, 4, 3, 96, 4, 3, 384, 48, 2, 3, 192, norm_target=True), 64),
    "middle": Size(MAEConfig(32, 4, 3, 192, 6, 3, 768, 96, 2, 3, 384, norm_target=True), 64),
    "large": Size(MAEConfig(32, 4, 3, 384, 8, 6, 1536, 192, 2, 6, 768, norm_target=True), 32),
}


def inputs(size: Size) -> tuple[Tensor, Tensor]:
    """Images, and the noise whose order says what is hidden."""
    config = size.config
    draws = torch.Generator().manual_seed(0)
    shape = (size.batch, config.in_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=draws), torch.rand(size.batch, config.n_patches, generator=draws)


def transformers_mae(config: MAEConfig) -> nn.Module:
    """transformers'."""
    return transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_channels=config.in_channels,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.d_mlp,
            decoder_hidden_size=config.decoder_d_model,
            decoder_num_hidden_layers=config.decoder_n_layers,
            decoder_num_attention_heads=config.decoder_n_heads,
            decoder_intermediate_size=config.decoder_d_mlp,
            mask_ratio=config.mask_ratio,
            norm_pix_loss=config.norm_target,
            layer_norm_eps=config.norm_eps,
        )
    )


def loss(model: nn.Module, images: Tensor, noise: Tensor) -> Tensor:
    """The error on hidden patches; theirs goes by the same name."""
    return model(images, noise).loss


PAPER = Paper(
    name="mae",
    unit="images",
    items=lambda size: size.batch,
    sizes=SIZES,
    model=MAE,
    loss=loss,
    inputs=inputs,
    flops=lambda config: config.encoder_flops() + config.decoder_flops(),
    references={"transformers": Reference(transformers_mae, loss, partial(our_names, table=TRANSFORMERS))},
)
measure = partial(measure_training, PAPER)

if __name__ == "__main__":
    from bench.run import main

    main(PAPER.name)
