"""CLIP against open_clip and transformers."""

from functools import partial

import torch
import transformers
from open_clip.loss import ClipLoss
from open_clip.model import CLIP as OpenCLIP
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from bench.training import Paper, Reference, Size, measure_training
from paperwalk.clip import CLIP, CLIPConfig
from paperwalk.published.clip import OPENAI, TRANSFORMERS, our_names


def sizes(d: int, n_image_layers: int, n_text_layers: int, n_heads: int, **changes) -> CLIPConfig:
    """Both towers of one width, images of 32 pixels, texts of 16 tokens."""
    image = {"d_image": d, "n_image_layers": n_image_layers, "n_image_heads": n_heads, "d_image_mlp": 4 * d}
    text = {"d_text": d, "n_text_layers": n_text_layers, "n_text_heads": n_heads, "d_text_mlp": 4 * d}
    common = {"image_size": 32, "patch_size": 4, "vocab_size": 1_500, "block_size": 16, "d_embed": 128}
    return CLIPConfig(**image | text | common | changes)


SIZES = {
    "small": Size(sizes(96, 4, 2, 3, patch_size=8), 64),
    "middle": Size(sizes(192, 6, 4, 3), 64),
    "large": Size(sizes(384, 8, 4, 6), 16),
}


def inputs(size: Size) -> tuple[Tensor, Tensor]:
    """Pictures, and texts that end somewhere."""
    config = size.config
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(size.batch, 3, config.image_size, config.image_size, generator=draws)
    texts = torch.randint(1, config.eot_id, (size.batch, config.block_size), generator=draws)
    texts[torch.arange(size.batch), torch.randint(1, config.block_size, (size.batch,), generator=draws)] = config.eot_id
    return images, texts


def transformers_clip(config: CLIPConfig) -> nn.Module:
    """transformers'."""
    common = {"hidden_act": config.activation, "layer_norm_eps": config.norm_eps}
    text = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "hidden_size": config.d_text,
        "num_hidden_layers": config.n_text_layers,
        "num_attention_heads": config.n_text_heads,
        "intermediate_size": config.d_text_mlp,
        "eos_token_id": config.eot_id,
        "bos_token_id": 0,
        "pad_token_id": 0,
    }
    image = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.d_image,
        "num_hidden_layers": config.n_image_layers,
        "num_attention_heads": config.n_image_heads,
        "intermediate_size": config.d_image_mlp,
    }
    towers = {"text_config": common | text, "vision_config": common | image}
    return transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=config.d_embed))


def open_clip(config: CLIPConfig) -> nn.Module:
    """open_clip's; it has one ratio of MLP to width, and the heads as their width."""
    image = CLIPVisionCfg(
        layers=config.n_image_layers,
        width=config.d_image,
        head_width=config.d_image // config.n_image_heads,
        mlp_ratio=config.d_image_mlp / config.d_image,
        patch_size=config.patch_size,
        image_size=config.image_size,
    )
    text = CLIPTextCfg(
        context_length=config.block_size,
        vocab_size=config.vocab_size,
        width=config.d_text,
        heads=config.n_text_heads,
        layers=config.n_text_layers,
        mlp_ratio=config.d_text_mlp / config.d_text,
    )
    return OpenCLIP(config.d_embed, image, text, quick_gelu=config.activation == "quick_gelu")


def transformers_loss(model: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    """Their own."""
    return model(input_ids=texts, pixel_values=images, return_loss=True).loss


def open_clip_loss(model: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    """Their own."""
    return ClipLoss()(*model(images, texts))


PAPER = Paper(
    name="clip",
    unit="pairs",
    items=lambda size: size.batch,
    sizes=SIZES,
    model=CLIP,
    loss=CLIP.loss,
    inputs=inputs,
    flops=lambda config: sum(config.forward_flops()),
    references={
        "open_clip": Reference(open_clip, open_clip_loss, partial(our_names, table=OPENAI)),
        "transformers": Reference(transformers_clip, transformers_loss, partial(our_names, table=TRANSFORMERS)),
    },
)
measure = partial(measure_training, PAPER)

if __name__ == "__main__":
    from bench.run import main

    main(PAPER.name)
