r"""Images and their captions, each encoded by a transformer, meet in one space; a sentence then names a new class.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger and Sutskever, "Learning
Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv:2103.00020. Official implementation:
openai/CLIP, `clip/model.py`.

| axis | paper | meaning |
|---|---|---|
| b | n | pairs of an image and a text in a batch |
| c, h, w | c, h, w | channels, pixel rows and columns |
| t | l | tokens: of a text, or the class token and the patches of an image |
| d | d_i, d_t | width of a tower |
| e | d_e | width of the space that both towers share |
| k | | classes of zero-shot classification |

Differs from the paper:
- Image towers are Vision Transformers only; the paper trains ResNets too.
- The paper clips the temperature without saying where; here `loss` clips t before it uses it, so that a step past the
  ceiling is taken back. The official code, made for inference, has no clip.
- The text is read off at the first token that is `eot_id`. The official code takes the largest integer, which is the
  same until someone adds tokens to the vocabulary.
- The weights of both towers' blocks are drawn as the official code draws the text's, with scales by width and depth,
  and their biases are 0; there the image blocks, and all biases of the MLPs, stay at torch's defaults.
- No bias in the patch embedding and in both projections, as in the official code.
- All weights are in single precision; the official code has half precision, and norms computed in single.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from paperwalk import checkpoints
from paperwalk.nn import LearnedPositions, PatchEmbedding, TransformerBlock, quick_gelu
from paperwalk.nn.checks import check_choice, check_images, check_multiple, check_sizes, check_tokens
from paperwalk.published.clip import from_openai, from_transformers

ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}
INIT_TEMPERATURE = 0.07
MAX_SCALE = 100.0


@dataclass(frozen=True)
class CLIPConfig:
    """The sizes of a CLIP; the defaults are ViT-B/32.

    Args:
        image_size, patch_size: sides of the square image and of its square patches, in pixels.
        d_image, n_image_layers, n_image_heads, d_image_mlp: width, blocks, heads and MLP width of the image tower.
        vocab_size: tokens of the text tower.
        block_size: positions of a text, its start and its end token included.
        d_text, n_text_layers, n_text_heads, d_text_mlp: width, blocks, heads and MLP width of the text tower.
        eot: the integer of the end-of-text token; None for the last of the vocabulary.
        d_embed: width e of the shared space.
        activation: "quick_gelu" as the paper's models, or "gelu" as most of open_clip's.
        dropout: probability of a zero in each sub-layer's output, in training; the paper has none.
        norm_eps: added to the variance inside each layer norm's square root.

    Raises:
        ValueError: sizes that do not fit together, or an unknown activation.
    """

    image_size: int = 224
    patch_size: int = 32
    d_image: int = 768
    n_image_layers: int = 12
    n_image_heads: int = 12
    d_image_mlp: int = 3072
    vocab_size: int = 49_408
    block_size: int = 77
    d_text: int = 512
    n_text_layers: int = 12
    n_text_heads: int = 8
    d_text_mlp: int = 2048
    eot: int | None = None
    d_embed: int = 512
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    dropout: float = 0.0
    norm_eps: float = 1e-5

    def __post_init__(self):
        others = ("eot", "activation", "dropout", "norm_eps")
        check_sizes(self, *(field.name for field in fields(self) if field.name not in others))
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "d_image", "n_image_heads")
        check_multiple(self, "d_text", "n_text_heads")
        check_choice(self, "activation", sorted(ACTIVATIONS))
        for name in ("dropout", "norm_eps"):
            if not isinstance(getattr(self, name), int | float) or not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}, expected a number of at least 0 and below 1")
        if not isinstance(self.eot_id, int) or not 0 <= self.eot_id < self.vocab_size:
            raise ValueError(f"eot={self.eot!r}, expected a token, 0 to {self.vocab_size - 1}")

    @classmethod
    def vit_b_32(cls, **changes: Any) -> "CLIPConfig":
        """ViT-B/32 (sizes of Table 20): 151,277,313 parameters."""
        return cls(**changes)

    @classmethod
    def vit_b_16(cls, **changes: Any) -> "CLIPConfig":
        """ViT-B/16 (sizes of Table 20): 149,620,737 parameters, on four times as many patches."""
        return cls(**{"patch_size": 16} | changes)

    @classmethod
    def vit_l_14(cls, **changes: Any) -> "CLIPConfig":
        """ViT-L/14 (sizes of Table 20): 427,616,513 parameters."""
        image = {"patch_size": 14, "d_image": 1024, "n_image_layers": 24, "n_image_heads": 16, "d_image_mlp": 4096}
        text = {"d_text": 768, "n_text_heads": 12, "d_text_mlp": 3072, "d_embed": 768}
        return cls(**image | text | changes)

    @property
    def eot_id(self) -> int:
        """The integer of the end-of-text token."""
        return self.vocab_size - 1 if self.eot is None else self.eot

    @property
    def n_image_tokens(self) -> int:
        """Length t of an image as a sequence, the class token included."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def forward_flops(self) -> tuple[int, int]:
        """FLOPs of one image and of one text: matrix products only, a multiply-add counted as two."""

        def blocks(n: int, t: int, d: int, f: int) -> int:
            return n * (8 * t * d**2 + 4 * t**2 * d + 4 * t * d * f)

        patches = 2 * (self.n_image_tokens - 1) * 3 * self.patch_size**2 * self.d_image
        image = blocks(self.n_image_layers, self.n_image_tokens, self.d_image, self.d_image_mlp)
        text = blocks(self.n_text_layers, self.block_size, self.d_text, self.d_text_mlp)
        return patches + image + 2 * self.d_image * self.d_embed, text + 2 * self.d_text * self.d_embed


def _blocks(n_layers: int, d: int, n_heads: int, d_mlp: int, config: CLIPConfig) -> nn.ModuleList:
    """Pre-norm blocks, initialised as GPT-2's: those that write to the residual stream start smaller."""
    options = {"activation": ACTIVATIONS[config.activation], "dropout": config.dropout, "norm_eps": config.norm_eps}
    blocks = nn.ModuleList(TransformerBlock(d, n_heads, d_mlp, **options) for _ in range(n_layers))
    for block in blocks:
        attention, mlp = block.attention, block.mlp
        residual_std = (2 * n_layers * d) ** -0.5
        stds = {attention.in_proj: d**-0.5, attention.out_proj: residual_std}
        stds |= {mlp.fc1: (2 * d) ** -0.5, mlp.fc2: residual_std}
        for layer, std in stds.items():
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    return blocks


class ImageTower(nn.Module):
    """A Vision Transformer with one more norm before its blocks; the class token, projected, is the image.

    I_f = LN(z_L)[class] · W_i, with z_0 = LN([x_class; x_p E] + E_pos)

    Source: Radford et al. 2021, Section 2.4; the projection is W_i of Figure 3.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        d = config.d_image
        self.image_size = config.image_size
        self.patch_embedding = PatchEmbedding(config.patch_size, 3, d, bias=False)
        self.class_token = nn.Parameter(torch.randn(d) * d**-0.5)
        self.positions = LearnedPositions(config.n_image_tokens, d, std=d**-0.5)
        self.norm_pre = nn.LayerNorm(d, eps=config.norm_eps)
        self.blocks = _blocks(config.n_image_layers, d, config.n_image_heads, config.d_image_mlp, config)
        self.norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.projection = nn.Linear(d, config.d_embed, bias=False)
        nn.init.normal_(self.projection.weight, std=d**-0.5)

    def encode(self, images: Tensor) -> Float[Tensor, "b t d"]:
        """All tokens after the last block and the last norm: the class token, then the patches row by row.

        Raises:
            ValueError: as `forward`.
        """
        check_images(images, 3, self.image_size)
        patches = self.patch_embedding(images)
        z = torch.cat([self.class_token.expand(len(patches), 1, -1), patches], dim=1)
        z = self.norm_pre(z + self.positions())
        for block in self.blocks:
            z = block(z)
        return self.norm(z)

    def forward(self, images: Tensor) -> Float[Tensor, "b e"]:
        """The projected features of images, of any length: `CLIP.encode_image` makes them unit vectors.

        Raises:
            ValueError: not a batch of floating-point images of this model's size, or an empty one.
        """
        return self.projection(self.encode(images)[:, 0])


class TextTower(nn.Module):
    """A causal transformer over tokens; its state at the end-of-text token, projected, is the text.

    T_f = LN(z_L)[end of text] · W_t

    The mask is causal, so what stands after the end-of-text token changes nothing: padding needs no mask of its own.

    Source: Radford et al. 2021, Section 2.4; the projection is W_t of Figure 3.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        d = config.d_text
        self.eot_id = config.eot_id
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.positions = LearnedPositions(config.block_size, d, std=0.01)
        self.blocks = _blocks(config.n_text_layers, d, config.n_text_heads, config.d_text_mlp, config)
        self.norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.projection = nn.Linear(d, config.d_embed, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=d**-0.5)

    def encode(self, tokens: Tensor) -> Float[Tensor, "b t d"]:
        """All tokens after the last block and the last norm; each has seen itself and those before.

        Raises:
            ValueError: not a batch of integers of the vocabulary, or more positions than the context.
        """
        check_tokens("tokens", tokens, self.token_embedding.num_embeddings, len(self.positions.weight))
        z = self.token_embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            z = block(z, causal=True)
        return self.norm(z)

    def forward(self, tokens: Tensor) -> Float[Tensor, "b e"]:
        """The projected features of texts, of any length: `CLIP.encode_text` makes them unit vectors.

        Args:
            tokens: (b t) integers, each row with an end-of-text token; the first one counts. Rows may be shorter than
                the context, and what follows the end may be anything.

        Raises:
            ValueError: as `encode`, or a row without an end.
        """
        z, is_end = self.encode(tokens), tokens == self.eot_id
        ended = is_end.any(dim=1)
        if not ended.all():
            row = int((~ended).int().argmax())
            raise ValueError(f"text {row} has no end-of-text token, expected {self.eot_id} in each row")
        # argmax gives the first of equal values.
        return self.projection(z[torch.arange(len(z), device=z.device), is_end.int().argmax(dim=1)])


def unit(features: Float[Tensor, "b e"]) -> Float[Tensor, "b e"]:
    """Each row divided by its length: I_e, T_e of Figure 3. Their products are cosines.

    Raises:
        ValueError: a row is zero, which has no direction, or not finite.
    """
    length = features.norm(dim=-1, keepdim=True)
    wrong = ~(length.isfinite() & (length > 0)).flatten()
    if wrong.any():
        row = int(wrong.int().argmax())
        raise ValueError(f"feature {row} has length {length[row].item()}, expected a finite one above 0")
    return features / length


def contrastive_loss(logits: Float[Tensor, "b b2"]) -> Float[Tensor, ""]:
    """(loss_i + loss_t) / 2: cross-entropy over each row and over each column, the diagonal being right. In nats.

    Args:
        logits: scaled cosines, a row for each image, a column for each text; pair i is (image i, text i).

    A batch of one has nothing to tell apart: its loss is 0 and so are its gradients.

    Raises:
        ValueError: as many images as texts are expected.

    Source: Radford et al. 2021, Figure 3, last four lines.
    """
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(f"{logits.shape[0]} images with {logits.shape[1]} texts, expected pairs")
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class CLIP(nn.Module):
    """Two towers and a temperature: logits = I_e T_eᵀ e^t.

    `log_scale` is the paper's t, the logarithm of one over the temperature τ: it starts at ln(1 / 0.07).

    Source: Radford et al. 2021, Figure 3 and Section 2.5.
    Cost: `config.forward_flops()` for an image and for a text, and 2 · b² · e for their products.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.image = ImageTower(config)
        self.text = TextTower(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / INIT_TEMPERATURE)))

    def scale(self) -> Float[Tensor, ""]:
        """e^t: by how much a cosine is multiplied."""
        return self.log_scale.exp()

    def encode_image(self, images: Tensor) -> Float[Tensor, "b e"]:
        """I_e: unit vectors.

        Args:
            images: (b 3 h w), floating point, normalised as in training.

        Raises:
            ValueError: not a batch of floating-point images of this model's size, or features zero or not finite.
        """
        return unit(self.image(images))

    def encode_text(self, tokens: Tensor) -> Float[Tensor, "b e"]:
        """T_e: unit vectors.

        Args:
            tokens: (b t) integers, each row with its end-of-text token.

        Raises:
            ValueError: as `TextTower.forward`, or features zero or not finite.
        """
        return unit(self.text(tokens))

    def forward(self, images: Tensor, tokens: Tensor) -> Float[Tensor, "b_images b_texts"]:
        """The logits of each image with each text; there may be more of one than of the other.

        Raises:
            ValueError: as `encode_image` and `encode_text`.
        """
        return self.scale() * self.encode_image(images) @ self.encode_text(tokens).T

    def loss(
        self, images: Tensor, tokens: Tensor, gather: Callable[[Tensor], Tensor] = lambda features: features
    ) -> Float[Tensor, ""]:
        """The symmetric contrastive loss of a batch of pairs, in nats; ln b at chance.

        It first brings t back to ln 100 if an optimiser step has taken it past: e^t is at most 100.

        Args:
            gather: makes the features of the whole batch of those of a part, where several processes share a batch.

        Raises:
            ValueError: as `forward`, or more images than texts or fewer.
        """
        if len(images) != len(tokens):
            raise ValueError(f"{len(images)} images with {len(tokens)} texts, expected pairs")
        with torch.no_grad():
            # As an operation of the forward pass the clip would leave t beyond the ceiling, without a gradient.
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        image_features, text_features = gather(self.encode_image(images)), gather(self.encode_text(tokens))
        return contrastive_loss(self.scale() * image_features @ text_features.T)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, config: CLIPConfig | None = None) -> "CLIP":
        """A CLIP with published weights: ours, transformers' (`CLIPModel`), OpenAI's or open_clip's state dict.

        Args:
            source: a folder, a weights file, or the id of a model on the Hugging Face hub.
            config: sizes, for a weights file that does not tell them (exact GELU, heads not 64 wide).

        Returns:
            The model in eval mode.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a damaged file, another architecture, or a tensor missing, left over or of another shape.
        """
        values, tensors = checkpoints.read(source)
        if values and config is not None:
            raise ValueError(f"got config for {source}, which states its own sizes in config.json")
        if "paperwalk" in values:
            config = checkpoints.config_from(CLIPConfig, values, "CLIP")
        elif values:
            with checkpoints.described(source):
                sizes, tensors = from_transformers(values, tensors)
                config = CLIPConfig(**sizes)
        else:
            with checkpoints.described(source):
                sizes, tensors = from_openai(tensors)
                config = config or CLIPConfig(**sizes)
        return checkpoints.build(cls, config, tensors).eval()

    def save_pretrained(self, folder: str | Path, *, bits: int = 32) -> None:
        """Write the model to a folder that `from_pretrained` reads; `bits` a weight, as in `checkpoints.write`."""
        checkpoints.write(folder, self, "CLIP", self.config, bits)
