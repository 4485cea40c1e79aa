"""How much an encoder knows without being asked: a linear classifier on its frozen features.

He et al. 2021, arXiv:2111.06377, Appendix A.1 ("Linear probing"), which normalises the features without learning a
scale. Differs: the features are computed once, of images without random crops; they are the mean of the patches'
tokens; SGD instead of LARS, without warm-up, 20 epochs instead of 90.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from paperwalk.vit import ViT

Features = tuple[Float[Tensor, "_ d"], Int64[Tensor, "_"]]
BATCH, LR, EPOCHS = 256, 0.1, 20


@torch.no_grad()
def features(vit: ViT, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """The mean of the patches' tokens after the last layer, in single precision."""
    first = int(vit.class_token is not None)
    return vit.encode(images)[:, first:].float().mean(dim=1)


def linear_probe(train: Features, test: Features, *, seed: int = 0, epochs: int = EPOCHS) -> Bool[Tensor, "_"]:
    """Which of the test images a linear classifier, trained on the features of the others, gets right.

    Args:
        train, test: features and labels 0, 1, ….
        seed: of the order of the examples; the classifier starts at zero.
        epochs: passes over the training features.
    """
    (x, y), (x_test, y_test) = train, test
    std, mean = torch.std_mean(x, dim=0)
    x, x_test = ((each - mean) / (std + 1e-6) for each in (x, x_test))
    head = nn.Linear(x.shape[1], int(y.max()) + 1, device=x.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    batch = min(BATCH, len(x))
    steps = epochs * (len(x) // batch)
    sgd = torch.optim.SGD(head.parameters(), lr=LR, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator)[: len(x) // batch * batch].split(batch):
            sgd.zero_grad()
            F.cross_entropy(head(x[chosen]), y[chosen]).backward()
            sgd.step()
            cosine.step()
    return head(x_test).argmax(dim=1) == y_test
