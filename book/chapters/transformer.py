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
# # Attention Is All You Need
#
# Before 2017 most translation models were recurrent networks: they read a sentence from left to right, each step waiting for the
# one before; others were convolutional. {cite:t}`vaswani2017` threw the recurrence away. Their claim: {term}`attention <query, key, value>` alone, "dispensing with recurrence and
# convolutions entirely", translates better and trains in a fraction of the time. Their big model reaches 28.4 BLEU on English to German
# (Table 2), over 2 points above everything before it, after 3.5 days on eight GPUs. (BLEU, 0 to 100, counts how many short word sequences
# of the output occur in a human translation.)
#
# We build that model, the {term}`Transformer <encoder–decoder>`, from its equations, prove each block against torch.nn and the whole against torch.nn.Transformer and
# transformers, and count the parameters of its Table 3. Then we train a small one to pronounce English: letters in, phonemes out. Here we see
# its curve begin; a larger one, trained for longer by one command, we load and measure. We look at the {term}`alignment` between letters and sounds that it invents, and test two rows of Table 3.
#
# :::{admonition} Before you start
# Read the [einops primer](einops.md). [An Image is Worth 16x16 Words](vit.md) uses the encoder half of this model, but you do not need it.
# After this chapter you can write an encoder–decoder from memory, mask it without leaks, explain each of its square roots, train it on any pairs of
# texts, and search its output with a beam.
#
# This page took {run-time} to run on one thread.
# :::

# %% tags=["hide-input"]
import itertools
import json
import math
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import nn

from paperwalk import plot
from paperwalk.checkpoints import rename
from paperwalk.data.pairs import PairTokenizer, cmudict_pairs, pad_batch
from paperwalk.experiments import transformer as experiment
from paperwalk.metrics import edit_distance, phoneme_error_rate, word_error_rate
from paperwalk.nn import DecoderBlock, MultiHeadAttention, TransformerBlock
from paperwalk.nn.attention import attention, causal_mask
from paperwalk.nn.positions import sinusoidal_1d
from paperwalk.nn.search import beam_search, greedy_search, length_penalty
from paperwalk.notebook import checkpoint, glue, milliseconds, progress
from paperwalk.published import transformer as published
from paperwalk.testing import Ladder
from paperwalk.transformer import (
    Transformer,
    TransformerConfig,
    label_smoothing_loss,
    learning_rate,
    padding_mask,
)

# %% tags=["hide-input"]
plot.use_style()
torch.manual_seed(0)
ladder = Ladder()

# %% [markdown]
# ## From letters to sounds
#
# The paper translates. What task has the same form, one sequence in, another of another length out, and fits on one thread?
#
# Pronunciation. The CMU Pronouncing Dictionary has 126,052 English words and how they sound, in 39 phonemes, with the stress (0, 1 or 2) written
# behind each vowel. Some words have several pronunciations: "read" in the present and in the past. All of them are right.

# %% tags=["nbval-check-output"]
splits = cmudict_pairs()
tokenizer = PairTokenizer.of(splits, "characters", "words")
everything = {pair.source: pair.targets for split in splits for pair in split}
assert len(everything) == sum(map(len, splits)) == 126_052
print(*(f"{word}: {everything[word]}" for word in ("read", "attention")), sep="\n")
print(*(f"{name} {len(split):,}" for name, split in splits._asdict().items()))
print(len(tokenizer), "tokens, letters and phonemes together")


# %% [markdown]
# No word is in two of these splits: the SHA-256 of its spelling decides where it goes. And all pronunciations of a word go there with it; otherwise the
# model would be tested on words that it has learned. Their relatives may be in the training set, "lightnings" for "lightning": many test words have one.
#
# How good is a guess? Count the fewest insertions, deletions and substitutions that make the right answer of it, its {term}`edit distance` $d$, and divide by
# the length of the right answer, summed over all words. This is the {term}`phoneme error rate`:
#
# $$
# \operatorname{PER} = \frac{\sum_w d(\hat{\mathbf{y}}_w, \mathbf{y}_w)}{\sum_w |\mathbf{y}_w|}
# $$
#
# $\hat{\mathbf{y}}_w$ is the guess for word $w$, $\mathbf{y}_w$ the right answer that is nearest to it, relative to its length. The PER can exceed 1. The word error rate counts guesses that are not exactly right.

# %%
def distance_naive(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        distance_naive(a[1:], b) + 1,
        distance_naive(a, b[1:]) + 1,
        distance_naive(a[1:], b[1:]) + (a[0] != b[0]),
    )


# %% [markdown]
# "T AH0 M EY1 T OW2" and "T AH0 M AA1 T OW2" differ in one of six phonemes. If the first is the guess and only the second were right, the PER would be
# one sixth. Since both are right, it is zero.

# %% tags=["nbval-check-output"]
guess, other = (phones.split() for phones in everything["tomato"])
assert distance_naive(guess, other) == edit_distance(guess, other) == 1
assert phoneme_error_rate([guess], [[other]]) == 1 / 6
assert phoneme_error_rate([guess], [[guess, other]]) == 0
assert word_error_rate([guess, other[1:]], [[guess, other]] * 2) == 1 / 2
print("distance", edit_distance(guess, other), "of", len(other), "phonemes")

# %%
slow = milliseconds(lambda: distance_naive(guess, other))
fast = milliseconds(lambda: edit_distance(guess, other))
print(f"one word: recursion {slow:.2f} ms, table {fast:.3f} ms")

# %% [markdown]
# Is a letter a phoneme? Look at how far the words lie from the diagonal.

# %% mystnb={"image": {"alt": "Heat map of words by number of letters, 2 to 16, and number of phonemes, 1 to 16. Most words lie below the diagonal: fewer phonemes than letters."}}
lengths = [
    (len(word), len(targets[0].split())) for word, targets in everything.items()
]
letters, phones = torch.tensor(lengths, dtype=torch.float).T
figure, axis = plt.subplots(figsize=(4.2, 3.4))
bins = [x - 0.5 for x in range(1, 18)]
*_, image = axis.hist2d(letters, phones, bins=bins, cmap="viridis")
axis.plot([1, 16], [1, 16], "w:", lw=1)
axis.set(xlabel="letters", ylabel="phonemes", xlim=(1.5, 16.5), ylim=(0.5, 16.5))
axis.set_xticks(range(2, 17, 2))
axis.grid(False)
figure.colorbar(image, label="words")
glue(letters=letters.mean().item(), phones=phones.mean().item())


# %% [markdown]
# {glue:text}`letters:.1f` letters on average, {glue:text}`phones:.1f` phonemes, and no rule for which letters fall silent. Source and target have different
# lengths, and the model has to find out by itself which letter belongs to which sound.
#
# ## Scaled dot products
#
# A target position has to look at the source. It holds a query of width $d_k$, each source position a key and a value. The paper's answer in one line (Section 3.2.1):
#
# (eq-transformer-1)=
# $$
# \operatorname{Attention}(Q, K, V) = \operatorname{softmax}\!\left(\frac{Q K^{\mathsf T}}{\sqrt{d_k}}\right) V
# \tag{1}
# $$
#
# $Q$ has a row for each of $t$ queries, $K$ and $V$ a row for each of $s$ keys. In code $d_k$ is `e`.

# %%
def attention_naive(q, k, v):  # (eq-transformer-1), one head: q (t, e), k, v (s, e)
    rows = []
    for q_i in q:
        scores = torch.stack([q_i @ k_j for k_j in k]) / math.sqrt(q.shape[1])
        a = scores.exp() / scores.exp().sum()
        rows.append(sum(a_j * v_j for a_j, v_j in zip(a, v, strict=True)))
    return torch.stack(rows)


# %% [markdown]
# `ladder.prove` runs two implementations on the same inputs and weights, pulls the same random gradient back through both, and stops the page if an output or a gradient differs by more than rounding.

# %% tags=["nbval-check-output"]
q, k, v = torch.randn(5, 16), torch.randn(9, 16), torch.randn(9, 16)
ours = lambda *qkv: attention(*(x[None, None] for x in qkv))[0, 0]
rung = ladder.prove(
    "Eq. 1: attention", "naive loops", ours, attention_naive, q, k, v
)
assert ours(q, k, v).shape == (5, 16)
print(rung.n_gradients, "gradients compared: queries, keys, values")

# %%
times = (
    milliseconds(lambda: ours(q, k, v)),
    milliseconds(lambda: attention_naive(q, k, v)),
)
print(f"5 queries, 9 keys: fused {times[0]:.3f} ms, loops {times[1]:.2f} ms")


# %% [markdown]
# Why the square root? The paper's footnote 4: let the components of $\mathbf{q}$ and $\mathbf{k}$ be independent, with mean 0 and variance 1. Then
# $\mathbf{q} \cdot \mathbf{k} = \sum_{i=1}^{d_k} q_i k_i$ is a sum of $d_k$ independent terms of mean 0 and variance 1, so it has variance $d_k$. Scores grow like
# $\sqrt{d_k}$, and the authors suspect that a softmax of large scores has "extremely small gradients".
#
# Is that so? With $\mathbf{a} = \operatorname{softmax}(\mathbf{x})$, the derivative of a weight by a score is
#
# $$
# \frac{\partial a_i}{\partial x_j} = a_i \left([i = j] - a_j\right),
# $$
#
# where $[i = j]$ is 1 if $i = j$, else 0. If one weight is 1 and the others are 0, every entry of this matrix is zero: no gradient at all reaches queries and keys through it.

# %%
def softmax_jacobian(x):
    a = x.softmax(-1)
    return torch.diag_embed(a) - a[..., :, None] * a[..., None, :]


x = torch.randn(9)
by_torch = torch.autograd.functional.jacobian(lambda x: x.softmax(-1), x)
assert torch.allclose(softmax_jacobian(x), by_torch, atol=1e-6)

# %% [markdown]
# Which standard deviation of a score do you expect at $d_k = 64$, the paper's width of a head? Look, on the right, for how much the softmax still passes on there.

# %% mystnb={"image": {"alt": "Left, standard deviation of scores against head width from 1 to 1024, both logarithmic: unscaled it follows the square root, scaled it stays at 1. Right, size of the derivative of the softmax by its scores: scaled it is constant; unscaled it is no smaller up to width 16, then falls to a fifth at 1024."}}
torch.manual_seed(0)
widths = [4**i for i in range(6)]
spread, slope = {"unscaled": [], "divided by √d_k": []}, {}
for e in widths:
    scores = torch.randn(400, 1, e) @ torch.randn(400, 20, e).mT
    for name, x in zip(spread, (scores, scores / e**0.5), strict=True):
        spread[name].append(x.std())
        jacobian = softmax_jacobian(x.flatten(1))
        slope.setdefault(name, []).append(jacobian.flatten(1).norm(dim=1).mean())
figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.0))
for axis, curves in zip(axes, (spread, slope), strict=True):
    for name, values in curves.items():
        axis.plot(widths, values, "o-", label=name)
    axis.set(xscale="log", yscale="log", xlabel="width of a head, d_k")
axes[0].plot(widths, [e**0.5 for e in widths], "k:", label="√d_k")
axes[0].set(ylabel="standard deviation of a score")
axes[1].set(ylabel="‖∂ softmax / ∂ scores‖", ylim=(0.01, 1))
axes[0].legend()
plt.show()

# %%
at_64 = widths.index(64)
assert abs(spread["unscaled"][at_64] / 8 - 1) < 0.05
left = [
    float(slope["unscaled"][i] / slope["divided by √d_k"][i]) for i in (at_64, -1)
]
assert left[1] < left[0] < 0.8
glue(left_64=100 * left[0], left_1024=100 * left[1])


# %% [markdown]
# $\sqrt{64} = 8$. At 64 the softmax passes on {glue:text}`left_64:.0f` % of what it would with the square root, per unit of score, at 1024 {glue:text}`left_1024:.0f` %. (Queries and keys see a larger factor in front of it, 1 instead of $1 / \sqrt{d_k}$,
# so this is not yet a proof that they learn less: it says that the weights are decided before training has a say.) The argument holds for random vectors, before any training. What removing the root does to a trained model, we test at the end.
#
# ## Many heads, two sequences
#
# One attention sees one pattern. And where do queries, keys and values come from when there are two sequences? The paper projects $h$ times (Section 3.2.2):
#
# $$
# \begin{aligned}
# \operatorname{MultiHead}(Q, K, V) &= \operatorname{Concat}(\text{head}_1, \ldots, \text{head}_h) W^O \\
# \text{head}_i &= \operatorname{Attention}(Q W_i^Q, K W_i^K, V W_i^V)
# \end{aligned}
# $$
#
# with $W_i^Q, W_i^K \in \mathbb{R}^{d_\text{model} \times d_k}$, $W_i^V \in \mathbb{R}^{d_\text{model} \times d_v}$, $W^O \in \mathbb{R}^{h d_v \times d_\text{model}}$ and $d_k = d_v = d_\text{model} / h$. In code $h$ is `n` and $d_\text{model}$ is `d`. The Transformer uses this in three places (Section 3.2.3):
#
# | where | queries from | keys and values from | may see |
# |---|---|---|---|
# | encoder, self-attention | source | source | everything but padding |
# | decoder, {term}`self-attention` | target | target | itself and what is before it |
# | decoder, {term}`cross-attention` | target | the encoder's output | everything but padding |
#
# Our module keeps all $W^Q$, then all $W^K$, then all $W^V$, transposed, as the rows of one matrix. The naive version cuts it up:

# %%
def multi_head_naive(mha, x, y):  # x (t, d) asks, y (s, d) answers
    d, e = x.shape[1], x.shape[1] // mha.n_heads
    heads = []
    for i in range(mha.n_heads):
        rows = [slice(p * d + i * e, p * d + (i + 1) * e) for p in range(3)]
        q, k, v = (
            z @ mha.in_proj.weight[r].T + mha.in_proj.bias[r]
            for z, r in zip((x, y, y), rows, strict=True)
        )
        heads.append(attention_naive(q, k, v))
    return torch.cat(heads, dim=1) @ mha.out_proj.weight.T + mha.out_proj.bias


# %% [markdown]
# A target of 5 tokens asks, a source of 9 answers. The output has the shape of the target: 5 rows.

# %% tags=["nbval-check-output"]
mha = MultiHeadAttention(d_model=32, n_heads=4)
x, y = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
loops = lambda x, y: torch.stack(
    [multi_head_naive(mha, a, b) for a, b in zip(x, y, strict=True)]
)
ladder.prove("multi-head, cross", "naive loops", mha, loops, x, y, shared=mha)
assert mha(x, y).shape == x.shape
print(
    "queries", tuple(x.shape), "keys", tuple(y.shape), "->", tuple(mha(x, y).shape)
)


# %% tags=["nbval-check-output"]
class TorchAttention(nn.MultiheadAttention):
    def forward(self, x, y):
        return super().forward(x, y, y)[0]


theirs = TorchAttention(32, 4, batch_first=True)
names = partial(rename, table={r"in_proj_(\w+)": r"in_proj.\1"})
against = "torch.nn.MultiheadAttention"
rung = ladder.prove("multi-head, cross", against, mha, theirs, x, y, convert=names)
assert rung.n_gradients == 6
print("equal to torch.nn.MultiheadAttention:", rung.n_gradients, "gradients")

# %%
with torch.no_grad():
    times = milliseconds(lambda: mha(x, y)), milliseconds(lambda: loops(x, y))
print(
    f"2 pairs of 5 and 9 tokens: module {times[0]:.2f} ms, loops {times[1]:.1f} ms"
)

# %% [markdown]
# What do more heads cost? Each is thinner, so the matrix products cost the same: four $d \times d$ matrices and $2 \cdot 2 t s d$ FLOPs for any $h$. The softmax does not: it takes $h t s$ exponentials. Look for what the clock says.

# %% mystnb={"image": {"alt": "Time of one attention of width 256 on 64 tokens against the number of heads, 1 to 64, beside a flat dotted line for the FLOPs, which do not change."}}
from torch.utils.flop_counter import FlopCounterMode

z, heads = torch.randn(4, 64, 256), [1, 2, 4, 8, 16, 32, 64]
modules = {n: MultiHeadAttention(256, n).eval() for n in heads}
for module in modules.values():
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(z)
    assert counter.get_total_flops() == 2 * 4 * (4 * 64 * 256**2 + 2 * 64**2 * 256)
clock = dict.fromkeys(heads, math.inf)
with torch.no_grad():
    for _, (n, module) in itertools.product(range(5), modules.items()):
        once = milliseconds(lambda module=module: module(z), repeats=9)
        clock[n] = min(clock[n], once)
clock = list(clock.values())
figure, axis = plt.subplots()
axis.plot(heads, clock, "o-", label="measured")
axis.axhline(clock[0], color="grey", ls=":", label="FLOPs, in units of one head's")
axis.set(xscale="log", xlabel="heads", ylabel="milliseconds", ylim=(0, None))
axis.set_xticks(heads, heads)
axis.minorticks_off()
axis.legend()
plt.show()
glue(slower=clock[-1] / clock[0])


# %% [markdown]
# The FLOPs are exactly the same; exponentials are not counted among them. On the machine that made this page 64 heads of width 4 took {glue:text}`slower:.1f` times as long as one: more exponentials, and thinner products. The paper calls the cost "similar".
#
# ## Who may see what
#
# Sentences of a batch have different lengths, and the decoder is trained on all positions of the target at once. What stops a word from attending to the padding, and
# a target position from reading the answer?
#
# Two masks. The {term}`padding mask` hides keys that only fill up the batch. The {term}`causal mask` hides keys to the right of the query, "to preserve the auto-regressive
# property" (Section 3.2.3). The decoder needs both: what either hides is hidden. The paper hides by setting scores to $-\infty$; ours are boolean, True where a query may look.

# %%
def mask_naive(row, pad):
    return [
        [j <= i and row[j] != pad for j in range(len(row))] for i in range(len(row))
    ]


# %% [markdown]
# "Cat" beside "spaces" is a row of five tokens (start, three phonemes, end) and two paddings. How many of its $7 \cdot 7$ entries will be True? Decide before you read on.

# %% tags=["nbval-check-output"]
encoded = [tokenizer.encode_target(ph) for ph in ("K AE1 T", "S P EY1 S IH0 Z")]
target = pad_batch(encoded)[:, :-1]  # each token predicts the next
padding, causal = padding_mask(target, 0), causal_mask(7, 7)
mask = padding & causal
for row, allowed in zip(target.tolist(), mask[:, 0].tolist(), strict=True):
    assert allowed == mask_naive(row, 0)
assert mask[0].sum() == 25
print("padding", tuple(padding.shape), "and causal", tuple(causal.shape))
print("gives", tuple(mask.shape), "with", mask.sum((1, 2, 3)).tolist(), "True")

# %% [markdown]
# Query $i$, counted from 1, sees $\min(i, 5)$ keys: $1 + 2 + 3 + 4 + 5 + 5 + 5 = 25$. Look at which of the two masks hides what in the first word, "cat".

# %% mystnb={"image": {"alt": "Three masks of 7 queries by 7 keys for the word cat, blue where a query may look. Padding: all but the last two columns. Causal: the lower triangle. Both: the lower triangle without the last two columns."}}
symbols = [tokenizer.symbols[i] for i in target[0]]
figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.7), sharey=True)
shown = {
    "padding": padding[0, 0].expand(7, 7),
    "causal": causal,
    "both": mask[0, 0],
}
for axis, (name, allowed) in zip(axes, shown.items(), strict=True):
    axis.imshow(allowed, cmap="Blues", vmin=0, vmax=1.6)
    axis.set_xticks(range(7), symbols, rotation=90)
    axis.set_yticks(range(7), symbols)
    axis.set(title=name, xlabel="key")
    axis.grid(False)
axes[0].set(ylabel="query")
plt.show()

# %% [markdown]
# Padding at the right end is already in the future of every real token, so for them the two together hide no more than the causal mask. The padding mask is needed in the encoder and in the cross-attention, which are not causal,
# and in a batch filled up on the left.
#
# A mask is right if what it hides makes no difference: in an encoder each sentence of the batch must come out as if it were alone. And a query that may look at nothing at all gets zeros; the equation would
# divide zero by zero.

# %% tags=["nbval-check-output"]
q, k, v = (torch.randn(2, 4, 7, 8) for _ in range(3))
together, unmasked = attention(q, k, v, padding), attention(q, k, v)
length = (target[0] != 0).sum()
alone = attention(*(x[:1, :, :length] for x in (q, k, v)))
assert torch.allclose(together[:1, :, :length], alone, atol=1e-6)
assert not torch.allclose(unmasked[:1, :, :length], alone, atol=1e-2)

nothing = mask.clone()
nothing[0, 0, 2] = False
assert (attention(q, k, v, nothing)[0, :, 2] == 0).all()
by_the_book = torch.full((7,), -torch.inf).softmax(0)
print(
    "a fully masked row by the equation:", by_the_book[:3].tolist(), "here: zeros"
)

# %%
rows = target.repeat(32, 1)
naive = milliseconds(lambda: [mask_naive(row, 0) for row in rows.tolist()])
ours = milliseconds(lambda: padding_mask(rows, 0) & causal_mask(7, 7))
print(f"masks of 64 words: loops {naive:.2f} ms, broadcast {ours:.3f} ms")


# %% [markdown]
# ## The layers
#
# Attention only mixes. What does a layer do with what it has gathered?
#
# Each layer has a second half, the position-wise {term}`feed-forward network`: two matrices with a ReLU between them, the same at each position (Section 3.3):
#
# (eq-transformer-2)=
# $$
# \operatorname{FFN}(x) = \max(0, x W_1 + b_1) W_2 + b_2
# \tag{2}
# $$
#
# $W_1$ goes from $d_\text{model} = 512$ to $d_\text{ff} = 2048$ and $W_2$ back; `d` and `f` in code. Around each half runs a {term}`residual connection`, and then a {term}`layer norm`:
#
# $$
# x \leftarrow \operatorname{LayerNorm}(x + \operatorname{Sublayer}(x))
# $$
#
# This is {term}`post-norm`. A decoder layer has three such steps: self-attention, cross-attention, FFN. The variant {term}`pre-norm`, $x \leftarrow x + \operatorname{Sublayer}(\operatorname{LayerNorm}(x))$,
# leaves the sum itself alone. A pre-norm stack ends with one more norm.

# %%
def ffn_naive(mlp, x):  # (eq-transformer-2)
    hidden = (x @ mlp.fc1.weight.T + mlp.fc1.bias).clamp(min=0)
    return hidden @ mlp.fc2.weight.T + mlp.fc2.bias


def norm_naive(norm, x):
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


# %%
def causal_naive(mha, x):  # each position asks itself and those before it
    rows = [multi_head_naive(mha, x[i : i + 1], x[: i + 1]) for i in range(len(x))]
    return torch.cat(rows)


def decoder_naive(block, x, y):  # one pair: x (t, d), y (s, d)
    steps = [(block.norm1, partial(causal_naive, block.attention))]
    cross = lambda x: multi_head_naive(block.cross_attention, x, y)
    steps += [
        (block.norm_cross, cross),
        (block.norm2, partial(ffn_naive, block.mlp)),
    ]
    for norm, sublayer in steps:
        pre = block.norm == "pre"
        x = x + sublayer(norm_naive(norm, x) if pre else x)
        x = x if pre else norm_naive(norm, x)
    return x


# %% [markdown]
# What comes out of a post-norm layer has, at initialisation, mean 0 and variance 1 at every position. And "position-wise" means: swap two positions, and their outputs swap.

# %% tags=["nbval-check-output"]
for norm in ("post", "pre"):
    block = DecoderBlock(32, 4, 64, norm=norm, activation=F.relu)
    loops = lambda x, y, b=block: torch.stack(
        [decoder_naive(b, *pair) for pair in zip(x, y, strict=True)]
    )
    title, ours = f"decoder layer, {norm}-norm", partial(block, causal=True)
    ladder.prove(title, "naive loops", ours, loops, x, y, shared=block)
    variance = block(x, y).var(-1, correction=0)
    unit = torch.allclose(variance, torch.ones(2, 5), atol=1e-3)
    assert unit == (norm == "post")
    swap = torch.tensor([1, 0, 2, 3, 4])
    assert torch.allclose(block.mlp(x[:, swap]), block.mlp(x)[:, swap], atol=1e-6)
    print(f"{norm}: equal to the loops; output of variance 1: {unit}")


# %% [markdown]
# torch.nn has both layers in both orders. Same weights, same inputs, a causal mask on the target:

# %%
class Masked(nn.TransformerDecoderLayer):
    def forward(self, x, y):
        return super().forward(x, y, tgt_mask=~causal_mask(5, 5))


def layers(kind, norm):
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm == "pre"}
    sizes, ours = (32, 4, 64), {"norm": norm, "activation": F.relu}
    if kind == "encoder":
        theirs = nn.TransformerEncoderLayer(*sizes, **options)
        return TransformerBlock(*sizes, **ours), theirs, (y,)
    block = DecoderBlock(*sizes, **ours)
    block.register_forward_pre_hook(lambda _, xy: (*xy, causal_mask(5, 5)))
    return block, Masked(*sizes, **options), (x, y)


# %% tags=["nbval-check-output"]
for kind, norm in itertools.product(("encoder", "decoder"), ("post", "pre")):
    block, theirs, inputs = layers(kind, norm)
    title = f"{kind} layer, {norm}-norm"
    against = f"torch.nn.Transformer{kind.capitalize()}Layer"
    names = partial(rename, table=published.TORCH_LAYERS[kind])
    rung = ladder.prove(title, against, block, theirs, *inputs, convert=names)
    assert rung.n_gradients == {"encoder": 13, "decoder": 20}[kind]
    print(f"{title}: equal to torch, {rung.n_gradients} gradients")

# %%
with torch.no_grad():
    times = milliseconds(lambda: block(x, y)), milliseconds(lambda: loops(x, y))
print(f"one decoder layer: module {times[0]:.2f} ms, loops {times[1]:.0f} ms")


# %% [markdown]
# Why did almost everyone move to pre-norm? {cite:t}`xiong2020` looked at the gradients *before the first step*. Their theorem bounds those of the last layer: with post-norm the bound does not depend on the number of layers $L$; with pre-norm
# it falls like $1 / \sqrt{L}$, because the sum on the residual path has grown, and the last norm divides by it. Large gradients at the start, they argue, are why post-norm needs a {term}`warm-up`.
#
# Look for the two slopes in the right panel, and, in the left, for where in the decoder the gradients are large.

# %%
def gradient_norms(norm, n_layers, seed):
    torch.manual_seed(seed)
    sizes = {"d_model": 64, "n_layers": n_layers, "n_heads": 4, "d_mlp": 256}
    config = TransformerConfig(vocab_size=101, norm=norm, dropout=0.0, **sizes)
    model = Transformer(config)
    source, target = torch.randint(3, 101, (2, 32, 9))
    label_smoothing_loss(model(source, target[:, :-1]), target[:, 1:], 0).backward()
    return torch.stack(
        [block.mlp.fc2.weight.grad.norm() for block in model.decoder]
    )


def mean_norms(norm, n_layers):  # over three seeds
    norms = [gradient_norms(norm, n_layers, seed) for seed in range(3)]
    return torch.stack(norms).mean(0).tolist()


# %% mystnb={"image": {"alt": "Left, gradient norm of each of six decoder layers at initialisation: with post-norm it rises towards the last layer, with pre-norm it falls. Right, gradient norm of the last layer against the number of layers: about level for post-norm, falling somewhat faster than one over the square root for pre-norm. Means of three seeds."}}
depths = [1, 2, 4, 8]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0))
last, along = {}, {}
for norm, style in (("post", "o-"), ("pre", "s-")):
    along[norm] = mean_norms(norm, 6)
    left.plot(range(1, 7), along[norm], style, label=f"{norm}-norm")
    last[norm] = [mean_norms(norm, depth)[-1] for depth in depths]
    right.plot(depths, last[norm], style, label=f"{norm}-norm")
right.plot(depths, [last["pre"][0] / d**0.5 for d in depths], "k:", label="∝ 1/√L")
left.set(xlabel="decoder layer", ylabel="‖∂ loss / ∂ W₂‖", ylim=(0, None))
right.set(
    xlabel="layers L", ylabel="the same, last layer", xscale="log", yscale="log"
)
right.set_xticks(depths, depths)
right.set_yticks([0.2, 0.5, 1.0], [0.2, 0.5, 1.0])
right.minorticks_off()
right.legend()
plt.show()

# %%
shrinks = {norm: values[-1] / values[0] for norm, values in last.items()}
assert shrinks["pre"] < 0.5 < shrinks["post"] < 2
assert along["post"][-1] > 2 * along["post"][0]
assert along["pre"][0] > along["pre"][-1]
glue(uphill=along["post"][-1] / along["post"][0])
glue(post_8=shrinks["post"], pre_8=shrinks["pre"], root_8=8**-0.5)

# %% [markdown]
# From one layer to eight, the last layer's gradient is multiplied by {glue:text}`post_8:.2f` with post-norm, so it stays about the same, and by {glue:text}`pre_8:.2f` with pre-norm: somewhat less than $1 / \sqrt{8} = $ {glue:text}`root_8:.2f`, which is a bound's order for an encoder of
# two sub-layers a layer; our decoder has three. Along the decoder, on the left, post-norm's gradient is {glue:text}`uphill:.0f` times larger in the last layer than in the first; pre-norm's is largest in the first.
#
# Does it matter for training? Six layers each in encoder and decoder, the same data, a full learning rate of $10^{-3}$ from the first step on, no warm-up. Then the same with two layers each:

# %%
examples = experiment.make_examples(splits.train, tokenizer)
batches = experiment.make_batches(examples, tokens=256, seed=0)


def without_warmup(norm, n_layers, steps=60):
    torch.manual_seed(0)
    config = TransformerConfig(101, 64, n_layers, 4, 256, 64, norm=norm)
    model, losses = Transformer(config), []
    optimiser = experiment.adam(model)  # its default learning rate is 1e-3
    for step in range(steps):
        rows = [examples[i] for i in batches[step]]
        loss = experiment.smoothed_loss(model, *experiment.padded(rows))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


cold = {
    (norm, n): without_warmup(norm, n) for norm in ("post", "pre") for n in (2, 6)
}
assert cold["pre", 6] < cold["post", 6]
glue(cold_post=cold["post", 6], cold_pre=cold["pre", 6])
glue(two_post=cold["post", 2], two_pre=cold["pre", 2])

# %%
seen = torch.tensor([phone for _, phones in examples for phone in phones[1:]])
p = 0.9 * seen.bincount(minlength=101) / len(seen) + 0.1 / 101
# The smoothed loss of a model that knows how often each phoneme occurs, no more:
know_frequencies = -(p * p.log()).sum().item()
assert abs(cold["post", 6] / know_frequencies - 1) < 0.1
glue(frequencies=know_frequencies)


# %% [markdown]
# After 60 steps the loss is {glue:text}`cold_post:.2f` with post-norm, about that of knowing how often each phoneme occurs ({glue:text}`frequencies:.2f`), and {glue:text}`cold_pre:.2f` with pre-norm. This shows that a deep post-norm stack starts
# slowly; it does not show that a warm-up cures it, which takes longer runs {cite:p}`xiong2020`. With two layers, as we train below, it is {glue:text}`two_post:.2f` and {glue:text}`two_pre:.2f`: post-norm loses nothing, and it is what the paper has.
#
# ## Tokens and places
#
# A layer wants vectors of width $d_\text{model}$. How do tokens become vectors, and how does a model without recurrence know their order?
#
# One matrix $E$ has a row for each token. The paper uses the same $E$ for the source, for the target, and, transposed, for the output (Section 3.4): the logit of a token is the dot product of
# the decoder's output with that token's row. These are {term}`tied embeddings`. Going in, rows are multiplied by $\sqrt{d_\text{model}}$. To them the paper adds a {term}`position embedding` that is not learned (Section 3.5):
#
# $$
# PE_{(pos, 2i)} = \sin\!\left(pos / 10000^{2i / d_\text{model}}\right),
# \qquad
# PE_{(pos, 2i+1)} = \cos\!\left(pos / 10000^{2i / d_\text{model}}\right)
# $$
#
# Each pair of channels $(2i, 2i + 1)$ is the hand of a clock that turns by $\omega_i = 10000^{-2i / d_\text{model}}$ radians per position.

# %%
def positions_naive(n_positions, d):
    table = []
    for pos in range(n_positions):
        angles = [pos / 10_000 ** (2 * (i // 2) / d) for i in range(d)]
        table.append(
            [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)]
        )
    return torch.tensor(table)


def embed_naive(model, row):
    d, E = model.config.d_model, model.embedding.weight
    return math.sqrt(d) * E[row] + positions_naive(len(row), d)


# %% [markdown]
# Why multiply by $\sqrt{d_\text{model}}$? The paper does not say why. One reason: the same $E$ serves two ends. As output, its dot products with a vector of $d$ numbers of variance 1 should have variance 1, so its entries need variance $1/d$. As input they
# would then be tiny beside sinusoids of mean square $\tfrac12$. Multiplied by $\sqrt{d}$ they have variance 1.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
toy_sizes = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "d_mlp": 64,
    "dropout": 0.0,
}
toy = Transformer(TransformerConfig(vocab_size=101, **toy_sizes))
row = torch.randint(3, 101, (1, 200))
ours, naive = lambda: toy.embed(row), lambda: embed_naive(toy, row[0])[None]
ladder.prove("embedding", "naive loops", ours, naive, shared=toy)
tokens, places = toy.embedding(row) * 32**0.5, sinusoidal_1d(200, 32)
assert abs(tokens.var() - 1) < 0.1
assert abs((places**2).mean() - 0.5) < 1e-6
print("variance of √d E: 1, mean square of PE: 0.5; equal to the loops")

# %%
times = (
    milliseconds(lambda: sinusoidal_1d(200, 32)),
    milliseconds(lambda: positions_naive(200, 32), repeats=2),
)
print(f"200 positions: tensor {times[0]:.2f} ms, loops {times[1]:.1f} ms")


# %% [markdown]
# The authors chose sinusoids because "for any fixed offset $k$, $PE_{pos+k}$ can be represented as a linear function of $PE_{pos}$". (In this section $k$ is an offset, not a key.) Which function? Turning a clock's hand by the angle $k \omega_i$ more, whatever it shows now:
#
# $$
# \begin{pmatrix} PE_{(pos + k, 2i)} \\ PE_{(pos + k, 2i + 1)} \end{pmatrix}
# =
# \begin{pmatrix} \cos k\omega_i & \sin k\omega_i \\ -\sin k\omega_i & \cos k\omega_i \end{pmatrix}
# \begin{pmatrix} PE_{(pos, 2i)} \\ PE_{(pos, 2i + 1)} \end{pmatrix}
# $$
#
# It is a rotation, the same for all positions. The authors hypothesized that attention learns relative positions more easily so.

# %% tags=["nbval-check-output"]
def shift(offset, d):
    omega = 10_000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    cos, sin = (offset * omega).cos(), (offset * omega).sin()
    rows = [torch.stack(row, -1) for row in ([cos, sin], [-sin, cos])]
    return torch.block_diag(*torch.stack(rows, -2))


pe = sinusoidal_1d(200, 32).double()
for offset in (1, 3, 50):
    R = shift(offset, 32)
    assert torch.allclose(pe[offset:], pe[:-offset] @ R.T, atol=1e-5)
    assert torch.allclose(R @ R.T, torch.eye(32, dtype=R.dtype))
print("PE(pos + k) = R(k) PE(pos) for every pos; R(k) is a rotation")

# %% [markdown]
# Each hand has length 1, so $PE_{pos} \cdot PE_{pos+k} = \sum_i \cos k\omega_i$: it depends on $k$ only, and $k$ and $-k$ look alike. On the left, sine and cosine columns alternate. Look, on the right, for this: curves from three positions lie on each other.

# %% mystnb={"image": {"alt": "Left, heat map of sinusoidal positions, 60 positions by 32 channels: fast stripes in the first channels, almost constant in the last. Right, dot product of two positions against their offset, for three positions: one curve, highest at zero, lower in waves to both sides."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0))
left.imshow(pe[:60], aspect="auto", cmap="RdBu")
left.set(xlabel="channel", ylabel="position")
left.grid(False)
offsets = torch.arange(-40, 41)
for pos, width in ((50, 5), (90, 3), (140, 1)):
    dots = pe[pos + offsets] @ pe[pos]
    right.plot(offsets, dots, lw=width, alpha=0.7, label=f"from {pos}")
    assert torch.allclose(dots, pe[50 + offsets] @ pe[50], atol=1e-4)
right.set(xlabel="offset k, tokens", ylabel="PE(pos) · PE(pos + k)")
right.legend()
plt.show()


# %% [markdown]
# ## What to learn, and how fast
#
# The decoder gives a probability for each next token. Which loss, and which learning rate?
#
# The plain {term}`cross-entropy` of the right token $y$ is least when its probability is 1, which takes infinite logits. {term}`Label smoothing` {cite:p}`szegedy2016` asks for a bit less (Section 5.4, $\epsilon_{ls} = 0.1$):
# the target is not 1 for the right token but
#
# $$
# q(k) = (1 - \epsilon)\,[k = y] + \frac{\epsilon}{v},
# \qquad
# \text{loss} = -\sum_{k=1}^{v} q(k) \log p(k)
# $$
#
# Here $q$ is a distribution, $k$ a token, and $v$ the size of the vocabulary. The paper notes that this "hurts perplexity, as the model learns to be more unsure, but improves accuracy and BLEU".

# %%
def smoothed_naive(logits, targets, pad, epsilon):
    losses = []
    for row, ys in zip(logits, targets.tolist(), strict=True):
        for scores, y in zip(row, ys, strict=True):
            if y != pad:
                log_p = scores - scores.exp().sum().log()
                q = torch.full_like(scores, epsilon / len(scores))
                q[y] += 1 - epsilon
                losses.append(-(q * log_p).sum())
    return sum(losses) / len(losses)


# %% tags=["nbval-check-output"]
logits, targets = torch.randn(2, 5, 101), torch.randint(3, 101, (2, 5))
targets[1, 3:] = 0  # padding: no loss
ours = partial(label_smoothing_loss, targets=targets, pad_id=0, epsilon=0.1)
naive = lambda logits: smoothed_naive(logits, targets, 0, 0.1)
torchs = lambda logits: F.cross_entropy(
    logits.flatten(0, 1), targets.flatten(), ignore_index=0, label_smoothing=0.1
)
ladder.prove("label smoothing", "naive loops", ours, naive, logits)
ladder.prove("label smoothing", "torch cross_entropy", ours, torchs, logits)
logits.requires_grad_()
(gradient,) = torch.autograd.grad(ours(logits), logits)
assert (gradient[1, 3:] == 0).all()
print("equal to the loops and to torch; padding gets no gradient")

# %%
times = milliseconds(lambda: ours(logits)), milliseconds(lambda: naive(logits))
print(f"10 tokens: module {times[0]:.3f} ms, loops {times[1]:.2f} ms")

# %% [markdown]
# The learning rate rises in a line for `warmup_steps` steps and then falls as one over the root of the step (Section 5.3):
#
# (eq-transformer-3)=
# $$
# lrate = d_\text{model}^{-0.5} \cdot \min\!\left(step\_num^{-0.5},\ step\_num \cdot warmup\_steps^{-1.5}\right)
# \tag{3}
# $$
#
# Where do the two meet? At $step\_num = warmup\_steps$: both are $warmup\_steps^{-0.5}$ there. So the peak is $1 / \sqrt{d_\text{model} \cdot warmup\_steps}$, for the paper's 512 and 4,000 about $7 \cdot 10^{-4}$.

# %% tags=["nbval-check-output"]
rates = [
    learning_rate(step, 512, 4000) for step in range(1, 12_001)
]  # (eq-transformer-3)
peak = max(rates)
assert rates.index(peak) + 1 == 4000
assert math.isclose(peak, (512 * 4000) ** -0.5)
assert math.isclose(learning_rate(8000, 512) / peak, 2**-0.5)
print(f"peak {peak:.2e} at step 4000")

# %% [markdown]
# Look, on the left, for the probability that each loss wants; on the right, for what the width does to the learning rate.

# %% mystnb={"image": {"alt": "Left, loss against the probability of the right token: without smoothing it falls to zero at 1; with smoothing 0.1 it has its minimum near 0.9. Right, learning rate against step for widths 512 and 1024 and for a warm-up of 8000: a line up, then a slow fall."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0))
p = torch.linspace(0.3, 0.9999, 300)
for epsilon in (0.0, 0.1, 0.3):
    q, rest = 1 - epsilon + epsilon / 101, (1 - p) / 100
    loss = -q * p.log() - (1 - q) * rest.log()
    assert abs(p[loss.argmin()] - q) < 0.01
    left.plot(p, loss, label=f"ε = {epsilon}")
left.set(xlabel="probability of the right token", ylabel="loss, nats", ylim=(0, 4))
steps = range(50, 20_001, 50)
for d, warmup in ((512, 4000), (1024, 4000), (512, 8000)):
    curve = [1e3 * learning_rate(step, d, warmup) for step in steps]
    right.plot(steps, curve, label=f"d = {d}, warm-up {warmup}")
right.set(xlabel="step", ylabel="learning rate, 10⁻³", ylim=(0, None))
left.legend()
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# The smoothed losses are least at $q(y) = 1 - \epsilon + \epsilon / v$ and punish certainty beyond it. They never reach zero: their floor is the {term}`entropy` of $q$ itself. On the right: twice the width, $1 / \sqrt{2}$ of the rate; after step 8,000 the longer warm-up is forgotten.
#
# ## Searching for the answer
#
# A trained model gives probabilities of the next token. What we want is the most probable *sequence*. Why not take the best token at each step?
#
# Because a good first step can lead into a bad place. Here is a language of two tokens, `a` and `b`, and an end, in which each beginning has fixed probabilities for what follows:

# %%
END, LIMIT = 0, 4
BOOK = {"": [0.1, 0.5, 0.4], "a": [0.3, 0.4, 0.3], "b": [0.9, 0.05, 0.05]}


def next_log_p(y):  # y is a tuple of tokens: 1 is a, 2 is b
    beginning = "".join(" ab"[token] for token in y)
    return torch.tensor(BOOK.get(beginning, [0.8, 0.1, 0.1])).log().tolist()


# %% [markdown]
# {term}`Greedy search` takes the best next token. {term}`Beam search` keeps the best few beginnings instead of one. Longer
# sequences have more factors below 1, so they lose; the paper divides the log-probability by the length penalty of {cite:t}`wu2016` (their Eq. 14) with $\alpha = 0.6$, and keeps 4 beginnings (Section 6.1):
#
# $$
# s(Y, X) = \frac{\log P(Y \mid X)}{lp(Y)},
# \qquad
# lp(Y) = \frac{(5 + |Y|)^\alpha}{(5 + 1)^\alpha}
# $$
#
# $X$ is the source, $Y$ the target, $|Y|$ its length, the end included. (Wu et al. add a coverage term, which we leave out.)

# %%
def beam_naive(next_log_p, beam, alpha, limit):
    alive, ended = [((), 0.0)], []
    for length in range(1, limit + 1):
        tokens = [END] if length == limit else range(3)
        grown = [((*y, k), s + next_log_p(y)[k]) for y, s in alive for k in tokens]
        grown.sort(key=lambda hypothesis: -hypothesis[1])
        lp = ((5 + length) / (5 + 1)) ** alpha
        ended += [(s / lp, y) for y, s in grown[:beam] if y[-1] == END]
        alive = [(y, s) for y, s in grown if y[-1] != END][:beam]
    return max(ended)[1][:-1]


# %% [markdown]
# What will beams of 1 and 2 find, without a penalty? Work it out from the table.

# %% tags=["nbval-check-output"]
def rows_log_p(rows):  # the same language for our search: rows start with a 9
    return torch.tensor([next_log_p(tuple(row[1:])) for row in rows.tolist()])


options = {"eos_id": END, "forbidden": ()}
start, limits = torch.tensor([9]), torch.tensor([LIMIT])
search = partial(beam_search, rows_log_p, start, limits, **options)
assert greedy_search(rows_log_p, start, limits, **options) == [[1, 1]]
assert beam_naive(next_log_p, 1, 0.0, LIMIT) == (1, 1)
for beam, alpha in itertools.product((1, 2, 4), (0.0, 0.6, 3.0)):
    assert search(beam=beam, alpha=alpha) == [
        list(beam_naive(next_log_p, beam, alpha, 4))
    ]
assert search(beam=2, alpha=0.0) == [[2]]
print(
    "greedy: aa, beam of 2:",
    "".join("_ab"[k] for k in search(beam=2, alpha=0.0)[0]),
)


# %% [markdown]
# The greedy search takes `a`, and then has at most $0.5 \cdot 0.4 \cdot 0.8 = 0.16$ left, with `a` again. `b` and the end together have $0.4 \cdot 0.9 = 0.36$, and two beginnings are enough to keep it.
#
# With a beam as wide as there are candidates, beam search *is* the search through everything. Does it find the best of all sequences, also with the penalty?

# %% tags=["nbval-check-output"]
def everything_scored(alpha):
    scored = {}
    for length in range(LIMIT):
        for y in itertools.product((1, 2), repeat=length):
            path = (*y, END)
            log_p = sum(next_log_p(path[:i])[k] for i, k in enumerate(path))
            scored[y] = (
                log_p / length_penalty(torch.tensor(length + 1), alpha).item()
            )
    return scored


for alpha in (0.0, 0.6, 3.0, 8.0):
    scored = everything_scored(alpha)
    found = scored[tuple(search(beam=12, alpha=alpha)[0])]  # aaa and aab are equal
    assert math.isclose(found, max(scored.values()), rel_tol=1e-5)
print("a beam of 12 finds the best of", len(scored), "sequences for every alpha")

# %% [markdown]
# Look for where the winner changes as $\alpha$ grows.

# %% mystnb={"image": {"alt": "Score of five sequences against the exponent alpha from 0 to 8. The short sequence b leads at first; in the middle aa overtakes it, near the right edge aaa."}}
alphas = torch.linspace(0, 8, 60).tolist()
curves = {y: [everything_scored(alpha)[y] for alpha in alphas] for y in scored}
figure, axis = plt.subplots()
for y in [(), (1,), (2,), (1, 1), (1, 1, 1)]:
    axis.plot(alphas, curves[y], label="".join("_ab"[k] for k in y) or "(empty)")
axis.axvline(0.6, color="grey", ls=":")
axis.set(xlabel="α", ylabel="log P / lp, nats")
axis.legend()
plt.show()

# %%
winners = [max(curves, key=lambda y: curves[y][i]) for i in range(len(alphas))]
assert winners[0] == (2,)
assert len(winners[-1]) > len(winners[0])
changed = alphas[next(i for i, y in enumerate(winners) if y != (2,))]
glue(changed=changed)
wide = milliseconds(lambda: search(beam=4, alpha=0.6))
slow = milliseconds(lambda: beam_naive(next_log_p, 4, 0.6, LIMIT))
print(f"beam of 4: tensors {wide:.2f} ms, lists {slow:.2f} ms")


# %% [markdown]
# The short `b` wins up to $\alpha \approx$ {glue:text}`changed:.1f`. In this toy the paper's 0.6 (dotted) changes nothing. (On one toy sentence lists are the faster code; tensors pay off with a batch and a model.)
#
# ## The model, proven
#
# `paperwalk.transformer.Transformer` is these pieces in this order. First against our own loops: embeddings, two encoder layers, two decoder layers, the tied output, on a batch whose pairs have different
# lengths. Padding is cut off before the loops see it, so this proves the masks as well.
#
# {source:transformer}

# %%
def encoder_naive(block, x):
    x = norm_naive(block.norm1, x + multi_head_naive(block.attention, x, x))
    return norm_naive(block.norm2, x + ffn_naive(block.mlp, x))


def transformer_naive(model, source, target):
    logits = []
    for s, t in zip(source, target, strict=True):
        x, y = (embed_naive(model, row[row != 0]) for row in (s, t))
        for block in model.encoder:
            x = encoder_naive(block, x)
        for block in model.decoder:
            y = decoder_naive(block, y, x)
        logits.append(y @ model.embedding.weight.T)
    return torch.cat(logits)


# %% tags=["nbval-check-output"]
def randomise(model, std=0.1):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * std)
    return model.eval()


torch.manual_seed(0)
randomise(toy)
source, target = torch.randint(3, 101, (2, 3, 6))
target[:, 0], source[1, 3:], target[0, 4:], target[2, 1:] = 1, 0, 0, 0
ours, naive = lambda s, t: toy(s, t)[t != 0], partial(transformer_naive, toy)
rung = ladder.prove(
    "Transformer", "naive loops", ours, naive, source, target, shared=toy
)
assert rung.n_gradients == len(list(toy.parameters()))
print(
    "logits of", int((target != 0).sum()), "tokens,", rung.n_gradients, "gradients"
)


# %% [markdown]
# Next, torch.nn.Transformer between our embeddings. One departure of its own: it puts one more layer norm after each stack, which a post-norm stack does not have
# ([pytorch issue 24930](https://github.com/pytorch/pytorch/issues/24930)). We leave those out.

# %%
class TorchTransformer(nn.Module):
    def __init__(self, d, n, f, layers):
        super().__init__()
        options = {"dropout": 0.0, "batch_first": True, "layer_norm_eps": 1e-6}
        encoder = nn.TransformerEncoderLayer(d, n, f, **options)
        decoder = nn.TransformerDecoderLayer(d, n, f, **options)
        parts = {
            "custom_encoder": nn.TransformerEncoder(
                encoder, layers, enable_nested_tensor=False
            ),
            "custom_decoder": nn.TransformerDecoder(decoder, layers),
        }
        self.embedding = nn.Embedding(101, d)
        self.stacks = nn.Transformer(d, n, batch_first=True, **parts)

    def forward(self, source, target):
        d, E = self.embedding.embedding_dim, self.embedding
        x, y = (
            E(z) * d**0.5 + positions_naive(z.shape[1], d) for z in (source, target)
        )
        later = ~causal_mask(target.shape[1], target.shape[1])
        hidden = {"src_key_padding_mask": source == 0, "tgt_mask": later}
        hidden |= {"memory_key_padding_mask": source == 0}
        out = self.stacks(x, y, tgt_key_padding_mask=target == 0, **hidden)
        return out @ E.weight.T


# %% tags=["nbval-check-output"]
theirs, against = randomise(TorchTransformer(32, 4, 64, 2)), "torch.nn.Transformer"
names = lambda t: published.from_torch(
    {name.removeprefix("stacks."): tensor for name, tensor in t.items()}
)
rung = ladder.prove(
    "Transformer", against, toy, theirs, source, target, convert=names
)
assert rung.n_gradients == len(list(toy.parameters()))
print(
    "equal to torch.nn.Transformer, masks and all:", rung.n_gradients, "gradients"
)

# %% [markdown]
# And transformers' Marian, in which many translation models are published. Its sinusoids put all sines first and all cosines after them. That is our model with its channels in another
# order, so the converter reorders the channels of every weight. And it does not train the row of the padding token on the input side (`padding_idx`); for the comparison we switch that off.

# %%
import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def marian(config):
    parts = {"layers": config.n_layers, "ffn_dim": config.d_mlp}
    parts["attention_heads"] = config.n_heads
    both = {f"{p}_{k}": n for p in ("encoder", "decoder") for k, n in parts.items()}
    switches = dict.fromkeys(
        ("scale_embedding", "static_position_embeddings"), True
    )
    ids = {"pad_token_id": 0, "decoder_start_token_id": 1, "eos_token_id": 2}
    sizes = {"vocab_size": config.vocab_size, "d_model": config.d_model}
    sizes |= {
        "activation_function": "relu",
        "dropout": 0.0,
        "forced_eos_token_id": None,
    }
    theirs = transformers.MarianMTModel(
        transformers.MarianConfig(**both, **switches, **ids, **sizes)
    )
    for part in (theirs.model.encoder, theirs.model.decoder):
        part.embed_tokens.padding_idx = None
    return theirs.eval()


# %% tags=["nbval-check-output"]
class MarianLogits(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.marian = marian(config)

    def forward(self, source, target):
        masks = {
            "attention_mask": source != 0,
            "decoder_attention_mask": target != 0,
        }
        masks = {name: mask.long() for name, mask in masks.items()}
        return self.marian(source, decoder_input_ids=target, **masks).logits


config = TransformerConfig(vocab_size=101, norm_eps=1e-5, **toy_sizes)
names = lambda t: published.marian_names({k[7:]: v for k, v in t.items()})
ours, theirs = Transformer(config).eval(), randomise(MarianLogits(config))
against = "transformers Marian"
rung = ladder.prove(
    "Transformer", against, ours, theirs, source, target, convert=names
)
assert rung.n_gradients == len(list(ours.parameters()))
print("equal to Marian with its channels reordered:", rung.n_gradients, "gradients")

# %%
ladder


# %% [markdown]
# Every row is within single precision. `Transformer.from_pretrained` reads Marian's published files the same way, from a folder or from the hub.
#
# ## Counting on paper
#
# How large are the paper's models? Table 3 gives 65 million parameters for base ($N = 6$ layers, $d_\text{model} = 512$, $d_\text{ff} = 2048$) and 213 million for big
# ($d_\text{model} = 1024$, $d_\text{ff} = 4096$), with one vocabulary of "about 37000" tokens for both languages (Section 5.1).

# %%
def count(d, f, layers, vocabulary):
    attention = 4 * d * d + 4 * d
    ffn, norm = 2 * d * f + f + d, 2 * d
    encoder = attention + ffn + 2 * norm
    decoder = 2 * attention + ffn + 3 * norm
    return vocabulary * d + layers * (encoder + decoder)


# %% tags=["nbval-check-output"]
paper = {"base": 65e6, "big": 213e6}
for name, stated in paper.items():
    config = getattr(TransformerConfig, name)()
    with torch.device("meta"):
        n = sum(p.numel() for p in Transformer(config).parameters())
    assert n == count(config.d_model, config.d_mlp, config.n_layers, 37_000)
    print(f"{name:5} {n:,d}, the paper {stated / 1e6:.0f}M: {n / stated - 1:+.1%}")


# %% [markdown]
# On paper and by torch they are equal; against Table 3 base is 3 % short and big 0.6 % over. Rounding cannot explain it, and neither can our biases in the attention, 0.04 million of base. The size of the vocabulary
# might: see exercise 1. FLOPs follow from the same sizes: each weight of a layer is used once for each token and counts as two, and attention adds $4 t s d$.

# %%
def flops(config, s, t):
    d, f = config.d_model, config.d_mlp
    encoder = s * (8 * d**2 + 4 * d * f) + 4 * s * s * d
    cross = 4 * (t + s) * d**2 + 4 * t * s * d
    decoder = t * (8 * d**2 + 4 * d * f) + 4 * t * t * d + cross
    return config.n_layers * (encoder + decoder) + 2 * t * d * config.vocab_size


# %% tags=["nbval-check-output"]
with FlopCounterMode(display=False) as counter:
    toy(torch.ones(1, 25, dtype=torch.long), torch.ones(1, 30, dtype=torch.long))
assert counter.get_total_flops() == flops(toy.config, 25, 30)
pair = flops(TransformerConfig.base(), 25, 25)
head = 2 * 25 * 512 * 37_000
share = f"{head / pair:.0%} of it the output"
print(f"base, 25 tokens to 25: {pair / 1e9:.1f} GFLOPs,", share)

# %% [markdown]
# The formula equals torch's count. Memory, in training: weights, gradients and Adam's two moments, four numbers of 4 bytes a parameter.

# %% tags=["nbval-check-output"]
optimiser = experiment.adam(toy)
toy(source, target).sum().backward()
optimiser.step()
held = [p for p in toy.parameters()] + [p.grad for p in toy.parameters()]
held += [m for state in optimiser.state.values() for m in state.values() if m.ndim]
measured = sum(tensor.numel() * 4 for tensor in held)
assert measured == 16 * count(32, 64, 2, 101)
for name in paper:
    config = getattr(TransformerConfig, name)()
    n = count(config.d_model, config.d_mlp, config.n_layers, 37_000)
    print(f"{name}: {16 * n / 1e9:.1f} GB before the first activation")

# %% [markdown]
# ## Training
#
# Does it learn? Our small model has two layers on each side, width 64 and four heads. We take the paper's Adam ($\beta_1 = 0.9$, $\beta_2 = 0.98$), its dropout and label smoothing of 0.1, [Eq. 3](#eq-transformer-3), and batches of words of like
# length, as in Section 5.1. For a run this short the learning rate goes down to zero at the end, and, unlike the paper, we clip gradients at norm 1.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
model = experiment.make_variant("4 heads")
n_parameters = sum(p.numel() for p in model.parameters())
assert n_parameters == count(64, 256, 2, 101)
print(f"{n_parameters:,} parameters, {len(examples):,} pairs of spelling and sound")

# %%
steps = progress(range(experiment.STEPS), "training")
losses = experiment.train_small(model, examples, steps, seed=0)

# %%
held_out = splits.valid[::6]
per, wer = experiment.error_rates(model, tokenizer, held_out)
assert per < 0.3
glue(per=100 * per, wer=100 * wer, words=len(held_out))
a_pass = experiment.make_batches(examples, experiment.BATCH_TOKENS, seed=0)
glue(last_loss=sum(losses[-50:]) / 50, passes=experiment.STEPS / len(a_pass))


# %% [markdown]
# What would a model reach that never looks at a letter? It can count which phoneme follows which two. We count in the training pairs; such a model, smoothed as the target asks, has this loss:

# %%
def phonemes_in_context(examples):  # the two before and the next, as one number
    rows = [
        ids for _, ph in examples for ids in zip([0, *ph], ph, ph[1:], strict=False)
    ]
    return torch.tensor(rows) @ torch.tensor([101**2, 101, 1])


# %%
counts = phonemes_in_context(examples).bincount(minlength=101**3).view(-1, 101)
share = counts / counts.sum(1, keepdim=True).clamp(min=1)
p = 0.9 * share + 0.1 / 101
entropies = -(p * p.log()).sum(1)
no_letters = ((entropies * counts.sum(1)).sum() / counts.sum()).item()
p = (counts + 0.1) / (counts + 0.1).sum(1, keepdim=True)  # for words held out
strangers = phonemes_in_context(experiment.make_examples(held_out, tokenizer))
counted = -p.flatten()[strangers].log().mean().item()
assert counted < no_letters < know_frequencies
glue(counted=counted)

# %% [markdown]
# In the curve, look for where it leaves the line of that model behind.

# %% mystnb={"image": {"alt": "Training loss against step: from 5 it falls steeply, crosses a dashed line at 2.9, the loss of a model that counts phonemes and sees no letters, and goes on slowly towards 1.3, above a dotted floor at 0.78."}}
q = torch.full((101,), 0.1 / 101)
q[0] += 0.9
floor = -(q * q.log()).sum().item()
smooth = torch.tensor(losses).unfold(0, 20, 1).mean(-1)
figure, axis = plt.subplots()
axis.plot(losses, alpha=0.25, label="each batch")
axis.plot(range(19, len(losses)), smooth, label="mean of 20 batches")
label = "two phonemes before, no letters"
axis.axhline(no_letters, color="grey", ls="--", label=label)
axis.axhline(floor, color="grey", ls=":", label="entropy of the smoothed target")
axis.set(xlabel="step", ylabel="label-smoothed loss, nats", ylim=(0, 6))
axis.legend()
plt.show()
assert floor < smooth[-1] < no_letters
glue(no_letters=no_letters, floor=floor)

# %% [markdown]
# Counting phonemes alone comes as far as {glue:text}`no_letters:.2f` nats; well below it the model must be using the letters. The floor, {glue:text}`floor:.2f` nats, is what smoothing leaves to a perfect model of a language with one pronunciation a word; ours cannot quite reach it. After {glue:text}`passes:.1f` passes over the pairs the loss is {glue:text}`last_loss:.2f`;
# the phoneme error rate on {glue:text}`words` words that the model has never seen (every sixth of those held out for validation) is {glue:text}`per:.0f` %, the word error rate {glue:text}`wer:.0f` %. The curve has only begun; a longer training follows below.
#
# What does it say? Six words of the test split, chosen by us:

# %%
words = [
    "lightning",
    "hemisphere",
    "knoxville",
    "psychical",
    "examiner",
    "rethought",
]
assert all(word in {pair.source for pair in splits.test} for word in words)
said = experiment.pronounce(model, tokenizer, words)
for word, phones in zip(words, said, strict=True):
    right = ", ".join(everything[word])
    print(f"{word:11} {' '.join(phones):32} right: {right}")

# %% [markdown]
# Is a search of 4 beginnings with $\alpha = 0.6$ better than the greedy one? And do transformers' `generate` and ours agree, token for token, on these weights? (Their length penalty is another formula; without one, they must.)

# %%
some = held_out[:200]
sources = [pair.source for pair in held_out]
one, four = (
    experiment.pronounce(model, tokenizer, sources, beam=b) for b in (1, 4)
)
beamed = phoneme_error_rate(four, experiment.answers(held_out, tokenizer))
assert abs(beamed - per) < 0.05
changed = sum(a != b for a, b in zip(one, four, strict=True))
glue(beamed=100 * beamed, gain=100 * (per - beamed), beam_changed=changed)

# %% tags=["nbval-check-output"]
theirs = marian(model.config)
weights = published.to_marian(model.state_dict(), dict(theirs.named_parameters()))
loaded = theirs.load_state_dict(weights, strict=False)
left = ("embed_tokens", "embed_positions", "lm_head", "final_logits_bias")
assert all(any(part in name for part in left) for name in loaded.missing_keys)
assert loaded.unexpected_keys == []  # left: copies of E, sinusoids, a bias of 0
for module in theirs.modules():
    if isinstance(module, nn.LayerNorm):
        module.eps = model.config.norm_eps
source = pad_batch([tokenizer.encode_source(pair.source) for pair in some[:40]])
common = {
    "attention_mask": (source != 0).long(),
    "max_length": 60,
    "do_sample": False,
}
for beam in (1, 2, 4):
    rule = {"length_penalty": 0.0, "early_stopping": "never"} if beam > 1 else {}
    ids = theirs.generate(source, num_beams=beam, **rule, **common).tolist()
    ids = [row[1 : row.index(2)] for row in ids]
    assert model.beam_search(source, beam=beam, alpha=0.0, max_length=59) == ids
    assert beam > 1 or model.greedy(source) == ids
    print(f"beam of {beam}: 40 words equal to transformers, token for token")

# %% [markdown]
# On the held-out words the greedy search has a phoneme error rate of {glue:text}`per:.1f` %, the beam {glue:text}`beamed:.1f` %. The beam is better, by {glue:text}`gain:.1f` points in this one run; it changed {glue:text}`beam_changed` of the {glue:text}`words` words.
#
# ## Trained for longer
#
# The same module with four layers on each side and width 128, twelve passes over the pairs, by one command:
#
# `paperwalk train transformer --recipe cmudict-cpu --precision fp32`
#
# (`--data FILE` trains it on other pairs of texts, tab-separated or JSON lines: a translation, or articles and their summaries. Add `--unit words` where letters are too small a unit, and a `--batch-size` of at least the longest text.) The book comes with the result, in half precision, and with a card that says where each number comes from.

# %% tags=["nbval-check-output"]
folder = checkpoint("transformer-cmudict")
trained = Transformer.from_pretrained(folder).eval()
card = json.loads((folder / "card.json").read_text())
assert PairTokenizer.load(folder) == tokenizer
n_trained = sum(p.numel() for p in trained.parameters())
c = trained.config
assert n_trained == count(c.d_model, c.d_mlp, c.n_layers, c.vocab_size)
print(f"{n_trained:,} parameters, {c.n_layers} + {c.n_layers} layers")

# %% [markdown]
# Does it do here what its card says? We take every thirtieth word of the test split; the card has the error rates on all of them, with intervals from resampling the words.

# %%
few = splits.test[::30]
here, _ = experiment.error_rates(trained, tokenizer, few, beam=4)
whole = card["metrics"]
stressed = whole["phoneme error rate, beam 4, stress counted"]["value"]
assert abs(here - stressed) < 0.03
assert here < per / 1.5

# %%
best, wrong = (whole[f"{unit} error rate, beam 4"] for unit in ("phoneme", "word"))
low, high = best["interval"]
glue(best=100 * best["value"], best_low=100 * low, best_high=100 * high)
glue(greedy_per=100 * whole["phoneme error rate, greedy"]["value"])
glue(wrong=100 * wrong["value"], n_test=best["n"], n_few=len(few))
glue(stressed=100 * stressed, here=100 * here, minutes=card["cpu_seconds"] / 60)

# %% [markdown]
# So far a vowel with the wrong stress digit was a wrong phoneme. Counted so, the card says {glue:text}`stressed:.1f` % for all {glue:text}`n_test` test words, and we measured {glue:text}`here:.1f` % on {glue:text}`n_few` of them. The field mostly counts the 39 phonemes alone, without stress. Then it is {glue:text}`best:.1f` % with a beam of four (95 % interval
# {glue:text}`best_low:.1f` to {glue:text}`best_high:.1f`), {glue:text}`greedy_per:.1f` % greedily, and {glue:text}`wrong:.0f` % of the words have an error somewhere. Training took {glue:text}`minutes:.0f` minutes of one core.
#
# Look at the two curves at equal steps, and at where each ends.

# %% mystnb={"image": {"alt": "Label-smoothed training loss against step, logarithmic steps. At equal steps the short run is lower; it ends near 1.3 after 1,200 steps. The long one goes on falling to 1.0 after 24,396, above a dotted floor at 0.78."}}
figure, axis = plt.subplots()
axis.plot(range(19, len(losses)), smooth, label="this page, 2 + 2 layers of 64")
steps, values = zip(*card["curve"], strict=True)
axis.plot(steps, values, label="the shipped model, 4 + 4 layers of 128")
axis.axhline(floor, color="grey", ls=":", label="entropy of the smoothed target")
axis.set(xscale="log", xlabel="step", ylabel="label-smoothed loss, nats")
axis.legend()
plt.show()
assert values[-1] < smooth[-1]

# %% [markdown]
# At equal steps the short run is ahead, although its model is smaller. Likely because its learning rate rises in 300 steps instead of 1,000, to a peak 2.6 times as high, and falls to zero by 1,200. (A point of the long curve is the mean of the 122 steps before it.) Here are the words from above, said by the longer trained model:

# %%
said = experiment.pronounce(trained, tokenizer, words, beam=4)
for word, phones in zip(words, said, strict=True):
    right = ", ".join(everything[word])
    print(f"{word:11} {' '.join(phones):32} right: {right}")


# %% [markdown]
# ## Which letter makes which sound
#
# Nobody told the model which letter makes which sound. Does it look there? Each of the shipped model's four decoder layers has its own cross-attention. (What it sees at a letter's place is an encoder state, which already mixes in the letters around.) If a layer looks at the letters of the sound that is being said, the place it looks at moves on with the number of the phoneme. We average its heads and measure the correlation of the two:

# %%
def alignments(word, phones):  # layers, phonemes and the end, letters
    source = torch.tensor([tokenizer.encode_source(word)])
    target = torch.tensor([tokenizer.encode_target(" ".join(phones))[:-1]])
    return trained.cross_attention_maps(source, target)[:, 0].mean(1)


slopes = []
unseen = [pair.source for pair in splits.test[::60]]
for word, phones in zip(
    unseen, experiment.pronounce(trained, tokenizer, unseen), strict=True
):
    if len(phones) > 3:
        places = alignments(word, phones) @ torch.arange(len(word)).float()
        number = torch.arange(len(phones) + 1).float()
        slopes.append([torch.stack([x, number]).corrcoef()[0, 1] for x in places])

# %%
by_layer = torch.tensor(slopes).nanmean(0).tolist()  # a constant has none
best_layer = by_layer.index(max(by_layer))
assert max(by_layer) > 0.8
print("correlation by layer:", [round(each, 2) for each in by_layer])
glue(monotone=max(by_layer), best_layer=best_layer + 1, n_slopes=len(slopes))

# %% [markdown]
# Averaged over {glue:text}`n_slopes` test words, layer {glue:text}`best_layer` follows the letters best, with a correlation of {glue:text}`monotone:.2f`. Each row below is a phoneme as the model produces it, each column a letter. Look for a diagonal, and for phonemes that look at several letters.

# %% mystnb={"image": {"alt": "Cross-attention of three words as heat maps, phonemes against letters. The bright cells run along the diagonal from the upper left to the lower right."}}
figure, axes = plt.subplots(1, 3, figsize=(7.4, 3.0))
for axis, i in zip(axes, (0, 1, 4), strict=True):
    word, phones = words[i], said[i]
    axis.imshow(alignments(word, phones)[best_layer], vmin=0, aspect="auto")
    axis.set_xticks(range(len(word)), word)
    axis.set_yticks(range(len(phones) + 1), [*phones, "end"], fontsize=8)
    axis.set(xlabel="letter", ylabel="phoneme")
    axis.grid(False)
plt.show()

# %% [markdown]
# It reads from left to right, and "x" is looked at twice, for G and for Z. The other layers look elsewhere: the first hardly follows the letters at all.
#
# ## Heads, scale and places
#
# Table 3 varies the base model one thing at a time. Rows (A): how many heads, at constant cost? Row (E): learned positions instead of sinusoids? We add what the paper argues for but does not
# measure: no $\sqrt{d_k}$, and no positions at all. Each variant of our small model is trained like the one above, with three seeds. `python -m paperwalk.experiments.transformer` makes the 27 runs
# in about 25 minutes (those that its .json does not hold; remove the file to make all again), and the page reads its numbers. The run above is one of them:

# %%
stored = json.loads(experiment.RESULTS.read_text())
keys = ("loss", "per")
runs = {
    name: torch.tensor(
        [
            [stored[f"{name} {seed}"][key] for key in keys]
            for seed in experiment.SEEDS
        ]
    )
    for name in experiment.VARIANTS
}
assert abs(per - runs["4 heads"][:, 1].mean()) < 0.03
loss = {name: values[:, 0].mean().item() for name, values in runs.items()}
spread = {name: values[:, 0].std().item() for name, values in runs.items()}
assert min(loss["1 head"], loss["16 heads"]) > loss["8 heads"]
assert loss["no positions"] > 2 * loss["learned positions"]
assert loss["1 head, unscaled"] > loss["4 heads, unscaled"] > 1.5 * loss["4 heads"]

# %% [markdown]
# The loss is that of words held out, in nats a phoneme, without smoothing: the logarithm of the paper's perplexity. Look, on the left, whether the model gets worse with fewer heads, with more, or with both. On the right, for what the model cannot do without.

# %% mystnb={"image": {"alt": "Left, held-out loss against 1 to 16 heads with error bars over three seeds: highest with one head, lowest with two and four, rising again at 16. Right, bars: four heads and learned positions near 0.55, no positions 1.4, unscaled with four heads 1.0, one head 0.57, one head unscaled 2.6."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.2), width_ratios=(2, 3))
heads = {1: "1 head"} | {n: f"{n} heads" for n in (2, 4, 8, 16)}
means, errors = ([f[name] for name in heads.values()] for f in (loss, spread))
left.errorbar(list(heads), means, errors, marker="o", capsize=3)
left.set(xscale="log", xlabel="heads", ylabel="loss, nats a phoneme")
left.set_xticks(list(heads), list(heads))
left.minorticks_off()
bars = ["4 heads", "learned positions", "no positions", "4 heads, unscaled"]
bars += ["1 head", "1 head, unscaled"]
errors = [spread[name] for name in bars]
right.barh(bars, [loss[name] for name in bars], xerr=errors, capsize=3)
right.invert_yaxis()
right.set(xlabel="loss, nats a phoneme")
plt.show()

# %%
error = {name: 100 * values[:, 1].mean().item() for name, values in runs.items()}
gap = {name: loss[name] - loss["4 heads"] for name in loss}
glue(base_loss=loss["4 heads"], base_per=error["4 heads"])
glue(one_gap=gap["1 head"], one_per=error["1 head"])
glue(many_gap=gap["16 heads"], many_per=error["16 heads"])
glue(learned_gap=gap["learned positions"], learned_per=error["learned positions"])
glue(none_gap=gap["no positions"], none_per=error["no positions"])
glue(root_gap=gap["4 heads, unscaled"], root_per=error["4 heads, unscaled"])
glue(one_root_gap=gap["1 head, unscaled"], one_root_per=error["1 head, unscaled"])
glue(noise=max(spread[name] for name in heads.values()))

# %% [markdown]
# | | paper, development set: ln of the perplexity a word piece, BLEU | ours, loss and phoneme error rate |
# |---|---|---|
# | base | 1.59, 25.8 (8 heads) | {glue:text}`base_loss:.2f`, {glue:text}`base_per:.0f` % (4 heads) |
# | one head | + 0.07, 24.9 | + {glue:text}`one_gap:.3f`, {glue:text}`one_per:.0f` % |
# | most heads | + 0.02, 25.4 (32 heads, $d_k = 16$) | + {glue:text}`many_gap:.3f`, {glue:text}`many_per:.0f` % (16 heads, $d_k = 4$) |
# | learned positions | 0.00, 25.7 | + {glue:text}`learned_gap:.3f`, {glue:text}`learned_per:.0f` % |
# | no positions | | + {glue:text}`none_gap:.2f`, {glue:text}`none_per:.0f` % |
# | no $\sqrt{d_k}$ | | + {glue:text}`root_gap:.2f`, {glue:text}`root_per:.0f` % |
# | one head, no $\sqrt{d_k}$ | | + {glue:text}`one_root_gap:.2f`, {glue:text}`one_root_per:.0f` % |
#
# In the loss both rows come out as in the paper, where too few heads are worse and quality "also drops off with too many heads". One head and sixteen are worse than the numbers between by about twice the standard deviation over seeds
# ({glue:text}`noise:.3f` at most); two heads are as good as four, and learned positions differ by about the noise. In the error rate one head and sixteen are worse too, at the edge of the noise of three seeds; the paper's own differences are below one BLEU. Perhaps ours are
# smaller because a phoneme depends on a few letters nearby, and one pattern of looking goes a long way.
#
# The square root is another matter. Without it the small model learns badly, and with one head of width 64 it ends near what a count of the two phonemes before gives, {glue:text}`counted:.2f` on the same words. One likely reason: its attention is
# peaked from the first step, on letters chosen at random. We tried one learning rate and one initialisation; smaller weights would do the work of the root. Without positions the source is a bag of letters, and only the causal mask tells the target its order; the error is what an anagram deserves.
#
# ## Where this differs from the paper
#
# | | paper or official code | here | why |
# |---|---|---|---|
# | biases in attention | none | four | as every library; 0.06 % of base |
# | sinusoids | formula alternates sine and cosine; the code puts sines first and divides the exponent by $d/2 - 1$ instead of $d/2$ | the formula | the paper's text; Marian's order is converted |
# | start of the target | the code shifts in a vector of zeros | a start token | as libraries do |
# | label smoothing | the code spreads $\epsilon$ over the $v - 1$ wrong tokens | over all $v$ | as its source {cite:p}`szegedy2016` and torch |
# | norm | post in the paper; the code moved to pre-norm soon after | post, `norm="pre"` on request | the paper |
# | end of a beam | the code accepts an end among the $2 \cdot 4$ best candidates | among the 4 best | as transformers, to compare token for token |
# | decoding | the code caches keys and values | computes each prefix again | words are short; see the chapter on GPT for a cache |
# | gradients | not mentioned; the official settings do not clip | clipped at norm 1 | short runs with a high rate |
# | learning rate | [Eq. 3](#eq-transformer-3), warm-up of 4,000 in 100,000 steps | the same, warm-up of 300 in 1,200 steps (shipped: 1,000 in 24,396); over the last 40 % it falls to zero in a line | a short run |
# | last steps | averages the last 5 checkpoints, for big 20 | the last one | one run, one file |
# | initialisation | not mentioned | Xavier; embeddings of variance $1/d$ | one matrix, two ends |
# | positions | sinusoids go on for ever | end at `block_size` | a table in memory |
# | beam scores | Wu et al. add a coverage penalty | none | the paper names the length penalty only |
# | model | 6 layers of width 512 (base) | 2 of 64; the shipped one 4 of 128 | one thread |
# | batch | about 25,000 source and 25,000 target tokens | 512 tokens, padding included | one thread |
# | vocabulary | about 37,000 byte pairs for two languages | 101: letters and phonemes | the task |
# | data | 4.5 million sentence pairs, BLEU | 121,668 pairs of spelling and sound, phoneme error rate | one thread |
#
# ## Exercises
#
# :::{exercise} The vocabulary of Table 3
# :label: ex-transformer-vocabulary
#
# Table 3 says 65 million parameters for base and 213 million for big, both rounded. Which sizes of the vocabulary are possible for each? Is there one for both?
# :::
#
# :::{solution-start} ex-transformer-vocabulary
# :class: dropdown
# :::

# %% tags=["nbval-check-output"]
ranges = {}
for name, (d, f, millions) in {
    "base": (512, 2048, 65),
    "big": (1024, 4096, 213),
}.items():
    layers = count(d, f, 6, 0) - 6 * 3 * 4 * d  # without biases in the attention
    ranges[name] = [round((1e6 * (millions + r) - layers) / d) for r in (-0.5, 0.5)]
    print(f"{name}: {ranges[name][0]:,d} to {ranges[name][1]:,d} tokens")
assert ranges["big"][1] < 37_000 < ranges["base"][0]

# %% [markdown]
# The ranges are those printed, with the one matrix counted once and no biases in the attention. No size fits both: base needs about 41,000 tokens and big about 36,000; the "about 37000" of the text lies between them. The other rows of Table 3 that change the width or the layers agree with base: they and base share the range from 41,003 to 41,209. We know no explanation.
#
# :::{solution-end}
# :::
#
# :::{exercise} The floor of the smoothed loss
# :label: ex-transformer-floor
#
# A perfect model of a language without ambiguity still has a label-smoothed loss above zero. How large is it for $\epsilon = 0.1$ and the paper's $v = 37000$, and which share of it is due to the $v - 1$ wrong tokens?
# :::
#
# :::{solution-start} ex-transformer-floor
# :class: dropdown
# :::
#
# The least value of $-\sum_k q(k) \log p(k)$ over all $p$ is reached at $p = q$. It is the entropy of $q$.

# %% tags=["nbval-check-output"]
v = 37_000
low, high = 0.1 / v, 0.9 + 0.1 / v
wrong = -(v - 1) * low * math.log(low)
least = wrong - high * math.log(high)
logits = torch.full((1, 1, v), math.log(low))
logits[..., 5] = math.log(high)
smoothed = label_smoothing_loss(logits, torch.tensor([[5]]), pad_id=0)
assert math.isclose(smoothed, least, rel_tol=1e-4)
print(f"{least:.3f} nats, {wrong / least:.0%} of it the wrong tokens")

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} A beam of one
# :label: ex-transformer-beam
#
# Is beam search with one beginning the same as greedy search? Always? Think of $\alpha$.
# :::
#
# :::{solution-start} ex-transformer-beam
# :class: dropdown
# :::
#
# With $\alpha = 0$ it is: once the end is the best next token, what goes on from the second best can only become less probable. With $\alpha > 0$ the one beginning goes on, and a longer sequence can still win by its penalty.

# %% tags=["nbval-check-output"]
source = pad_batch([tokenizer.encode_source(pair.source) for pair in some[:60]])
greedy = model.greedy(source)
same = {
    alpha: sum(
        a == b
        for a, b in zip(
            greedy, model.beam_search(source, beam=1, alpha=alpha), strict=True
        )
    )
    for alpha in (0.0, 20.0)
}
assert same[0.0] == 60
assert same[20.0] < 60
print("alpha 0: all 60 words equal; alpha 20: not all")


# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Spot the bug: a mask from the wrong sentence
# :label: ex-transformer-bug-mask
#
# A widely read translation example of Keras built the mask of its decoder as below and gave it to the *cross*-attention. [Pull request 1046](https://github.com/keras-team/keras-io/pull/1046) named the mistake in 2022; [issue 1964](https://github.com/keras-team/keras-io/issues/1964) still reports it in 2024. Source and
# target were both filled up to 20 tokens, so the shapes fitted. It trained, and it translated, somewhat. What can target position $i$ see of the source? Which check of this chapter finds it?
# :::

# %%
def cross_mask_with_bug(source, target, pad=0):
    causal = causal_mask(target.shape[1], target.shape[1])
    return (
        padding_mask(target, pad) & causal
    )  # for queries of the target, keys of the source


# %% [markdown]
# :::{solution-start} ex-transformer-bug-mask
# :class: dropdown
# :::
#
# Only the first $i$ tokens of the source: the first word of the translation may read the first word of the sentence, no more. And how much of the source is visible depends on the length of the *target*, while the source's own padding is seen. The
# comparisons with the naive loops and with torch.nn.Transformer find it: there the pairs have different lengths, and each query may see the whole source. The smallest check: change the last source token, and the first logits must change.

# %% tags=["nbval-check-output"]
block = DecoderBlock(32, 4, 64, norm="post").eval()
source, target = torch.randint(3, 101, (2, 1, 6))
states, changed = torch.randn(2, 1, 6, 32)
changed[:, :-1] = states[:, :-1]  # only the last source position differs
x = torch.randn(1, 6, 32)
for name, mask in {
    "with the bug": cross_mask_with_bug(source, target),
    "right": padding_mask(source, 0),
}.items():
    out = [block(x, y, causal_mask(6, 6), mask)[0, 0] for y in (states, changed)]
    sees = not torch.equal(*out)
    assert sees == (name == "right")
    print(f"{name}: the first target position sees the end of the source: {sees}")

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Spot the bug: one norm too many
# :label: ex-transformer-bug-norm
#
# torch.nn.Transformer ends each stack with a layer norm, although a post-norm layer already ends with one ([issue 24930](https://github.com/pytorch/pytorch/issues/24930), open since 2019). At initialisation, what does the second norm change? And after training?
# :::
#
# :::{solution-start} ex-transformer-bug-norm
# :class: dropdown
# :::
#
# At initialisation nothing, up to $\epsilon$: what comes out of a norm with gain 1 and bias 0 already has mean 0 and variance 1. No comparison of the outputs of an untrained model finds it; one of the gradients does, and so does a count of parameters. After training the first norm has gains and biases of its own, the second takes mean
# and overall scale out again, and weights trained with one norm give other results with two.

# %% tags=["nbval-check-output"]
first, second = nn.LayerNorm(32), nn.LayerNorm(32)
x = torch.randn(4, 32)
untrained = torch.allclose(second(first(x)), first(x), atol=1e-4)
probe = torch.randn(4, 32)
one, two = (
    torch.autograd.grad((out * probe).sum(), first.weight)[0]
    for out in (first(x), second(first(x)))
)
assert (one - two).norm() > 0.05 * one.norm()  # the gradients tell them apart
randomise(first, std=0.5)
trained = torch.allclose(second(first(x)), first(x), atol=0.1)
assert untrained
assert not trained
print(
    "a second norm changes nothing before training:", untrained, "- after:", trained
)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## Recap
#
# - Attention weighs values by how well keys fit a query; for random queries and keys $\sqrt{d_k}$ keeps the scores' variance at 1 whatever the width ([Eq. 1](#eq-transformer-1)).
# - Encoder layers look at the source, decoder layers at the target so far and at the encoder's output; masks hide padding, future, or both.
# - Between attentions works a two-layer network on each position ([Eq. 2](#eq-transformer-2)); post-norm is the paper, pre-norm starts with smaller gradients near the output.
# - One matrix embeds source and target and reads out the logits; sinusoids make a shift a rotation.
# - Label smoothing asks for probability $1 - \epsilon + \epsilon / v$; the learning rate rises, then falls ([Eq. 3](#eq-transformer-3)).
# - A beam finds sequences that greedy search misses; the length penalty lets longer ones win.
#
# Further reading: {cite:t}`xiong2020` on where the norm goes; {cite:t}`press2017` on weight tying; {cite:t}`wu2016` on beams and their penalties; the official code, tensorflow/tensor2tensor, of which
# `models/transformer.py` and `utils/beam_search.py` are the parts to read.
