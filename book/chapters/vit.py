# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # An Image is Worth 16x16 Words
#
# {cite:t}`dosovitskiy2021` cut an image into squares, call each square a word, and give the sentence to the transformer of
# {cite:t}`vaswani2017`, almost unchanged. Their claim: with enough data this classifies images as well as the best
# convolutional networks, because "large scale training trumps {term}`inductive bias`" (what a model assumes before it has seen data). Pre-trained on 300 million images, their
# largest model reaches 88.55 % on ImageNet (their Table 2).
#
# We build that model from its equations. We check each block against plain loops and, where torch has one, against torch's own
# module, and the whole model against three independent libraries. We train a small one on MNIST to at least 97 % on the 10,000
# test images in about a minute. Then we test the other half of the claim: with *little* data, a convolutional network of the
# same cost should win.
#
# :::{admonition} Before you start
# Read the [einops primer](einops.md); the [notation](../notation.md) is the book's. You should know what a linear layer, a softmax and a gradient are.
# After this chapter you can write a Vision Transformer from memory, count its parameters, FLOPs and bytes on paper, load
# published weights into your own code, and look at what the model attends to.
#
# This page took {run-time} to run on one thread.
# :::

# %% tags=["hide-input"]
import json
import tempfile
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from matplotlib import pyplot as plt
from torch import nn

from paperwalk import data, plot
from paperwalk.experiments import vit as experiment
from paperwalk.nn import (
    MultiHeadAttention,
    PatchEmbedding,
    TransformerBlock,
    attention,
    attention_weights,
    patchify,
    unpatchify,
)
from paperwalk.nn.patches import linear_from_conv
from paperwalk.notebook import checkpoint, glue, milliseconds, progress
from paperwalk.testing import Ladder, refuses
from paperwalk.vit import ViT, ViTConfig

plot.use_style()
torch.manual_seed(0)
ladder = Ladder()


# %% [markdown]
# ## An image as a sentence
#
# A transformer takes a sequence of vectors. An image is a grid of pixels, `h` rows by `w` columns with `c` channels. How does
# one become the other?
#
# One pixel, one {term}`token` would be the obvious choice, and a bad one: attention compares every token with every other, and 28 × 28
# pixels make 614,656 pairs. The paper takes squares of $P \times P$ pixels instead, its {term}`patches <patch>`, and flattens each,
# row by row, the channels of one pixel side by side (Section 3.1):
#
# $$
# \mathbf{x} \in \mathbb{R}^{H \times W \times C}
# \quad\longrightarrow\quad
# \mathbf{x}_p \in \mathbb{R}^{N \times (P^2 \cdot C)},
# \qquad N = \frac{H W}{P^2}
# $$
#
# $H$ and $W$ are the height and width in pixels, $C$ the channels. In code these are `h`, `w`, `c`, and `p` for $P$. The $N$ patches lie on
# a grid of `gh` by `gw`.

# %%
def patchify_naive(image, p):
    _, h, w = image.shape
    patches = []
    for top in range(0, h, p):
        for left in range(0, w, p):
            square = image[:, top : top + p, left : left + p]
            patches.append(square.permute(1, 2, 0).flatten())
    return torch.stack(patches)


# %% [markdown]
# Our images are MNIST's handwritten digits {cite:p}`lecun1998`: 28 × 28 pixels, one channel. We cut them with $P = 7$. How many
# patches, and how long is each? Decide before you read on.

# %% tags=["nbval-check-output"]
splits = experiment.mnist()
images, labels = splits["train"]
words = patchify_naive(images[0], 7)
assert words.shape == (16, 49)
print(tuple(images.shape), "->", tuple(words.shape), "for one image")

# %% [markdown]
# $28 \cdot 28 / 7^2 = 16$ patches of $7^2 \cdot 1 = 49$ numbers.
#
# Look for the order: reading the patches like a page, row by row, gives the sequence.

# %% mystnb={"image": {"alt": "The digit 5 whole, and beside it the same digit cut into 16 patches that are numbered row by row from 0 to 15."}}
figure, axes = plt.subplots(4, 8, figsize=(7.2, 3.6))
grid = axes[0, 0].get_gridspec()
for axis in axes.flat:
    axis.axis("off")
figure.add_subplot(grid[:, :4]).imshow(images[0, 0], cmap="gray")
figure.axes[-1].axis("off")
for i, word in enumerate(words):
    axis = axes[i // 4, 4 + i % 4]
    axis.imshow(word.view(7, 7), cmap="gray", vmin=images.min(), vmax=images.max())
    axis.set_title(str(i), fontsize=8)

# %% [markdown]
# Each patch alone says little. Patch 5 holds a stroke, patch 0 nothing at all; only together, and in their places, are they a 5.
#
# The version that the finished module uses is one line of einops in `paperwalk.nn.patches`. It also has an inverse, which we will
# want whenever a model paints pixels. A test with one channel would pass whatever the order of the channels, so we test three.

# %% tags=["nbval-check-output"]
batch = images[:64]
for x in (batch, torch.randn(64, 3, 28, 28)):
    words = patchify(x, 7)
    assert torch.equal(
        words, torch.stack([patchify_naive(image, 7) for image in x])
    )
    assert torch.equal(unpatchify(words, 7, 28, 28), x)
    print(x.shape[1], "channels, 64 images as words:", tuple(words.shape))

# %%
# milliseconds() is the median of `repeats` calls, five by default.
naive = milliseconds(lambda: [patchify_naive(image, 7) for image in batch])
ours = milliseconds(lambda: patchify(batch, 7))
print(f"64 images: naive {naive:.2f} ms, einops {ours:.2f} ms")


# %% [markdown]
# ## From pixels to vectors
#
# A word must become a vector of the model's width $D$ (`d`). How, for a square of pixels?
#
# The paper multiplies each flattened patch with one matrix $\mathbf{E} \in \mathbb{R}^{(P^2 C) \times D}$, the same for every patch. For
# patch $i$, a row $\mathbf{x}_p^i$ of $\mathbf{x}_p$, it is the term $\mathbf{x}_p^i \mathbf{E}$ of [Eq. 1](#eq-vit-1) below. The code of the
# authors adds a bias, and so do we.

# %%
def embed_patches_naive(embedding, batch):
    E, bias = embedding.proj.weight.T, embedding.proj.bias
    sentences = []
    for sentence in patchify(batch, embedding.patch_size):
        sentences.append(torch.stack([x @ E + bias for x in sentence]))
    return torch.stack(sentences)


# %% [markdown]
# With $D = 64$, one batch of 8 images must give 8 sentences of 16 words of 64 numbers.
#
# From here on each block is *proven*. `ladder.prove(block, against, ours, theirs, *inputs)` runs both on the same inputs, pulls the same random
# gradient back through both, and compares the outputs and every gradient, of inputs and of weights. It fails if an output is off by more than
# $10^{-5}$ of its largest value, or a gradient by more than $10^{-4}$. (A gradient that is almost zero, as that of the keys' bias is on paper, is
# measured against a thousandth of the largest gradient.) `shared` names the module whose weights both use, `convert` puts the weights of another
# library under our names, `read` turns its output into our shape. Each success is a rung of the table in *The model, proven*.

# %% tags=["nbval-check-output"]
embedding = PatchEmbedding(patch_size=7, in_channels=1, d_model=64)
embedded = embed_patches_naive(embedding, images[:8])
assert embedded.shape == (8, 16, 64)
slow = partial(embed_patches_naive, embedding)
ladder.prove(
    "patch embedding", "naive loops", embedding, slow, images[:8], shared=embedding
)
print(
    "E:", tuple(embedding.proj.weight.T.shape), "embedded:", tuple(embedded.shape)
)

# %% [markdown]
# Most implementations write a convolution here, with the patch as kernel and as stride. Is that another model? Each window of
# such a convolution is one patch, and each of its $D$ kernels is one column of $\mathbf{E}$, folded into a square. So it must be the
# same map. We do not take that on trust, and test it with three channels, whose order in the column matters:

# %% tags=["nbval-check-output"]
embedding = PatchEmbedding(patch_size=7, in_channels=3, d_model=64)
conv = nn.Conv2d(3, 64, kernel_size=7, stride=7)
options = {
    "convert": lambda theirs: {
        "proj.weight": linear_from_conv(theirs["weight"]),
        "proj.bias": theirs["bias"],
    },
    "read": lambda out: rearrange(out, "b d gh gw -> b (gh gw) d"),
}
against, colour = "torch.nn.Conv2d", torch.randn(8, 3, 28, 28)
rung = ladder.prove("patch embedding", against, embedding, conv, colour, **options)
assert rung.n_gradients == 3  # the images, the matrix, the bias
print("a stride-7 convolution is the same map, outputs and gradients")

# %%
large = torch.randn(4, 3, 224, 224)
embedding = PatchEmbedding(16, 3, 192)
with torch.no_grad():
    linear = milliseconds(lambda: embedding.proj(patchify(large, 16)))
    convolution = milliseconds(lambda: embedding(large))
print(
    f"4 images of 224 px: linear {linear:.1f} ms, convolution {convolution:.1f} ms"
)


# %% [markdown]
# The finished module keeps the paper's $\mathbf{E}$ as its weight and applies it as that convolution, which need not copy the patches out of the
# image first.
#
# ## The sentence: a class token and positions
#
# Two things are still missing. Something must collect the answer, and something must say where each word stands.
#
# For the first the paper borrows BERT's {term}`class token`: a learned vector $\mathbf{x}_\text{class}$ put before the patches. For
# the second it adds to each token a learned {term}`position embedding`, a row of $\mathbf{E}_{pos}$:
#
# (eq-vit-1)=
# $$
# \mathbf{z}_0 = [\mathbf{x}_\text{class};\ \mathbf{x}^1_p \mathbf{E};\ \mathbf{x}^2_p \mathbf{E};\ \cdots;\ \mathbf{x}^N_p \mathbf{E}]
# + \mathbf{E}_{pos},
# \qquad
# \mathbf{E}_{pos} \in \mathbb{R}^{(N+1) \times D}
# \tag{1}
# $$
#
# (The numbers of equations in this chapter are the paper's; 5 to 8 stand in its Appendix A.) Mind the $N + 1$: the class token has a
# position too. We write `t` for the number of tokens: $t = N + 1 = 17$.

# %%
def embed_naive(model, batch):  # (eq-vit-1)
    sentences = []
    for patches in embed_patches_naive(model.patch_embedding, batch):
        tokens = [model.class_token, *patches]
        E_pos = model.positions.weight
        sentences.append(
            torch.stack([tokens[i] + E_pos[i] for i in range(len(tokens))])
        )
    return torch.stack(sentences)


# %% tags=["nbval-check-output"]
# 28 px, patches of 7, d = 64
toy_config = replace(experiment.VIT_MNIST, n_layers=2)
toy = ViT(toy_config)
nn.init.normal_(toy.class_token)  # it starts at zero, which would hide a mistake
slow = partial(embed_naive, toy)
ladder.prove(
    "Eq. 1: tokens", "naive loops", toy.embed, slow, images[:8], shared=toy
)
z0 = toy.embed(images[:8])
assert z0.shape == (8, 17, 64)
print("z_0:", tuple(z0.shape))

# %% [markdown]
# Are positions needed at all? Without them the model sees a bag of words: attention, norms and MLPs all treat every token alike. Predict
# what happens to the output if we shuffle the patches of a digit, once with `positions="none"`, once with learned positions.

# %% tags=["nbval-check-output"]
shuffled = unpatchify(patchify(images[:8], 7)[:, torch.randperm(16)], 7, 28, 28)
for positions in ("none", "learned"):
    torch.manual_seed(0)
    # Without a head the model returns what it knows of the image.
    model = ViT(replace(toy_config, n_classes=0, positions=positions))
    with torch.no_grad():
        same = torch.allclose(model(images[:8]), model(shuffled), atol=1e-5)
    assert same == (positions == "none")
    print(f"positions={positions!r}: shuffling the patches changes nothing: {same}")

# %% [markdown]
# Without positions nothing changes. Look at what such a model cannot tell apart: the upper and the lower row are the same to it.

# %% mystnb={"image": {"alt": "Eight handwritten digits above, and below each the same digit with its 16 patches shuffled, no longer readable."}}
figure = plot.show_images(torch.cat([images[:8], shuffled]), columns=8, side=0.8)


# %% [markdown]
# The paper measured it on ImageNet: 61.4 % without positions, 64.0 to 64.3 % with any kind of them, one-dimensional, two-dimensional
# or relative (Appendix D.4, Table 8, five-shot linear accuracy of ViT-B/16, the Base model on patches of 16 pixels). That there are positions
# matters; which kind, hardly.
#
# ## Attention
#
# How does a word look at the others? The sequence $\mathbf{z} \in \mathbb{R}^{t \times D}$ is multiplied by one learned matrix $\mathbf{U}_{qkv}$, which gives
# each token a {term}`query, a key and a value <query, key, value>`. A query asks, a key answers, and the value is what gets passed on
# (Appendix A, which writes $N$ for our $t$, and no biases; our code has them, as all implementations here do):
#
# (eq-vit-5)=
# $$
# [\mathbf{q}, \mathbf{k}, \mathbf{v}] = \mathbf{z}\, \mathbf{U}_{qkv},
# \qquad \mathbf{U}_{qkv} \in \mathbb{R}^{D \times 3 D_h}
# \tag{5}
# $$
#
# (eq-vit-6)=
# $$
# A = \operatorname{softmax}\!\left(\mathbf{q}\mathbf{k}^{\mathsf T} / \sqrt{D_h}\right),
# \qquad A \in \mathbb{R}^{t \times t}
# \tag{6}
# $$
#
# (eq-vit-7)=
# $$
# \operatorname{SA}(\mathbf{z}) = A \mathbf{v}
# \tag{7}
# $$
#
# $D_h$ is the width of a query, `e` in code. Row $i$ of $A$ says how much token $i$ takes from each token, itself included; the softmax runs
# along the row, so each row sums to one.

# %%
# (eq-vit-6) and (eq-vit-7) for one head: q, k, v are (t, e)
def attention_naive(q, k, v):
    out = []
    for q_i in q:
        scores = torch.stack([q_i @ k_j / q_i.numel() ** 0.5 for k_j in k])
        weights = scores.exp() / scores.exp().sum()
        out.append(sum(w * v_j for w, v_j in zip(weights, v, strict=True)))
    return torch.stack(out)


# %% [markdown]
# Why divide by $\sqrt{D_h}$? If the entries of $\mathbf{q}$ and $\mathbf{k}$ are independent with mean 0 and variance 1, each score is a sum of $D_h$
# products with variance 1, so its variance is $D_h$. Wide heads would have large scores, and the softmax of large scores puts all
# weight on one token. Look for that in the figure: the largest weight in a row of 17 tokens, the mean over 3,400 random rows, against the width.

# %% mystnb={"image": {"alt": "Line plot of the mean largest attention weight against head width from 4 to 1024. Unscaled it climbs from about 0.4 to nearly 1; divided by the square root of the width it stays near 0.24."}}
widths = [4, 16, 64, 256, 1024]
largest = {"unscaled": [], "divided by √e": []}
for e in widths:
    scores = torch.randn(200, 17, e) @ torch.randn(200, 17, e).mT
    largest["unscaled"].append(scores.softmax(-1).amax(-1).mean())
    largest["divided by √e"].append((scores / e**0.5).softmax(-1).amax(-1).mean())
assert max(largest["divided by √e"]) < 0.35 < 0.9 < largest["unscaled"][-1]
figure, axis = plt.subplots()
for name, values in largest.items():
    axis.plot(widths, values, "o-", label=name)
axis.set(
    xscale="log",
    xlabel="width of a head, e",
    ylabel="mean largest weight in a row",
    ylim=(0, 1.05),
)
axis.legend()
plt.show()

# %% [markdown]
# Unscaled, a wide head attends to one token only, and the gradient of such a softmax is almost zero. Divided, the width does not matter.
#
# The finished version runs on torch's fused kernel, which never writes the $t \times t$ weights to memory. It takes a batch `b` and heads `n` in
# front: queries are `b n t e`.

# %% tags=["nbval-check-output"]
q, k, v = torch.randn(3, 17, 16)
fused = lambda q, k, v: attention(q[None, None], k[None, None], v[None, None])[0, 0]
rung = ladder.prove(
    "Eq. 6, 7: attention", "naive loops", fused, attention_naive, q, k, v
)
assert rung.n_gradients == 3
A = attention_weights(q[None, None], k[None, None])[0, 0]
assert torch.allclose(A.sum(-1), torch.ones(17))
assert torch.allclose(A @ v, attention_naive(q, k, v), atol=1e-5)
print("every row of A sums to 1; A v, the fused kernel and the loops agree")

# %%
q, k, v = torch.randn(3, 197, 64)  # ViT-B/16 on 224 px has 14 · 14 + 1 = 197 tokens
head = [x[None, None] for x in (q, k, v)]
fused = milliseconds(lambda: attention(*head))
naive = milliseconds(lambda: attention_naive(q, k, v), repeats=1)
print(f"one head on one image: fused {fused:.2f} ms, naive {naive:.0f} ms")


# %% [markdown]
# ## Many heads
#
# One $A$ can express one pattern of looking. How does a token look in several ways at once?
#
# Run $k$ attentions side by side, each on vectors of width $D_h = D / k$, and mix their outputs with one more matrix, $\mathbf{U}_{msa}$. (The
# paper's $k$ counts heads here, and has nothing to do with the keys; in our code heads are `n`, and `k` is the keys.)
#
# (eq-vit-8)=
# $$
# \operatorname{MSA}(\mathbf{z}) = [\operatorname{SA}_1(\mathbf{z});\ \operatorname{SA}_2(\mathbf{z});\ \cdots;\ \operatorname{SA}_k(\mathbf{z})]\,
# \mathbf{U}_{msa},
# \quad \mathbf{U}_{msa} \in \mathbb{R}^{k D_h \times D}
# \tag{8}
# $$
#
# In `MultiHeadAttention` the matrices $\mathbf{U}_{qkv}$ of all heads are stored as one, `in_proj`: first all queries, then all keys, then all
# values, a slice of $D_h$ rows for each head. `out_proj` is $\mathbf{U}_{msa}$. The naive version cuts those slices by hand.

# %%
def msa_naive(mha, z):  # (eq-vit-8) for one sentence z of shape (t, d)
    d, e = z.shape[1], z.shape[1] // mha.n_heads
    qkv = z @ mha.in_proj.weight.T + mha.in_proj.bias  # (eq-vit-5)
    heads = []
    for i in range(mha.n_heads):
        q, k, v = (
            qkv[:, part * d + i * e : part * d + (i + 1) * e] for part in range(3)
        )
        heads.append(attention_naive(q, k, v))
    return torch.cat(heads, dim=1) @ mha.out_proj.weight.T + mha.out_proj.bias


# %% [markdown]
# Input and output have the same shape, whatever the number of heads. Do more heads cost more parameters?

# %% tags=["nbval-check-output"]
mha = MultiHeadAttention(d_model=64, n_heads=4)
z = torch.randn(2, 17, 64)
slow = lambda z: torch.stack([msa_naive(mha, sentence) for sentence in z])
ladder.prove("Eq. 8: multi-head", "naive loops", mha, slow, z, shared=mha)
assert mha(z).shape == z.shape
counts = {
    n: sum(p.numel() for p in MultiHeadAttention(64, n).parameters())
    for n in (1, 4, 16)
}
assert set(counts.values()) == {4 * 64 * 64 + 4 * 64}
print("parameters with 1, 4, 16 heads:", *counts.values())

# %% [markdown]
# No: there are four projections of $D \times D$ in each case. torch has a module of its own for this. Its weights go into ours, and outputs and gradients must agree:

# %% tags=["nbval-check-output"]
from paperwalk.checkpoints import rename


class TorchSelfAttention(nn.MultiheadAttention):
    def forward(self, z):
        return super().forward(z, z, z, need_weights=False)[0]


theirs = TorchSelfAttention(64, 4, batch_first=True)
names = partial(rename, table={r"in_proj_(\w+)": r"in_proj.\1"})
against = "torch.nn.MultiheadAttention"
rung = ladder.prove("Eq. 8: multi-head", against, mha, theirs, z, convert=names)
assert rung.n_gradients == 5  # the tokens, two matrices, two biases
print("equal to torch.nn.MultiheadAttention, outputs and gradients")

# %%
z = torch.randn(8, 197, 192)
ours, torchs = (
    MultiHeadAttention(192, 3),
    TorchSelfAttention(192, 3, batch_first=True),
)
with torch.no_grad():
    times = milliseconds(lambda: ours(z)), milliseconds(lambda: torchs(z))
print(
    f"8 sentences of 197 tokens: ours {times[0]:.0f} ms, torch's {times[1]:.0f} ms"
)

# %% [markdown]
# Look at how differently the four heads of the toy's first block see the same digit, even before any training: each square is the $A$ of one
# head, a row for each query, a column for each key.

# %% mystnb={"image": {"alt": "Four 17 by 17 heat maps of attention weights, one a head, each with another pattern of brighter and darker columns."}}
with torch.no_grad():
    maps = toy.attention_maps(images[:1])[0, 0]
figure, axes = plt.subplots(1, 4, figsize=(7.2, 2.1), sharey=True)
for i, (axis, weights) in enumerate(zip(axes, maps, strict=True)):
    image = axis.imshow(weights, vmin=0, vmax=maps.max())
    axis.set(title=f"head {i + 1}", xlabel="key", ylabel="query" if i == 0 else "")
    axis.grid(False)
bar = figure.colorbar(image, ax=axes, label="weight")


# %% [markdown]
# Nothing has been learned yet, and still no two heads look alike: each has matrices of its own.
#
# ## The block
#
# Attention moves information between tokens. What turns it into something new, and how do twelve such layers train at all?
#
# Each block has a second half, an MLP on each token by itself, and each half is wrapped twice: a {term}`layer norm` before it, a
# {term}`residual connection` around it. This order, called {term}`pre-norm`, is not that of {cite:t}`vaswani2017`, who normalise after the
# addition; {cite:t}`wang2019` found that deep stacks need it.
#
# (eq-vit-2)=
# $$
# \mathbf{z}'_\ell = \operatorname{MSA}(\operatorname{LN}(\mathbf{z}_{\ell-1})) + \mathbf{z}_{\ell-1},
# \qquad \ell = 1 \ldots L
# \tag{2}
# $$
#
# (eq-vit-3)=
# $$
# \mathbf{z}_\ell = \operatorname{MLP}(\operatorname{LN}(\mathbf{z}'_\ell)) + \mathbf{z}'_\ell,
# \qquad \ell = 1 \ldots L
# \tag{3}
# $$
#
# $L$ is the number of blocks. Mind the last term of [Eq. 3](#eq-vit-3): it is $\mathbf{z}'_\ell$, not $\mathbf{z}_{\ell-1}$.
#
# Layer norm subtracts the mean $\mu$ of a token's $D$ features and divides by their standard deviation $\sigma$; the learned
# $\boldsymbol{\gamma}$ and $\boldsymbol{\beta}$ scale and shift {cite:p}`ba2016`. A small $\epsilon$ inside the root guards against division by zero:
#
# $$
# \operatorname{LN}(\mathbf{z}) = \frac{\mathbf{z} - \mu}{\sqrt{\sigma^2 + \epsilon}} \odot \boldsymbol{\gamma} + \boldsymbol{\beta}
# $$
#
# The MLP is two linear layers with a GELU in between, $\operatorname{MLP}(\mathbf{z}) = \operatorname{GELU}(\mathbf{z} W_1 + b_1) W_2 + b_2$. Its hidden
# width is $4D$ in the paper's models, $2D = 128$ in our small ones. GELU is $x$ times the probability that a standard normal variable is below $x$
# {cite:p}`hendrycks2016`:
#
# $$
# \operatorname{GELU}(x) = x\, \Phi(x) = \frac{x}{2} \left(1 + \operatorname{erf}\!\left(x / \sqrt{2}\right)\right)
# $$

# %%
def layer_norm_naive(norm, z):
    variance, mean = torch.var_mean(z, dim=-1, correction=0, keepdim=True)
    return (z - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def gelu_naive(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def mlp_naive(mlp, z):
    hidden = gelu_naive(z @ mlp.fc1.weight.T + mlp.fc1.bias)
    return hidden @ mlp.fc2.weight.T + mlp.fc2.bias


# %%
def block_naive(block, z):
    normed = layer_norm_naive(block.norm1, z)
    attended = torch.stack([msa_naive(block.attention, s) for s in normed])
    z_prime = attended + z  # (eq-vit-2)
    normed = layer_norm_naive(block.norm2, z_prime)
    return mlp_naive(block.mlp, normed) + z_prime  # (eq-vit-3)


# %% [markdown]
# The variance here divides by $D$, not by $D - 1$: `correction=0`. `torch.var` alone would divide by $D - 1$, and no training curve would
# show it. The comparison must; so we also make that mistake on purpose and expect to be refused.

# %% tags=["nbval-check-output"]
block = TransformerBlock(64, n_heads=4, d_mlp=128, norm_eps=1e-6)
z = torch.randn(2, 17, 64)
slow = partial(block_naive, block)
ladder.prove("Eq. 2, 3: block", "naive loops", block, slow, z, shared=block)
print("the block equals the loops")


# %% tags=["nbval-check-output"]
def layer_norm_wrong(norm, z):
    variance, mean = torch.var_mean(z, dim=-1, keepdim=True)  # divides by D - 1
    return (z - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


assert refuses(block.norm1, partial(layer_norm_wrong, block.norm1), z)
print("a variance over D - 1 is refused")

# %% [markdown]
# The authors' own code uses JAX's default GELU, an approximation with a tanh; PyTorch's libraries use the exact function, and so do we.
# How much does that matter? Look at the size of the difference, on the right.

# %% mystnb={"image": {"alt": "Left, GELU and ReLU between -4 and 4: GELU is smooth and dips slightly below zero. Right, the difference between exact and tanh GELU, a wave with peaks below 0.0005."}}
x = torch.linspace(-4, 4, 400)
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.8))
left.plot(x, F.gelu(x), label="GELU")
left.plot(x, F.relu(x), "--", label="ReLU")
left.set(xlabel="x", ylabel="activation")
left.legend()
right.plot(x, F.gelu(x, approximate="tanh") - F.gelu(x), color="C2")
right.set(xlabel="x", ylabel="tanh approximation − exact")
assert torch.allclose(gelu_naive(x), F.gelu(x), atol=1e-6)
glue(gelu_gap=(F.gelu(x, approximate="tanh") - F.gelu(x)).abs().max().item())

# %% [markdown]
# At most {glue:text}`gelu_gap:.5f`: small, but far more than rounding. Weights trained with one should be run with the same one.
#
# torch's encoder layer is the same block when it is told to normalise first and to use the same $\epsilon$:

# %% tags=["nbval-check-output"]
options = {"norm_first": True, "layer_norm_eps": 1e-6, "activation": F.gelu}
theirs = nn.TransformerEncoderLayer(
    64, 4, 128, dropout=0.0, batch_first=True, **options
)
table = {
    r"self_attn\.in_proj_(\w+)": r"attention.in_proj.\1",
    r"self_attn\.out_proj\.(\w+)": r"attention.out_proj.\1",
    r"linear([12])\.(\w+)": r"mlp.fc\1.\2",
}
names = partial(rename, table=table)
against = "torch.nn.TransformerEncoderLayer"
rung = ladder.prove("Eq. 2, 3: block", against, block, theirs, z, convert=names)
assert rung.n_gradients == 13
print(
    "equal to torch.nn.TransformerEncoderLayer:",
    rung.n_gradients,
    "gradients compared",
)

# %%
with torch.no_grad():
    times = (
        milliseconds(lambda: block(z)),
        milliseconds(lambda: block_naive(block, z), repeats=2),
    )
print(f"2 sentences of 17 tokens: block {times[0]:.2f} ms, loops {times[1]:.0f} ms")


# %% [markdown]
# ## The answer
#
# After $L$ blocks there are still 17 tokens. Which of them is the answer?
#
# The first: the class token has read all others through $L$ layers of attention. One last layer norm gives the image's representation
# $\mathbf{y}$, and a linear layer, the head, turns it into the {term}`logits`, one a class. $\mathbf{z}_L^0$ is row 0 of $\mathbf{z}_L$, the class token after the
# last block:
#
# (eq-vit-4)=
# $$
# \mathbf{y} = \operatorname{LN}(\mathbf{z}_L^0)
# \tag{4}
# $$

# %%
def vit_naive(model, batch):
    z = embed_naive(model, batch)
    for block in model.blocks:
        z = block_naive(block, z)
    y = layer_norm_naive(model.norm, z[:, 0])  # (eq-vit-4)
    return y @ model.head.weight.T + model.head.bias


# %% [markdown]
# The finished model normalises all tokens and then takes the first; we have just done it the other way round. Does it matter? A layer norm
# looks at one token at a time, so it cannot. And before any training the head is all zeros, as in the official code. Which loss must the first
# prediction have?

# %% tags=["nbval-check-output"]
loss = F.cross_entropy(toy(images[:8]), labels[:8])
assert torch.isclose(loss, torch.tensor(10.0).log())
# A head of zeros would hide every mistake before it.
nn.init.normal_(toy.head.weight)
slow = partial(vit_naive, toy)
ladder.prove("Eq. 1 to 4: ViT", "naive loops", toy, slow, images[:2], shared=toy)
print(f"loss before training {loss:.4f} = ln 10; the whole model equals the loops")

# %% [markdown]
# With all logits zero every class has probability 1/10: $\ln 10$.
#
# Averaging the patches instead works similarly well in the paper: `pool="mean"` drops the class token and averages the normalised tokens, as the
# official code does. (timm averages first and normalises then.) The authors first found it much worse, until they saw that it only wants
# another learning rate (Appendix D.3, Figure 9). In numbers:

# %% tags=["nbval-check-output"]
mean = ViT(replace(toy_config, n_classes=0, pool="mean"))
y = mean.encode(images[:8])
assert y.shape == (8, 16, 64)
assert torch.allclose(mean(images[:8]), sum(y.unbind(1)) / 16, atol=1e-6)
print("tokens without a class token:", y.shape[1])

# %%
with torch.no_grad():
    ours = milliseconds(lambda: toy(images[:8]))
    naive = milliseconds(lambda: vit_naive(toy, images[:8]), repeats=1)
print(f"8 images: finished model {ours:.1f} ms, loops {naive:.0f} ms")


# %% [markdown]
# ## The model, proven
#
# `paperwalk.vit.ViT` is these pieces in this order; you can read it in one sitting. Is it the ViT that others use? Three independent
# libraries publish one. We take each of theirs at the size Ti/16 (192 wide, 12 blocks, 3 heads, patches of 16) for 224 × 224 images, and replace all weights by
# random numbers, the norms' scales around one, so that attention is not uniform, GELU is not linear, and no mistake hides behind a zero. Then
# their weights go into ours, and we compare the logits and every gradient.
#
# {source:vit}

# %%
def randomise(model):
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            scale = isinstance(module, nn.LayerNorm) and name == "weight"
            nn.init.normal_(parameter, mean=float(scale), std=0.05)
    return model.eval()


photo = torch.randn(1, 3, 224, 224)
ours = ViT(ViTConfig.tiny_16()).eval()

# %% tags=["nbval-check-output"]
import torchvision

from paperwalk.published.vit import TIMM, TORCHVISION, TRANSFORMERS, our_names

theirs = randomise(torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768))
names = partial(our_names, table=TORCHVISION)
rung = ladder.prove("ViT-Ti/16", "torchvision", ours, theirs, photo, convert=names)
assert rung.n_gradients == 153
print("torchvision:", rung.n_gradients, "gradients equal")

# %% tags=["nbval-check-output"]
import timm

theirs = randomise(timm.create_model("vit_tiny_patch16_224"))
names = partial(our_names, table=TIMM)
rung = ladder.prove("ViT-Ti/16", "timm", ours, theirs, photo, convert=names)
assert rung.n_gradients == 153
print("timm:", rung.n_gradients, "gradients equal")

# %% [markdown]
# Would this comparison notice anything? We give our model the tanh GELU, a difference of at most 0.0005 an activation:

# %% tags=["nbval-check-output"]
wrong = ViT(ViTConfig.tiny_16()).eval()
for encoder_block in wrong.blocks:
    encoder_block.mlp.activation = partial(F.gelu, approximate="tanh")
assert refuses(wrong, theirs, photo, convert=names)
print("a ViT with the tanh approximation of GELU is refused")

# %% [markdown]
# transformers' version has one departure of its own: its layer norms use $\epsilon = 10^{-12}$ where the others use $10^{-6}$. We give ours
# the same.

# %% tags=["nbval-check-output"]
import transformers

sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
config = transformers.ViTConfig(**sizes, num_labels=1000)
theirs = randomise(transformers.ViTForImageClassification(config))
ours = ViT(ViTConfig.tiny_16(norm_eps=config.layer_norm_eps)).eval()
options = {
    "convert": partial(our_names, table=TRANSFORMERS),
    "read": lambda out: out.logits,
}
rung = ladder.prove("ViT-Ti/16", "transformers", ours, theirs, photo, **options)
assert rung.n_gradients == 153
print("transformers:", rung.n_gradients, "gradients equal")

# %% [markdown]
# Here is the whole ladder. Single precision carries about seven digits; errors between $10^{-7}$ and $10^{-6}$ are rounding, from sums taken in
# another order. A zero means that both sides end in the same kernels of torch, so that only the wiring was in question. In the row of Eq. 1, 28 of
# the 33 gradients are zero on both sides: those of weights that it does not use.

# %%
ladder

# %% [markdown]
# Published weights come the same way. `ViT.from_pretrained` reads transformers' models, from a folder or from the hub, and torchvision's weight files.
# It accounts for every tensor: one that is missing or left over is an error that names it.
#
# It also takes another image size. A larger image has more patches than there are learned positions, so Section 3.2 interpolates the grid of
# positions in two dimensions. (How, the paper does not say: the official code does it linearly, we do it bicubically, as transformers does.) We
# read a folder as transformers writes it, at 224 and at 384 pixels:

# %% tags=["nbval-check-output"]
with tempfile.TemporaryDirectory() as folder:
    transformers.utils.logging.disable_progress_bar()
    theirs.save_pretrained(folder)  # config.json, model.safetensors
    loaded = ViT.from_pretrained(folder).eval()
    larger = ViT.from_pretrained(folder, image_size=384).eval()
with torch.no_grad():
    photo_384 = F.interpolate(photo, size=384)
    same = theirs(photo_384, interpolate_pos_encoding=True).logits
    assert torch.allclose(larger(photo_384), same, atol=1e-4)
    assert torch.allclose(loaded(photo), theirs(photo).logits, atol=1e-4)
for model in (loaded, larger):
    print(model.config.image_size, "px:", tuple(model.positions.weight.shape))


# %% [markdown]
# The class token's position has no place in the grid and is kept as it is.
#
# ## Counting on paper
#
# How large is a ViT-L/16, and what does an image cost? Both follow from the sizes in Table 1; no code has to run. (Ti and S are not in the paper;
# they come from {cite:t}`touvron2021` and {cite:t}`steiner2022`. The number after the slash is the patch side.)
#
# | | layers $L$ | width $D$ | MLP | heads |
# |---|---|---|---|---|
# | Ti | 12 | 192 | 768 | 3 |
# | S | 12 | 384 | 1536 | 6 |
# | Base | 12 | 768 | 3072 | 12 |
# | Large | 24 | 1024 | 4096 | 16 |
# | Huge | 32 | 1280 | 5120 | 16 |
#
# Parameters: a block has four $D \times D$ matrices in its attention and two $D \times 4D$ matrices in its MLP, $12 D^2$ in all, and $13 D$
# in biases and norms. FLOPs: each of those weights is used once for each of $t$ tokens, and a multiply-add counts as two; the
# products $\mathbf{q}\mathbf{k}^{\mathsf T}$ and $A\mathbf{v}$ add $4 t^2 D$.

# %%
def count(config):
    d, t, n_classes = config.d_model, config.n_tokens, config.n_classes
    length = config.patch_size**2 * config.in_channels  # of a flattened patch
    patches, tokens, head = length * d + d, d + t * d, d * n_classes + n_classes
    block = 12 * d**2 + 13 * d  # where d_mlp = 4 d
    parameters = patches + tokens + config.n_layers * block + 2 * d + head
    block = 2 * t * 12 * d**2 + 4 * t**2 * d
    flops = 2 * (t - 1) * length * d + config.n_layers * block + 2 * d * n_classes
    return parameters, flops


# %% [markdown]
# Now build each model, without memory for its weights (`device="meta"`), and let torch count.

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

presets = ["tiny_16", "small_16", "base_16", "base_32", "large_16", "huge_14"]
print("           parameters   GFLOPs an image")
for preset in presets:
    config = getattr(ViTConfig, preset)()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = ViT(config)
        model(torch.empty(1, 3, 224, 224))
    measured = sum(p.numel() for p in model.parameters()), counter.get_total_flops()
    assert measured == count(config)
    print(f"{preset:10} {measured[0]:11,d} {measured[1] / 1e9:8.1f}")


# %% [markdown]
# On paper and by torch's count they are equal to the last digit. Table 1 gives 86M, 307M and 632M for Base, Large and Huge. Huge fits with its head only
# (632.0M; 630.8M without), B/16 without its head only (85.8M; 86.6M with it), L/16 neither way (304.3M, 303.3M); L/32 with its head would round to
# 307M. The paper does not say what it counts.
#
# Memory, in training: the weights, their gradients and the two moments of AdamW take $4 \cdot 4$ bytes a parameter. On top, the forward pass keeps
# what the backward pass will need. For each block and token that is the input of both norms and their outputs ($4D$), the queries, keys and
# values ($3D$), the attention's output ($D$), and the MLP's hidden layer before and after GELU ($8D$): $16 D$ numbers of 4 bytes. The $t^2$
# weights are not among them, because the fused kernel does not store them.

# %%
def activation_bytes(model, images):
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(images)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert logits.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in weights)


# %%
config = ViTConfig.tiny_16()
measured = activation_bytes(ViT(config), torch.randn(2, 3, 224, 224)) / 2
paper = config.n_layers * config.n_tokens * 16 * config.d_model * 4
assert abs(measured / paper - 1) < 0.05
glue(activations_measured=measured / 1e6, activations_paper=paper / 1e6)

# %% [markdown]
# For Ti/16 we expect {glue:text}`activations_paper:.1f` MB an image and measure {glue:text}`activations_measured:.1f` MB; the rest is the image itself, the input and
# output of the last norm, and a few numbers a token: the norms' means and deviations and the softmax's sums.
#
# ## Training
#
# Does it learn? The model for MNIST has 4 blocks of width 64, with 4 heads and an MLP of 128, and is about 4,500 times smaller than ViT-H. We use AdamW
# {cite:p}`loshchilov2019`, a warm-up over 15 % of the steps and a cosine decay of the learning rate, gradients clipped at norm 1, batches of 128, and
# neither augmentation nor dropout.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
config = experiment.VIT_MNIST
model = ViT(config)
n_parameters = sum(p.numel() for p in model.parameters())
assert n_parameters == 139_018
print(
    f"{config.n_layers} blocks, {config.d_model} wide, {n_parameters:,} parameters"
)

# %%
steps, batches = experiment.STEPS, experiment.batches(len(images), seed=0)
adamw, schedule = experiment.optimiser(model)

losses = []
for _ in progress(range(steps), "training"):
    batch = next(batches)
    loss = F.cross_entropy(model(images[batch]), labels[batch])
    adamw.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adamw.step()
    schedule.step()
    losses.append(loss.item())

# %%
accuracy = experiment.accuracy(model, *splits["test"])
assert accuracy >= 0.97
half_width = 1.96 * (accuracy * (1 - accuracy) / 10_000) ** 0.5
glue(
    accuracy=100 * accuracy,
    half_width=100 * half_width,
    passes=steps * 128 / 60_000,
)
smooth = torch.tensor(losses).unfold(0, 100, 1).mean(-1)
assert smooth[936] < 0.8 * smooth[836]  # across the start of the third pass
glue(last_loss=smooth[-1].item())

# %% [markdown]
# After {glue:text}`passes:.1f` passes over the 60,000 training images the model gets {glue:text}`accuracy:.2f` % of the 10,000 test images right,
# give or take {glue:text}`half_width:.2f` (95 % interval of the binomial).
#
# In the curve, look at what happens where a new pass over the data begins.

# %% mystnb={"image": {"alt": "Training loss against step on a logarithmic scale. It starts at 2.3, falls steadily, and takes a visible step down where the third pass over the data begins."}}
smooth = torch.tensor(losses).unfold(0, 20, 1).mean(-1)
figure, axis = plt.subplots()
axis.plot(losses, alpha=0.25, label="each batch")
axis.plot(range(19, len(losses)), smooth, label="mean of 20 batches")
axis.axhline(
    torch.tensor(10.0).log(), color="grey", ls=":", label="ln 10, all classes alike"
)
for start in (468, 936):  # 60,000 // 128 = 468 steps a pass
    axis.axvline(start, color="grey", lw=0.8)
axis.set(xlabel="step", ylabel="training loss, nats", yscale="log")
axis.legend()
plt.show()

# %% [markdown]
# The loss starts at $\ln 10 = 2.30$ and ends at {glue:text}`last_loss:.2f`. From the second pass on (first vertical line) the model has seen almost every
# image before (a pass leaves out the 96 that do not fill a batch), and training loss no longer measures what it does on new ones; at the third pass (second line) the drop becomes visible. That is why
# there are test images.
#
# ## What it has learned
#
# Three looks inside, all from Section 4.5 and Appendix D of the paper, on our small model.
#
# **Positions.** Nobody told the model that the patches form a grid. Does it know? The figure shows, for each of the 16 positions, the cosine
# similarity of its embedding with all others, as the paper's Figure 7 (centre) does. There, for a grid of 7 × 7, neighbours are alike and
# rows and columns can be seen. Look for which places are alike here.

# %% mystnb={"image": {"alt": "Sixteen small 4 by 4 heat maps arranged in a 4 by 4 grid. In the maps of the four corners the other corners are bright too, and so is the second place of the left edge; elsewhere little but the position itself stands out."}}
E_pos = F.normalize(model.positions.weight.detach()[1:], dim=-1)
similarity = E_pos @ E_pos.T
figure, axes = plt.subplots(4, 4, figsize=(4.2, 4.0))
for axis, row in zip(axes.flat, similarity, strict=True):
    image = axis.imshow(row.view(4, 4), vmin=-1, vmax=1)
    axis.axis("off")
bar = figure.colorbar(image, ax=axes, label="cosine similarity")

# %%
rows, columns = torch.arange(16) // 4, torch.arange(16) % 4
steps_apart = (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs()
corner = torch.isin(torch.arange(16), torch.tensor([0, 3, 12, 15]))
corners = (
    similarity[corner][:, corner][~torch.eye(4, dtype=torch.bool)].mean().item()
)
neighbours = similarity[steps_apart == 1].mean().item()
assert corners > neighbours + 0.2
glue(corners=corners, neighbours=neighbours)

# %% [markdown]
# Not neighbours but corners: their similarity is {glue:text}`corners:.2f` on average, that of direct neighbours {glue:text}`neighbours:.2f`. A likely reason:
# the corners of an MNIST image are empty, so little is lost by confusing them, while each inked place gets a vector of its own. (The second place
# of the left edge, nearly as empty, is like the corners too.) The paper's rows and
# columns do not appear on sixteen places.
#
# **Distance.** How far does a head look? Take the distance in pixels between query and key patch, weighted by the attention, and average over
# queries and images (Appendix D.7; the paper's Figure 7, right). The paper does not say what becomes of the class token; we leave it out
# and let the rows sum to one again.

# %%
test_images = splits["test"][0][:256]
A = model.attention_maps(test_images)[..., 1:, 1:]  # layers b n t s, patches only
A = A / A.sum(-1, keepdim=True)
centres = 7 * torch.stack([rows, columns], dim=-1).float()
pixels = torch.cdist(centres, centres)
reach = reduce(A * pixels, "layers b n t s -> layers n", "sum") / (256 * 16)
uniform = pixels.mean().item()
assert reach.shape == (4, 4)
assert reach.min() > 0.7 * uniform
glue(nearest=reach.min().item(), farthest=reach.max().item(), uniform=uniform)

# %% mystnb={"image": {"alt": "Mean attention distance in pixels of the four heads of each of the four layers, as dots, with a dotted line for a head that attends everywhere alike."}}
figure, axis = plt.subplots()
for head in range(4):
    axis.plot(range(1, 5), reach[:, head], "o", color="C0")
axis.axhline(uniform, color="grey", ls=":", label="attends everywhere alike")
axis.set(xlabel="layer", ylabel="mean attention distance, pixels")
axis.set(xticks=range(1, 5), ylim=(0, 16))
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# A head that attends to everything alike would reach {glue:text}`uniform:.1f` pixels; the heads here lie between {glue:text}`nearest:.1f` and
# {glue:text}`farthest:.1f`. In the paper, with 16 heads a layer, some heads of the first layers are local, others global, and the distance grows with depth. Ours are
# all global: one patch is a quarter of the image's side, and there is little left to be local about.
#
# **Query by query.** The averages hide what one patch looks at. Move the slider: the outlined patch asks, and each map shows where it looks, as the mean of
# the layer's heads. Does the map follow the patch?

# %% mystnb={"image": {"alt": "A test digit with one patch outlined, and beside it the attention of that patch to all 16 patches in each of the four layers."}}
digit, weights = test_images[3, 0], A[:, 3].mean(1)  # layers t s
titles = ["the digit", *(f"layer {layer}" for layer in range(1, 5))]
frames, square = [], (0, 28, 28, 0)
for query in range(16):
    figure, axes = plt.subplots(1, 5, figsize=(7.2, 1.8))
    axes[0].imshow(digit, extent=square, cmap="gray")
    for axis, looked_at in zip(axes[1:], weights[:, query], strict=True):
        picture = looked_at.view(4, 4)
        axis.imshow(picture, extent=square, vmin=0, vmax=weights.max())
    for axis, title in zip(axes, titles, strict=True):
        place = 7 * (query % 4), 7 * (query // 4)
        axis.add_patch(plt.Rectangle(place, 7, 7, fill=False, ec="C1", lw=2))
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    frames.append(figure)
labels = [f"row {q // 4 + 1}, column {q % 4 + 1}" for q in range(16)]
alt = "A test digit with one patch outlined, and where it looks in each layer."
plot.slider(frames, labels, alt=alt, name="query patch")


# %% [markdown]
# How much do the maps of a layer differ? Count the attention that a patch gives elsewhere than the mean map of all queries does, once for all patches and once among those without
# ink.

# %%
def elsewhere(maps):  # layers t s
    return (maps - maps.mean(1, keepdim=True)).abs().sum(-1).mean().item() / 2


brightest = reduce(digit, "(gh p1) (gw p2) -> (gh gw)", "max", p1=7, p2=7)
empty = brightest == digit.min()
favourites = weights[2].argmax(-1).bincount()
assert torch.allclose(weights.sum(-1), torch.ones(4, 16), atol=1e-5)
assert elsewhere(weights[:, empty]) < elsewhere(weights)
glue(all_differ=100 * elsewhere(weights))
glue(empty_differ=100 * elsewhere(weights[:, empty]))
glue(n_empty=empty.sum().item(), favourite=favourites.max().item())


# %% [markdown]
# In part: {glue:text}`all_differ:.0f` % of a patch's attention lies elsewhere than the mean map. In the third layer {glue:text}`favourite` of the 16 patches look most at one and the same place. The
# {glue:text}`n_empty` patches without ink differ least, by {glue:text}`empty_differ:.0f` %: wherever they are, they look at the same ink. It is the patches full of ink whose maps are their own.
#
# **Rollout.** Which patches did the answer come from? {term}`Attention rollout` {cite:p}`abnar2020` averages the heads of each layer, mixes in the identity for
# the residual connection, and multiplies the layers up, later layers on the left:
#
# $$
# \tilde{A}_\ell = \left(\tfrac12 \bar{A}_\ell + \tfrac12 I\right) \tilde{A}_{\ell-1},
# \qquad \tilde{A}_0 = I
# $$
#
# $\bar{A}_\ell$ is layer $\ell$'s attention averaged over its heads. The row of the class token in $\tilde{A}_L$, without its own column, is a map over
# the patches. (Appendix D.8 mentions the averaging and the product; the identity is Abnar and Zuidema's.)

# %%
def rollout(maps):
    rolled = torch.eye(maps.shape[-1])
    for A in reduce(maps, "layers b n t s -> layers b t s", "mean"):
        rolled = (0.5 * A + 0.5 * torch.eye(A.shape[-1])) @ rolled
    return rolled


maps = model.attention_maps(test_images)
first, second = (0.5 * A + 0.5 * torch.eye(17) for A in maps[:2].mean(2))
assert torch.allclose(rollout(maps[:2]), second @ first, atol=1e-6)
assert not torch.allclose(rollout(maps[:2].flip(0)), second @ first, atol=1e-4)
rolled = rollout(maps)
assert torch.allclose(rolled.sum(-1), torch.ones(256, 17), atol=1e-5)

# %% [markdown]
# Every row sums to one. It would in the wrong order too, which is why the order is checked apart. Look for whether the bright patches are
# those with ink.

# %% mystnb={"image": {"alt": "Eight test digits above; below, the same digits with a coarse 4 by 4 heat map over them, brighter where the rollout of the class token is larger."}}
heat = rearrange(rolled[:8, 0, 1:], "b (gh gw) -> b 1 gh gw", gh=4)
heat = F.interpolate(heat, size=28, mode="nearest")
figure, axes = plt.subplots(2, 8, figsize=(7.2, 2.0))
for axis in axes.flat:
    axis.axis("off")
for i in range(8):
    axes[0, i].imshow(test_images[i, 0], cmap="gray")
    axes[1, i].imshow(test_images[i, 0], cmap="gray")
    axes[1, i].imshow(heat[i, 0], alpha=0.6)

# %%
ink = reduce(test_images, "b 1 (gh p1) (gw p2) -> b (gh gw)", "mean", p1=7, p2=7)
inky = ink > ink.mean()
shares = rolled[:, 0, 1:] / rolled[:, 0, 1:].sum(-1, keepdim=True)
on_ink, share_of_ink = shares[inky].sum().item() / 256, inky.float().mean().item()
assert on_ink > 1.2 * share_of_ink
glue(on_ink=100 * on_ink, share_of_ink=100 * share_of_ink)

# %% [markdown]
# Patches with more ink than average are {glue:text}`share_of_ink:.0f` % of all, and get {glue:text}`on_ink:.0f` % of the rollout: more than chance, far from
# all. A rollout is a heuristic: it follows the attention weights only, and knows nothing of values, MLPs and norms.
#
# ## Photographs
#
# Digits are easy. What does the same module make of the 60,000 small photographs of CIFAR-10 {cite:p}`krizhevsky2009`? Six blocks of width 192 on patches of
# 4 × 4 pixels, each image moved by up to four pixels and mirrored every other time, by one command:
#
# `paperwalk train vit --recipe cifar10-cpu`
#
# The book comes with the result. We measure it on every tenth test image; its card says what it reaches on all of them. Guess which two classes it takes for each other most often.

# %% tags=["nbval-check-output"]
folder = checkpoint("vit-cifar10")
photographer = ViT.from_pretrained(folder)
card = json.loads((folder / "card.json").read_text())
said = card["metrics"]["accuracy"]
assert said["value"] >= 0.7
assert said["n"] == 10_000
n_parameters = sum(p.numel() for p in photographer.parameters())
print(f"{n_parameters:,} parameters, grid {photographer.config.grid}")

# %%
photographs = data.load("cifar10")
pixels, truth = (each[::10] for each in photographs.test[:2])
with torch.no_grad():
    logits = [photographer(part / 127.5 - 1) for part in pixels.split(250)]
guesses = torch.cat(logits).argmax(dim=1)
here = (guesses == truth).float().mean().item()
low, high = said["interval"]
assert abs(here - said["value"]) < 0.05
glue(photo_here=100 * here, photo_said=100 * said["value"])
glue(photo_low=100 * low, photo_high=100 * high)
glue(photo_minutes=card["cpu_seconds"] / 60)

# %% [markdown]
# {glue:text}`photo_here:.1f` % on the thousand of this page; on all 10,000 {glue:text}`photo_said:.1f` % ({glue:text}`photo_low:.1f` to {glue:text}`photo_high:.1f`), after {glue:text}`photo_minutes:.0f` minutes of one core. The paper's ViT-H/14,
# pre-trained on 300 million images and then fine-tuned, reaches 99.5 % (Table 2); ours has seen nothing but these 50,000.
#
# Look for the brightest cells off the diagonal.

# %% mystnb={"image": {"alt": "Matrix of the ten classes of CIFAR-10: the rows are what an image shows, the columns what the model says, in percent of the row. The diagonal is brightest; cat and dog are taken for each other most often."}}
confusion = torch.zeros(10, 10)
confusion.index_put_((truth, guesses), torch.tensor(1.0), accumulate=True)
confusion = 100 * confusion / confusion.sum(dim=1, keepdim=True)
figure, axis = plt.subplots(figsize=(4.8, 4))
figure.colorbar(axis.imshow(confusion), label="% of the row")
axis.set(xlabel="the model says", ylabel="the image shows")
axis.set_xticks(range(10), photographs.classes, rotation=60, ha="right")
axis.set_yticks(range(10), photographs.classes)
axis.grid(False)
off_diagonal = confusion.clone().fill_diagonal_(0)
pairs = off_diagonal + off_diagonal.T
a, b = divmod(int(pairs.argmax()), 10)
assert {photographs.classes[a], photographs.classes[b]} == {"cat", "dog"}
glue(confused=pairs[a, b].item() / 2)
plt.show()

# %% [markdown]
# Cats and dogs: in {glue:text}`confused:.0f` % of the images of either it says the other. Is that good for so few images? Next we ask what a convolutional network makes of few.
#
# ## Does it need more data than a convolutional network?
#
# A convolution looks at neighbours, and at every place with the same weights. A ViT, too, uses the same weights at every place, but only its patches
# and MLPs are local (Section 3.1). Attention is global, and positions start out knowing nothing of the grid: what is near must come from the data. The paper says (Section 4.3, Figures 3 and 4) that ViTs overfit more than
# residual networks of comparable cost on small sets, and overtake them on large ones: pre-trained on random subsets of JFT-300M and judged by
# few-shot linear accuracy on ImageNet, ViT-B/32 is much worse than a ResNet50 with 9 million images, and better with 90 million and more.
#
# Scaled down to MNIST: our ViT against a convolutional network of about the same FLOPs an image, three times convolution, batch norm, ReLU and max
# pooling, then an average and a linear head. Both train on random subsets of 100 to 60,000 images for the same 1,300 steps by the same recipe (with batches of
# 100 where there are only 100 images); a seed draws the subset, the weights and the batches. The cost is matched, the number of weights is not. Is "about the same" true?

# %% tags=["nbval-check-output"]
contenders = {"ViT": ViT(config), "convolutions": experiment.conv_net()}
cost = {}
for name, net in contenders.items():
    with FlopCounterMode(display=False) as counter:
        net.eval()(images[:1])
    cost[name] = counter.get_total_flops()
    weights = sum(p.numel() for p in net.parameters())
    print(f"{name:12} {cost[name] / 1e6:.2f} MFLOPs, {weights:,} parameters")
assert 0.9 < cost["convolutions"] / cost["ViT"] < 1.0

# %% [markdown]
# Thirty-six runs take half an hour, too long for a page. `python -m paperwalk.experiments.vit` makes them; the page reads its numbers, and checks
# one of them: the run above was the same recipe on all 60,000 images, so it must come within a point of the mean of three seeds.

# %%
stored = json.loads(experiment.RESULTS.read_text())
assert stored["recipe"] == experiment.recipe()
runs = {
    name: torch.tensor(
        [
            [stored[f"{name} {n} {seed}"] for seed in experiment.SEEDS]
            for n in experiment.SIZES
        ]
    )
    for name in ("vit", "conv")
}
assert runs["vit"].shape == (6, 3)
assert abs(accuracy - runs["vit"][-1].mean()) < 0.01
errors = {name: 100 * (1 - values) for name, values in runs.items()}
gap = (errors["vit"] - errors["conv"]).mean(1)
ratio = errors["vit"].mean(1) / errors["conv"].mean(1)
assert (gap > 0).all()
assert ratio[2] > ratio[3] > ratio[4] > ratio[5]  # from 1,000 images on
glue(gap_100=gap[0].item(), gap_300=gap[1].item(), gap_60000=gap[-1].item())
glue(
    ratio_100=ratio[0].item(),
    ratio_1000=ratio[2].item(),
    ratio_60000=ratio[-1].item(),
)

# %% [markdown]
# Look at the distance between the curves. On a logarithmic axis an equal distance is an equal *ratio* of errors.

# %% mystnb={"image": {"alt": "Test error in percent against training-set size from 100 to 60,000 images, both axes logarithmic. Both curves fall; the convolutional network is below the ViT everywhere, the distance is widest around 1,000 images and narrows towards 60,000."}}
figure, axis = plt.subplots()
labels = {"vit": "ViT", "conv": "convolutions of about the same cost"}
for name, label in labels.items():
    mean, spread = errors[name].mean(1), errors[name].std(1)
    axis.errorbar(
        experiment.SIZES, mean, spread, marker="o", capsize=3, label=label
    )
axis.set(xscale="log", yscale="log", xlabel="training images")
axis.set(ylabel="MNIST test error, % (± sd of 3 seeds)")
axis.legend()
plt.show()

# %% [markdown]
# | | with little data | with much data |
# |---|---|---|
# | paper (Section 4.3) | ViT-B/32 much worse than ResNet50 on 9 million images | better on 90 million and more |
# | ours, ViT minus convolutions | {glue:text}`gap_100:.1f` points more errors on 100 images, {glue:text}`gap_300:.1f` on 300 | {glue:text}`gap_60000:.1f` points on 60,000 |
# | ours, as a ratio of errors | {glue:text}`ratio_100:.1f` on 100, {glue:text}`ratio_1000:.1f` on 1,000 | {glue:text}`ratio_60000:.1f` on 60,000 |
#
# The half of the claim that fits on two cores holds: with little data the convolutional network wins by far. In points the gap then closes, but points
# flatter the end of the curve, where both are near 100 % right. In errors the ViT falls further behind up to 1,000 images and catches up slowly from
# there; at 60,000 it still makes {glue:text}`ratio_60000:.1f` times as many.
#
# The other half, that it overtakes, does not show. Our largest set is 1,500 times smaller than the 90 million at which the paper's ViT-B/32 is ahead, MNIST
# leaves a convolutional network little to improve, and batch norm and pooling help it as well. Neither model was augmented, stopped early or tuned for
# each size.
#
# ## Where this differs from the paper
#
# | | paper or official code | here | why |
# |---|---|---|---|
# | procedure | pre-training, then fine-tuning (SGD, a new zero head, often at higher resolution) | one training run | two cores |
# | data | ImageNet, ImageNet-21k, JFT-300M | MNIST; CIFAR-10 | two cores |
# | CIFAR-10 | pre-trained on one of these, then fine-tuned | from scratch, 32 pixels in patches of 4; AdamW, β₂ = 0.999, decay 0.05, peak 1e-3, 10 % warm-up, cosine decay; shifts, mirror, label smoothing 0.1 | two cores |
# | patches | 14 × 14 to 32 × 32 pixels of 224 | 7 × 7 of 28 | sixteen words are enough for a digit |
# | MLP of the trained model | $4D$ | $2D$ | a third fewer FLOPs; enough for 97 % |
# | biases | none in Eq. 1, 5 and 8; the official code has them in all of these | in all of these | as the code |
# | GELU | official code: tanh approximation | exact | as torchvision, timm and transformers |
# | norm's $\epsilon$ | not stated; official code $10^{-6}$ | $10^{-6}$ | as the code |
# | initialisation | official code: Xavier, MLP biases of std $10^{-6}$, positions 0.02, class token and head zero; patches LeCun normal, truncated | the same, but the normal is not truncated | one line less |
# | head in pre-training | an MLP with one tanh layer | linear; `d_pre_logits` gives the MLP | as in the paper's fine-tuning |
# | resizing positions | "2D interpolation"; official code linear, corners aligned | bicubic, corners not aligned | as transformers |
# | dropout | 0.1 or none, by data set | none | one recipe for every size of training set |
# | optimiser | Adam, β₂ = 0.999, batch 4096, weight decay 0.03 to 0.3, peak rate 3e-4 to 3e-3 | AdamW, β₂ = 0.99, batch 128, decay 0.05, peak 4e-3 | a short run of a small model |
# | schedule | 10,000 steps of linear warm-up, then linear or cosine decay | cosine warm-up over 195 of 1,300 steps, cosine decay | a short run |
# | data experiment | few-shot linear accuracy on ImageNet, early stopping, against ResNets | MNIST test error, fixed steps, against three convolutions | scaled down |
#
# ## Exercises
#
# :::{exercise} The price of resolution
# :label: ex-vit-resolution
#
# ViT-B/16 is fine-tuned at 384 instead of 224 pixels. By which factor does an image cost more? Which share of that is attention's $4 t^2 D$,
# before and after? Estimate first.
# :::
#
# :::{solution-start} ex-vit-resolution
# :class: dropdown
# :::

# %% tags=["nbval-check-output"]
small, large = ViTConfig.base_16(), ViTConfig.base_16(image_size=384)
for c in (small, large):
    share = c.n_layers * 4 * c.n_tokens**2 * c.d_model / c.forward_flops()
    print(f"{c.image_size} px: {c.n_tokens} tokens, {share:.1%} in q·k and A·v")
factor = large.forward_flops() / small.forward_flops()
longer = large.n_tokens / small.n_tokens
assert longer < factor < longer**2
print(f"{factor:.2f} times the FLOPs")

# %% [markdown]
# Per block the share is $4 t^2 D / (24 t D^2 + 4 t^2 D) = t / (6 D + t)$. Between linear and quadratic in the number of tokens, and at these
# sizes much closer to linear: the weight matrices dominate.
#
# :::{solution-end}
# :::
#
# :::{exercise} What mean pooling saves
# :label: ex-vit-mean
#
# How many fewer parameters has a ViT of width $D$ with `pool="mean"`? Say which, then check for Ti/16.
# :::
#
# :::{solution-start} ex-vit-mean
# :class: dropdown
# :::

# %% tags=["nbval-check-output"]
size = lambda **changes: sum(
    p.numel() for p in ViT(ViTConfig.tiny_16(**changes)).parameters()
)
saved = size() - size(pool="mean")
assert saved == 2 * 192
print(saved, "parameters: the class token and its position")

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Shuffling, precisely
# :label: ex-vit-shuffle
#
# Attention without positions is *equivariant* to permutations: shuffled tokens in, equally shuffled tokens out. Write that as an equation
# with a permutation matrix $\Pi$, prove it from [Eq. 6](#eq-vit-6) and [Eq. 7](#eq-vit-7), and check it on a block. Why is the class token's
# output then *invariant* to shuffling the patches?
# :::
#
# :::{solution-start} ex-vit-shuffle
# :class: dropdown
# :::
#
# $$
# \operatorname{SA}(\Pi \mathbf{z}) = \Pi \operatorname{SA}(\mathbf{z})
# $$
#
# $\Pi\mathbf{z}$ has queries $\Pi\mathbf{q}$, keys $\Pi\mathbf{k}$ and values $\Pi\mathbf{v}$. The softmax treats each row alone, so permuting rows before or
# after it is the same; and permuting the entries of a row permutes its softmax. Hence
# $\operatorname{softmax}(\Pi \mathbf{q}\mathbf{k}^{\mathsf T} \Pi^{\mathsf T} / \sqrt{D_h}) = \Pi A \Pi^{\mathsf T}$, and $\Pi A \Pi^{\mathsf T} \Pi \mathbf{v} = \Pi A \mathbf{v}$ because
# $\Pi^{\mathsf T} \Pi = I$. Heads are joined along the features, and $\mathbf{U}_{msa}$, norms, MLPs and residuals work on one token at a time, so a whole block
# inherits it. A permutation that keeps the first token in its place keeps that token's output too.

# %% tags=["nbval-check-output"]
order = torch.cat([torch.tensor([0]), 1 + torch.randperm(16)])
z = torch.randn(2, 17, 64)
with torch.no_grad():
    assert torch.allclose(block(z[:, order]), block(z)[:, order], atol=1e-5)
print("block(Π z) = Π block(z)")


# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Spot the bug: positions that are none
# :label: ex-vit-bug-positions
#
# [Issue 1178](https://github.com/pytorch/examples/issues/1178) of pytorch/examples is about a ViT whose position embedding has the shape `(batch_size, 1, d)`,
# as below. It runs, and it trains. What does it compute, and which check of this chapter would have found it?
# :::

# %%
def embed_with_bug(patches, positions):
    # patches: (b, t, d); positions: a parameter of shape (b, 1, d)
    return patches + positions


# %% [markdown]
# :::{solution-start} ex-vit-bug-positions
# :class: dropdown
# :::
#
# It adds one vector to *all* tokens of an image, and another to those of the next image in the batch. No token learns where it stands, so
# the model cannot tell a shuffled image from the original; and the output depends on an image's place in the batch. Shuffling finds the
# first. The second shows as soon as a batch has another size: one image alone comes back as four.

# %% tags=["nbval-check-output"]
patches, order = torch.randn(4, 16, 64), torch.randperm(16)
wrong, right = torch.randn(4, 1, 64), torch.randn(16, 64)
blind = torch.equal(
    embed_with_bug(patches[:, order], wrong),
    embed_with_bug(patches, wrong)[:, order],
)
sees = not torch.equal(patches[:, order] + right, (patches + right)[:, order])
assert blind
assert sees
assert len(embed_with_bug(patches[:1], wrong)) == 4
print(
    "with the bug a shuffled image is the same bag of tokens; without it, it is not"
)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Spot the bug: a class token without a place
# :label: ex-vit-bug-class
#
# [Pull request 221](https://github.com/labmlai/annotated_deep_learning_paper_implementations/pull/221) of a well-known collection of annotated papers repairs a ViT in which
# positions were added to the patches first and the class token was put before them afterwards. Did that model lose anything? Would training
# show it? What would?
# :::
#
# :::{solution-start} ex-vit-bug-class
# :class: dropdown
# :::
#
# It can express the same functions: $\mathbf{x}_\text{class}$ is learned, and so was the row of $\mathbf{E}_{pos}$ that is now missing; their sum can be one
# vector. So no training curve shows it. But it is not the model of [Eq. 1](#eq-vit-1): published weights have the row, and loaded without it
# every image starts from the wrong class token. Comparing with an independent implementation shows it at once.

# %% tags=["nbval-check-output"]
correct = toy.embed(images[:8])
wrong = toy.patch_embedding(images[:8]) + toy.positions.weight[1:]
wrong = torch.cat([toy.class_token.expand(8, 1, -1), wrong], dim=1)
assert torch.equal(correct[:, 1:], wrong[:, 1:])
missing = toy.positions.weight[0].expand(8, -1)
assert torch.allclose((correct - wrong)[:, 0], missing, atol=1e-6)
print("every class token is off by the missing row of E_pos, all patches are right")

# %% [markdown]
# :::{solution-end}
# :::
#
# ## Recap
#
# - An image becomes a sentence: patches, one matrix, a class token, learned positions ([Eq. 1](#eq-vit-1)).
# - A block is attention and an MLP, each with a norm before and a residual around it ([Eq. 2](#eq-vit-2), [Eq. 3](#eq-vit-3)).
# - The normalised class token is the image ([Eq. 4](#eq-vit-4)).
# - Without positions the model is blind to order; without $\sqrt{D_h}$ wide heads saturate; neither shows in a loss curve as an error.
# - Cost follows from the sizes: with an MLP of $4D$, $12 D^2$ weights a block, and $16 D$ numbers a token and block kept for the backward pass.
# - On MNIST a convolutional network of about the same cost wins at every size of training set, in ratio by most at 1,000 images.
#
# Further reading: {cite:t}`steiner2022` on how much augmentation and regularisation replace data; {cite:t}`touvron2021` for training on ImageNet alone;
# {cite:t}`xiong2020` on why pre-norm trains without warm-up; the official code, google-research/vision_transformer, of which `models_vit.py` is the
# part to read.
