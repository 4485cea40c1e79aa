"""How good generated images are, by a classifier that has seen real ones: measured, not admired.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017
(the Fréchet distance between features of a trained network); Salimans et al., "Improved Techniques for Training GANs",
NeurIPS 2016 (a classifier should be sure of a good image, and see all classes equally often).

| axis | meaning |
|---|---|
| b | images |
| d | features |
| k | classes |

Differs from the papers: their network is Inception, trained on ImageNet; ours is small and trained on the data
themselves, so its distances compare with each other and with no published one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from paperwalk import checkpoints
from paperwalk.nn.checks import check_sizes

# The judges that come with the package, trained by `python -m paperwalk.train.judge`.
JUDGES = Path(__file__).with_name("judges")


@dataclass(frozen=True)
class JudgeConfig:
    """The sizes of a judge.

    Args:
        image_size: side of the square images, in pixels, a multiple of 4.
        in_channels: channels c of the images.
        n_classes: classes k.
        d_model: channels of the first two convolutions; the next two have twice as many.
        d_features: features d, the inputs of the last layer.
        dropout: probability of a zero among them, in training.

    Raises:
        ValueError: sizes that do not fit together.
    """

    image_size: int = 28
    in_channels: int = 1
    n_classes: int = 10
    d_model: int = 32
    d_features: int = 64
    dropout: float = 0.3

    def __post_init__(self):
        check_sizes(self, "image_size", "in_channels", "n_classes", "d_model", "d_features")
        if self.image_size % 4:
            raise ValueError(f"image_size={self.image_size} is not a multiple of 4, expected one that is")


class Verdict(NamedTuple):
    """What a judge says of images: features, and the probability of each class."""

    features: Float[Tensor, "b d"]
    probabilities: Float[Tensor, "b k"]


class Judge(nn.Module):
    """A small convolutional classifier: four convolutions, two poolings, a hidden layer whose outputs are the features.

    Args:
        config: its sizes.
    """

    def __init__(self, config: JudgeConfig):
        super().__init__()
        self.config = config
        c, side = config.d_model, config.image_size // 4

        def convolution(c_in: int, c_out: int) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]

        self.convolutions = nn.Sequential(
            *convolution(config.in_channels, c),
            *convolution(c, c),
            nn.MaxPool2d(2),
            *convolution(c, 2 * c),
            *convolution(2 * c, 2 * c),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(2 * c * side**2, config.d_features)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.d_features, config.n_classes)

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The features of images in −1 … 1.

        Raises:
            ValueError: images of another shape.
        """
        config = self.config
        expected = (config.in_channels, config.image_size, config.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (b, {', '.join(map(str, expected))})")
        return F.relu(self.hidden(self.convolutions(images)))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """The logits of each class, for images in −1 … 1.

        Raises:
            ValueError: images of another shape.
        """
        return self.head(self.dropout(self.features(images)))

    @torch.no_grad()
    def judge(self, images: Float[Tensor, "b c h w"], batch: int = 500) -> Verdict:
        """What this classifier, set to eval mode, says of images in −1 … 1.

        Raises:
            ValueError: images of another shape.
        """
        self.eval()
        device = self.head.weight.device
        features = torch.cat([self.features(part.to(device)) for part in images.split(batch)])
        return Verdict(features.cpu(), self.head(features).softmax(dim=1).cpu())

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Judge":
        """The judge of a data set, by name ("mnist" comes with the package), or one that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: none of that name.
            ValueError: a damaged file.
        """
        packaged = JUDGES / str(source)
        values, tensors = checkpoints.read(packaged if (packaged / "config.json").is_file() else source)
        return checkpoints.build(cls, checkpoints.config_from(JudgeConfig, values, "Judge"), tensors).eval()

    def save_pretrained(self, folder: str | Path, *, bits: int = 32) -> None:
        """Write the judge to a folder that `from_pretrained` reads; `bits` a weight, as in `checkpoints.write`."""
        checkpoints.write(folder, self, "Judge", self.config, bits)


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """|μ_a − μ_b|² + tr(C_a + C_b − 2 (C_a C_b)^½): the squared distance of two normal distributions.

    The two have the means and covariances of two sets of features; 0 where these are equal. With few rows it is too
    large, also for two samples of one distribution: compare it only with what as many real images give.

    Raises:
        ValueError: fewer than two rows, another width, or features that are not finite.

    Source: Dowson and Landau 1982; Heusel et al. 2017, Eq. 6.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features of shape {tuple(a.shape)} and {tuple(b.shape)}, expected (n, d) and (m, d), n, m > 1"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features hold NaN or infinity, expected finite numbers")
    a, b = a.double(), b.double()
    c_a, c_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    # (C_a C_b)^½ has the eigenvalues of (A C_b A)^½ with A = C_a^½, which is symmetric and so has none that is complex.
    values, vectors = torch.linalg.eigh(c_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    crossed = torch.linalg.eigvalsh(root @ c_b @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + c_a.trace() + c_b.trace() - 2 * crossed).item()


def confident(verdict: Verdict, over: float = 0.9) -> Int64[Tensor, " b"]:
    """1 for each image whose most probable class has a probability over `over`, else 0.

    A judge has to name a class, and can be sure of pure noise: read it beside `class_score`.
    """
    return (verdict.probabilities.amax(dim=1) > over).long()


def class_score(probabilities: Float[Tensor, "b k"]) -> float:
    """exp of the mean divergence of each image's classes from all images': 1 (all alike) to k (sure, evenly spread).

    Source: Salimans et al. 2016, Section 4 (with Inception's classes: the Inception score).
    """
    p = probabilities.double()
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, p.mean(0))).sum(1).mean().exp().item()


def class_shares(classes: Int64[Tensor, " b"], n_classes: int) -> Float[Tensor, " k"]:
    """The share of the images that each class has.

    Raises:
        ValueError: no images, or a class outside 0 … k − 1.
    """
    if len(classes) == 0 or classes.min() < 0 or classes.max() >= n_classes:
        raise ValueError(f"{len(classes)} classes, expected at least one, in 0 to {n_classes - 1}")
    return torch.bincount(classes, minlength=n_classes) / len(classes)
