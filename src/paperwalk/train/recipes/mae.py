"""A masked autoencoder on images without labels; labels are used to measure it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from paperwalk.data.augment import crop, draw_crops
from paperwalk.mae import MAE, MAEConfig, cover
from paperwalk.metrics import bootstrap_interval
from paperwalk.probe import Features, features, linear_probe
from paperwalk.train.recipes.images import Images, data_sha256, normalise, read_splits
from paperwalk.train.recipes.vit import load_encoder
from paperwalk.train.task import Batch, Metrics, Recipe, Task, cut, figure, generator, shuffled, spaced
from paperwalk.vit import ViT, ViTConfig

# Labelled images that the probe of a quick evaluation learns from, for each that it is tested on.
PROBED = 10


@dataclass(frozen=True)
class Sampling:
    """What to paint.

    Args:
        images: so many held-out images, side by side: as the model sees them, as it paints them, as they are.
        mask_ratio: share of the patches to hide; the model's own if left out.
        seed: of the masks.
        file: the picture to write.
    """

    images: int = 8
    mask_ratio: float | None = None
    seed: int = 0
    file: Path = Path("painted.png")


@dataclass(frozen=True)
class MAERecipe(Recipe):
    """Train a masked autoencoder.

    Args:
        data: "mnist", "mnist-5k", "cifar10", or a folder with train/CLASS/ and val/CLASS/ in it.
        model: sizes; `image_size` and `in_channels` must be those of the data.
    """

    paper: ClassVar[str] = "mae"
    Sampling: ClassVar[type] = Sampling
    PRESETS: ClassVar = {
        "tiny-32": MAEConfig(32, 4, 3, 192, 6, 3, 768, 96, 2, 3, 384, norm_target=True),
        "mini-32": MAEConfig(32, 4, 3, 96, 4, 3, 384, 48, 2, 3, 192, norm_target=True),
        "base-16": MAEConfig.base_16(norm_target=True),
        "large-16": MAEConfig.large_16(norm_target=True),
        "huge-14": MAEConfig.huge_14(norm_target=True),
    }

    lr: float = 1.5e-3
    beta2: float = 0.95
    data: str = "cifar10"
    model: MAEConfig = field(default_factory=lambda: MAERecipe.PRESETS["tiny-32"])

    @classmethod
    def named(cls) -> dict[str, "MAERecipe"]:
        """The recipes by name."""
        return {
            "cifar10-cpu": cls(epochs=24.0),
            # One pass, for trying out.
            "cifar10-mini": cls(model=cls.PRESETS["mini-32"], epochs=1.0, lr=2e-3),
            # Table 8, and "w/ norm" of Table 1d: ViT-L, 800 passes, 40 of them warm-up.
            "paper": cls(
                data="imagenet",
                model=cls.PRESETS["large-16"],
                epochs=800.0,
                batch_size=4096,
                lr=2.4e-3,
                warmup=0.05,
            ),
        }

    def splits(self) -> tuple[Images, Images]:
        """What is trained on, and what is held out.

        Raises:
            ValueError: as `read_splits`.
        """
        return read_splits(self.data, self.model)

    def data_sha256(self) -> dict[str, str]:
        """As `images.data_sha256`."""
        return data_sha256(self.data)

    def build(self) -> MAE:
        """The untrained model."""
        return MAE(self.model)

    def forward_flops(self) -> int:
        """FLOPs of one image, encoder and decoder."""
        return self.model.encoder_flops() + self.model.decoder_flops()

    def example_size(self) -> str:
        """An image, in words."""
        size = self.model.image_size
        return f"an image of {size} x {size} pixels, {self.model.mask_ratio:.0%} hidden"

    def task(self) -> Task:
        """Paint what is hidden of each image."""
        train, _ = self.splits()
        steps, model = self.steps_of(len(train)), self.build()

        def batch(step: int, part: int, parts: int) -> Batch:
            rows = shuffled(len(train), self.batch_size, self.seed, step)
            draws = generator(self.seed + 1, step)
            crops, noise = draw_crops(len(rows), draws), torch.rand(len(rows), self.model.n_patches, generator=draws)
            rows, crops, noise = (cut(each, part, parts) for each in (rows, crops, noise))
            return crop(normalise(train.pixels(rows, self.model.image_size)), crops), noise

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            return model(*batch).loss, len(batch[0])

        return Task(model, self.adamw(model), self.cosine(steps), steps, batch, loss)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The weights, in half precision."""
        model.save_pretrained(folder, bits=16)

    def load(self, folder: Path) -> MAE:
        """The model that `save` wrote."""
        return MAE.from_pretrained(folder)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, limit: int | None = None) -> Metrics:
        """The loss on held-out images, masked by noise of the seed; and the accuracy of a linear probe.

        With a limit the probe learns from ten times as many images; else from all.
        """
        _, test = self.splits()
        model.eval()
        rows = torch.arange(len(test))[spaced(len(test), limit)]
        noise = torch.rand(len(rows), self.model.n_patches, generator=generator(self.seed, 0))
        losses = []
        for chosen, order in zip(rows.split(500), noise.split(500), strict=True):
            images = self.images(test, chosen, model)
            out = model(images, order.to(images.device))
            errors = (out.prediction - model.target(images)).square().mean(2)
            # As many patches are hidden in each image, so that the mean of these is the mean over hidden patches.
            losses += ((errors * out.mask).sum(1) / out.mask.sum(1)).tolist()
        found = self.features(model, limit and PROBED * limit, limit)
        with torch.enable_grad():
            right = linear_probe(*found, seed=self.seed).int().tolist()
        return {
            "reconstruction loss": figure(sum(losses) / len(losses), bootstrap_interval(losses), len(losses)),
            "linear probe accuracy": figure(sum(right) / len(right), bootstrap_interval(right), len(right)),
        }

    def features(self, model: MAE, n_train: int | None = None, n_test: int | None = None) -> tuple[Features, Features]:
        """What the encoder makes of images to train on and of held-out ones, with labels; all if no number is given."""
        vit = ViT(ViTConfig(**model.config.encoder_sizes(), n_classes=0)).to(model.positions.device).eval()
        load_encoder(vit, model)
        found = []
        for split, n in zip(self.splits(), (n_train, n_test), strict=True):
            rows = torch.arange(len(split))[spaced(len(split), n)]
            seen = torch.cat([features(vit, self.images(split, part, model)) for part in rows.split(500)])
            found.append((seen.cpu(), split.labels[rows]))
        return tuple(found)

    def images(self, split: Images, rows: Tensor, model: MAE) -> Tensor:
        """These images as the model takes them."""
        return normalise(split.pixels(rows, self.model.image_size)).to(model.positions.device)

    @torch.no_grad()
    def sample(self, model: MAE, folder: Path, how: Sampling) -> str:
        """A picture: what the model sees, what it paints, what is true."""
        from torchvision.utils import save_image

        _, test = self.splits()
        rows = torch.arange(len(test))[spaced(len(test), how.images)][: how.images]
        images = self.images(test, rows, model)
        noise = torch.rand(len(rows), self.model.n_patches, generator=generator(how.seed, 0))
        out = model(images, noise.to(images.device), mask_ratio=how.mask_ratio)
        painted = model.reconstruct(images, out.prediction, out.mask)
        grid = torch.cat([cover(images, out.mask), painted.clamp(-1, 1), images])
        save_image((grid + 1) / 2, how.file, nrow=len(rows))
        return f"{how.file}: seen, painted, true"
