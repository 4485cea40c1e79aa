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
# # Denoising Diffusion Probabilistic Models
#
# Spoil an image with a little noise, a thousand times, until nothing is left of it. Then learn to undo one such step. {cite:t}`ho2020` claim that this is enough to paint new
# images out of pure noise, better ones than most generators of their time. On CIFAR-10 the {term}`Fréchet distance` to the training images is 3.17 (their Table 1). And the network is
# trained by nothing but a squared error.
#
# We build the model from its equations: the process that adds the noise, its inverse, the loss and the bound behind it, two ways to sample, and the U-Net of their Appendix B. Each
# is checked against plain loops, and most against an independent library. Then we train a small one for half a minute, load one that was trained for longer, watch it paint digits, and
# measure how good they are with a classifier instead of admiring them.
#
# :::{admonition} Before you start
# Read the chapter on the [Transformer](transformer.md): attention and the sines and cosines of positions come from there. The [notation](../notation.md) is the book's, but for two letters: as in the paper, `t` is here the
# time, how often noise was added, and `s` an earlier time.
# After this chapter you can add noise of any strength in one step, say what the network is trained to predict and why, sample in a thousand steps or in twenty, and measure the result.
#
# This page took {run-time} to run on one thread.
# :::

# %% tags=["hide-input"]
import json
import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib import pyplot as plt
from torch import nn
from torch.distributions import Normal, kl_divergence

from paperwalk import ddpm, plot
from paperwalk.data import load
from paperwalk.ddpm import GaussianDiffusion, at_time, linear_schedule, to_signed
from paperwalk.experiments import ddpm as experiment
from paperwalk.nn.average import follow
from paperwalk.nn.convolution import ResidualBlock, SpatialAttention, time_embedding
from paperwalk.notebook import checkpoint, glue, milliseconds, progress
from paperwalk.published.ddpm import our_names
from paperwalk.quality import JUDGES, class_shares, frechet_distance
from paperwalk.samplers import ancestral, ddim, even_times
from paperwalk.testing import Ladder, refuses
from paperwalk.train.precision import fast_autocast
from paperwalk.train.recipes.ddpm import DDPMRecipe, estimated_bits
from paperwalk.train.task import generator
from paperwalk.unet import UNet, UNetConfig

torch.manual_seed(0)
plot.use_style()

# %% [markdown]
# ## Adding noise
#
# How does one destroy an image in small steps?
#
# Shrink it a little and add a little noise, so that a variance of 1 stays 1. This is the {term}`forward process`. Its step $t$ has its own variance $\beta_t$ of noise; the paper lets it grow evenly from $\beta_1 = 10^{-4}$ to $\beta_T = 0.02$ over $T = 1000$ steps (Section 4):
#
# (eq-ddpm-2)=
# $$
# q(\mathbf{x}_t \mid \mathbf{x}_{t-1}) = \mathcal{N}\bigl(\mathbf{x}_t;\ \sqrt{1 - \beta_t}\, \mathbf{x}_{t-1},\ \beta_t \mathbf{I}\bigr)
# \tag{2}
# $$
#
# $\mathbf{x}_0$ is the clean image, its pixels scaled from 0 … 255 to −1 … 1. $\mathcal{N}(\mathbf{x}; \boldsymbol{\mu}, \sigma^2 \mathbf{I})$ is the normal distribution of mean $\boldsymbol{\mu}$ whose coordinates are
# independent and have variance $\sigma^2$.
#
# To train on step 700 one need not take 699 steps. Shrinking and adding independent noise, again and again, is one shrinking and one noise. With $\alpha_t = 1 - \beta_t$ and $\bar{\alpha}_t = \prod_{s=1}^{t} \alpha_s$:
#
# (eq-ddpm-4)=
# $$
# q(\mathbf{x}_t \mid \mathbf{x}_0) = \mathcal{N}\bigl(\mathbf{x}_t;\ \sqrt{\bar{\alpha}_t}\, \mathbf{x}_0,\ (1 - \bar{\alpha}_t)\, \mathbf{I}\bigr)
# \tag{4}
# $$
#
# so $\mathbf{x}_t = \sqrt{\bar{\alpha}_t}\, \mathbf{x}_0 + \sqrt{1 - \bar{\alpha}_t}\, \boldsymbol{\epsilon}$ with standard normal noise $\boldsymbol{\epsilon}$. If the pixels have variance 1, $\bar{\alpha}_t$ is the share of the variance that is still the image's; we call it that throughout.

# %%
beta = linear_schedule()  # 1000 numbers, double precision


def q_sample_naive(x_0, t, epsilon):  # (eq-ddpm-4), one image after another
    noisy = []
    for image, steps, noise in zip(x_0, t.tolist(), epsilon, strict=True):
        alpha_bar = 1.0
        for b in beta[:steps].tolist():
            alpha_bar *= 1 - b
        noisy.append(alpha_bar**0.5 * image + (1 - alpha_bar) ** 0.5 * noise)
    return torch.stack(noisy)


# %% [markdown]
# How much of the image is left after all thousand steps? A guess: $\ln \bar{\alpha}_T \approx -\sum_t \beta_t$, and the mean of the betas is about 0.01. So about $e^{-10}$, and its root, which multiplies the pixels, below one percent.

# %% tags=["nbval-check-output"]
diffusion = GaussianDiffusion(beta)
left = diffusion.alpha_bar[1000].item()
assert math.exp(-11) < left < math.exp(-10)
assert math.sqrt(left) < 0.01
print(f"share of the image's variance after 1000 steps: {left:.1e}")

# %% [markdown]
# `diffusion.alpha_bar[t]` belongs to time `t`; entry 0 is the clean image. Is the jump really the same as the steps? First by simulation: one pixel of value 0.8, twenty thousand times, a thousand small steps.

# %% tags=["nbval-check-output"]
n, x, seen = 20_000, torch.full((20_000, 1, 1, 1), 0.8), {}
for t in range(1, 1001):
    x = diffusion.q_step(x, at_time(x, t), torch.randn_like(x))  # (eq-ddpm-2)
    if t in (10, 100, 300, 1000):
        seen[t] = x.mean().item(), x.var().item()
for t, (mean, variance) in seen.items():
    bar = diffusion.alpha_bar[t].item()
    # Four standard errors of a mean and of a variance over n draws.
    assert abs(mean - 0.8 * bar**0.5) < 4 * ((1 - bar) / n) ** 0.5
    assert abs(variance / (1 - bar) - 1) < 4 * (2 / n) ** 0.5
    print(f"t = {t}: mean {0.8 * bar**0.5:.2f}, variance {1 - bar:.2f}, as drawn")

# %% [markdown]
# Then exactly. One step turns a mean $m$ into $\sqrt{\alpha_t}\, m$ and a variance $v$ into $\alpha_t v + \beta_t$. That recursion must end at [Eq. 4](#eq-ddpm-4), whatever $t$ is:

# %%
mean, variance = 0.8, 0.0
for t, b in enumerate(beta.tolist(), start=1):
    mean, variance = math.sqrt(1 - b) * mean, (1 - b) * variance + b
    bar = diffusion.alpha_bar[t].item()
    assert math.isclose(mean, 0.8 * bar**0.5, rel_tol=1e-9)
    assert math.isclose(variance, 1 - bar, rel_tol=1e-9)

# %% [markdown]
# And the module against the loop above, and against diffusers, on real digits: those of MNIST {cite:p}`lecun1998`, 28 × 28 pixels, grey.

# %% tags=["nbval-check-output"]
import diffusers

ladder = Ladder()
data = experiment.RECIPE.images()  # pixels from 0 to 255
digits = to_signed(data.test[[3, 2, 1, 18, 4, 8, 11, 0]])
t = torch.tensor([1, 2, 50, 100, 250, 500, 999, 1000])
epsilon = torch.randn_like(digits)
jump = lambda x, noise: diffusion.q_sample(x, t, noise)
slow = lambda x, noise: q_sample_naive(x, t, noise)
their_noise = diffusers.DDPMScheduler().add_noise
theirs = lambda x, noise: their_noise(x, noise, t - 1)  # it counts from 0
ladder.prove("Eq. 4: noise", "naive loops", jump, slow, digits, epsilon)
ladder.prove("Eq. 4: noise", "diffusers", jump, theirs, digits, epsilon)
assert jump(digits, epsilon).shape == (8, 1, 28, 28)
assert refuses(
    lambda x, e: diffusion.q_sample(x, t - 1 + (t < 2), e), slow, digits, epsilon
)
print("equal in outputs and gradients; a time that is off by one is refused")

# %%
ours = milliseconds(lambda: jump(digits, epsilon))
naive = milliseconds(lambda: slow(digits, epsilon))
print(f"8 images: from a table {ours:.2f} ms, loops {naive:.2f} ms")

# %% [markdown]
# Look for the time at which you can no longer read the digit.

# %% mystnb={"image": {"alt": "Two handwritten digits, each at times 0, 50, 100, 200, 300, 400, 500, 700 and 1000 from left to right. The noise grows; at 300 the digits are hard to read, from 500 on nothing of them is seen."}}
shown_times = (0, 50, 100, 200, 300, 400, 500, 700, 1000)
pixels = lambda x: ((x + 1) / 2).clamp(0, 1)  # from -1 ... 1, for looking at
rows = []
for image, noise in zip(digits[:2, None], epsilon[:2, None], strict=True):
    rows.append(image)
    for t in shown_times[1:]:
        rows.append(diffusion.q_sample(image, at_time(image, t), noise))
titles = [f"t = {t}" for t in shown_times] + [""] * len(shown_times)
figure = plot.show_images(
    pixels(torch.cat(rows)), titles=titles, columns=len(shown_times), side=0.75
)

# %% [markdown]
# Half-way, at 500, {glue:text}`left_500:.3f` of the variance is the image's, and the last third of the steps has next to nothing left to destroy.

# %% mystnb={"image": {"alt": "Two curves against the time from 0 to 1000: the factor of the image falls from 1 to almost 0, the factor of the noise rises from 0 to 1; they cross near 260."}}
glue(left_500=diffusion.alpha_bar[500].item())
figure, axis = plt.subplots(figsize=(5.4, 2.4))
axis.plot(diffusion.alpha_bar.sqrt(), label="image, √ᾱ")
axis.plot((1 - diffusion.alpha_bar).sqrt(), label="noise, √(1 − ᾱ)")
axis.set(xlabel="time t", ylabel="multiplied by")
axis.legend()
plt.show()

# %% [markdown]
# ## One step back, when the image is known
#
# We want to walk back from $\mathbf{x}_t$ to $\mathbf{x}_{t-1}$. What would the step be if someone told us the clean image?
#
# Bayes' rule answers: $q(\mathbf{x}_{t-1} \mid \mathbf{x}_t, \mathbf{x}_0) \propto q(\mathbf{x}_t \mid \mathbf{x}_{t-1})\, q(\mathbf{x}_{t-1} \mid \mathbf{x}_0)$, the likelihood of the step (which does not look at $\mathbf{x}_0$) times what [Eq. 4](#eq-ddpm-4) says of $\mathbf{x}_{t-1}$. Both are normal in $\mathbf{x}_{t-1}$, so their product, the {term}`posterior`, is too:
#
# (eq-ddpm-6)=
# $$
# q(\mathbf{x}_{t-1} \mid \mathbf{x}_t, \mathbf{x}_0) = \mathcal{N}\bigl(\mathbf{x}_{t-1};\ \tilde{\boldsymbol{\mu}}_t(\mathbf{x}_t, \mathbf{x}_0),\ \tilde{\beta}_t \mathbf{I}\bigr)
# \tag{6}
# $$
#
# (eq-ddpm-7)=
# $$
# \tilde{\boldsymbol{\mu}}_t(\mathbf{x}_t, \mathbf{x}_0) = \frac{\sqrt{\bar{\alpha}_{t-1}}\, \beta_t}{1 - \bar{\alpha}_t}\, \mathbf{x}_0 + \frac{\sqrt{\alpha_t}\, (1 - \bar{\alpha}_{t-1})}{1 - \bar{\alpha}_t}\, \mathbf{x}_t
# \qquad
# \tilde{\beta}_t = \frac{1 - \bar{\alpha}_{t-1}}{1 - \bar{\alpha}_t}\, \beta_t
# \tag{7}
# $$
#
# Do not trust the algebra; multiply the two densities on a fine grid. One pixel, and a process of four coarse steps, so that something is to be seen.

# %%
coarse = GaussianDiffusion(torch.tensor([0.1, 0.2, 0.3, 0.4]))
grid = torch.linspace(-5, 5, 50_001, dtype=torch.float64)


def bayes_naive(x_t, x_0, t):
    b, before = coarse.beta[t], coarse.alpha_bar[t - 1]
    prior = Normal(before.sqrt() * x_0, (1 - before).sqrt()).log_prob(grid)
    x_t = torch.tensor(x_t, dtype=torch.float64)
    likelihood = Normal((1 - b).sqrt() * grid, b.sqrt()).log_prob(x_t)
    weights = (prior + likelihood).softmax(0)
    mean = (weights * grid).sum()
    return mean, (weights * (grid - mean) ** 2).sum(), (prior, likelihood, weights)


# %% [markdown]
# With $x_0 = 0.9$ and $x_3 = -0.5$: where will the mean of $x_2$ lie, and can its variance be larger than $\beta_3 = 0.3$? (In [Eq. 7](#eq-ddpm-7), what stands before $\beta_t$ is below 1.)

# %% tags=["nbval-check-output"]
column = torch.ones(1, 1, 1, 1, dtype=torch.float64)
for t in (2, 3, 4):
    mean, variance, _ = bayes_naive(-0.5, 0.9, t)
    found = coarse.posterior(-0.5 * column, 0.9 * column, torch.tensor([t]))
    assert torch.allclose(found[0].squeeze(), mean, atol=1e-7)
    assert torch.allclose(found[1].squeeze(), variance, atol=1e-7)
    assert variance < coarse.beta[t]
    print(f"t = {t}: mean {mean:.3f}, variance {variance:.3f}, as Bayes' rule says")

# %% [markdown]
# It is easy to draw the root of the second weight over the whole product, $\sqrt{\alpha_t (1 - \bar{\alpha}_{t-1})}$. Such a slip makes no error message, and Bayes' rule finds it:

# %% tags=["nbval-check-output"]
a, bar, before = 0.7, coarse.alpha_bar[3], coarse.alpha_bar[2]
slipped = before.sqrt() * 0.3 * 0.9 - (a * (1 - before)).sqrt() * 0.5
mean, _, curves = bayes_naive(-0.5, 0.9, 3)
assert abs(slipped / (1 - bar) - mean) > 0.1
print(f"with the slip {slipped / (1 - bar):.2f}, by Bayes' rule {mean:.2f}")

# %%
x_t, x_0 = 0.1 * column, 0.2 * column
ours = milliseconds(lambda: coarse.posterior(x_t, x_0, torch.tensor([3])))
naive = milliseconds(lambda: bayes_naive(0.1, 0.2, 3))
print(f"one pixel: Eq. 7 {ours:.2f} ms, a grid {naive:.2f} ms")

# %% [markdown]
# Look for the curve between the other two, and at which of them it is nearer.

# %% mystnb={"image": {"alt": "Three bell curves over the value of x at time 2. What the image says lies around 0.76, what the noisy pixel says around minus 0.6, and their product, narrower than both, between them."}}
figure, axis = plt.subplots(figsize=(5.8, 2.6))
names = ("q(x₂ | x₀ = 0.9)", "q(x₃ = −0.5 | x₂), scaled", "q(x₂ | x₃, x₀)")
step = (grid[1] - grid[0]).item()
for name, curve in zip(
    names,
    (curves[0].exp(), curves[1].softmax(0) / step, curves[2] / step),
    strict=True,
):
    axis.plot(grid, curve, label=name)
axis.set(xlabel="x₂", ylabel="density", xlim=(-3, 3))
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# The step back is a compromise: some of the image, some of where we are. At $t = 1$ the second weight is 0, and the step lands on the image itself.
#
# ## What the network is asked
#
# Nobody tells us the image when we want a new one. So the {term}`reverse process` is given the form of [Eq. 6](#eq-ddpm-6), with a mean that a network works out from $\mathbf{x}_t$ and $t$, and a variance $\sigma_t^2$ that is chosen, not learned (the paper's Eq. 1 with the choice of its Section 3.2):
#
# (eq-ddpm-1)=
# $$
# p_\theta(\mathbf{x}_{t-1} \mid \mathbf{x}_t) = \mathcal{N}\bigl(\mathbf{x}_{t-1};\ \boldsymbol{\mu}_\theta(\mathbf{x}_t, t),\ \sigma_t^2 \mathbf{I}\bigr),
# \qquad
# p(\mathbf{x}_T) = \mathcal{N}(\mathbf{0}, \mathbf{I})
# \tag{1}
# $$
#
# What should the network output, the mean $\tilde{\boldsymbol{\mu}}_t$ or something from which the mean follows? The paper's answer is the noise $\boldsymbol{\epsilon}$. Given $\mathbf{x}_t$, it is all the same: whoever knows the noise knows the image. Call the network's output $\boldsymbol{\epsilon}_\theta(\mathbf{x}_t, t)$, $\theta$ being its weights; a hat marks what follows from it:
#
# (eq-ddpm-15)=
# $$
# \hat{\mathbf{x}}_0 = \bigl(\mathbf{x}_t - \sqrt{1 - \bar{\alpha}_t}\, \boldsymbol{\epsilon}_\theta(\mathbf{x}_t, t)\bigr) / \sqrt{\bar{\alpha}_t}
# \tag{15}
# $$
#
# and with $\hat{\mathbf{x}}_0$ in [Eq. 7](#eq-ddpm-7) the mean:
#
# (eq-ddpm-11)=
# $$
# \boldsymbol{\mu}_\theta(\mathbf{x}_t, t) = \frac{1}{\sqrt{\alpha_t}} \Bigl(\mathbf{x}_t - \frac{\beta_t}{\sqrt{1 - \bar{\alpha}_t}}\, \boldsymbol{\epsilon}_\theta(\mathbf{x}_t, t)\Bigr)
# \tag{11}
# $$

# %% tags=["nbval-check-output"]
t = torch.tensor([1, 2, 50, 100, 250, 500, 999, 1000])
x_t, guess = digits.double(), epsilon.double()  # any two will do
b, bar = (
    each[t].view(-1, 1, 1, 1) for each in (diffusion.beta, diffusion.alpha_bar)
)
by_eq_11 = (x_t - b / (1 - bar).sqrt() * guess) / (1 - b).sqrt()
x_0_hat = diffusion.read(guess, x_t, t).x_0  # (eq-ddpm-15)
by_eq_7, _ = diffusion.posterior(x_t, x_0_hat, t)
assert torch.allclose(by_eq_11, by_eq_7, atol=1e-9)
print("Eq. 15 in Eq. 7 is Eq. 11, at", len(t), "times")


# %% [markdown]
# The loss is then the squared error of the noise, at times drawn from 1 … T, each as likely. That is the paper's $L_\text{simple}$, and its Algorithm 1 is gradient descent on it:
#
# (eq-ddpm-14)=
# $$
# L_\text{simple}(\theta) = \mathbb{E}_{t, \mathbf{x}_0, \boldsymbol{\epsilon}} \bigl[ \lVert \boldsymbol{\epsilon} - \boldsymbol{\epsilon}_\theta(\mathbf{x}_t, t) \rVert^2 \bigr]
# \tag{14}
# $$
#
# with $\mathbf{x}_t = \sqrt{\bar{\alpha}_t}\, \mathbf{x}_0 + \sqrt{1 - \bar{\alpha}_t}\, \boldsymbol{\epsilon}$ from [Eq. 4](#eq-ddpm-4). As in the official code we take the mean over the pixels instead of their sum, and tell the network $t - 1$, which counts from 0. Until we have the real one, a convolution stands in for the network.

# %%
class StandIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x) * (1 + t / 1000)[:, None, None, None]


def loss_naive(model, x_0, t, epsilon):  # (eq-ddpm-14), line 5 of Algorithm 1
    losses = []
    for i in range(len(x_0)):
        x_t = q_sample_naive(x_0[i : i + 1], t[i : i + 1], epsilon[i : i + 1])
        error = epsilon[i] - model(x_t, t[i : i + 1] - 1)[0]
        losses.append(error.square().sum() / error.numel())
    return torch.stack(losses)


# %% [markdown]
# A network that returns zeros: what is its loss? (The mean square of standard normal noise.)

# %% tags=["nbval-check-output"]
model = StandIn()
loss = lambda x: diffusion.loss(model, x, t, epsilon)
slow = lambda x: loss_naive(model, x, t, epsilon)
ladder.prove("Eq. 14: loss", "naive loops", loss, slow, digits, shared=model)
zeros = diffusion.loss(lambda x, t: torch.zeros_like(x), digits, t, epsilon)
assert (zeros - 1).abs().max() < 0.15
late = lambda x: diffusion.loss(lambda x, t: model(x, t + 1), x, t, epsilon)
assert refuses(late, slow, digits, shared=model)
print(f"answering 0 costs {zeros.mean():.1f} a pixel; a time off by one is refused")

# %%
ours, naive = milliseconds(lambda: loss(digits)), milliseconds(lambda: slow(digits))
print(f"8 images: at once {ours:.2f} ms, one after another {naive:.2f} ms")

# %% [markdown]
# Why call it simple? Because theory asks for weights. Seen as one term of the bound of the next section, the squared error of time $t$ counts
#
# (eq-ddpm-12)=
# $$
# \frac{\beta_t^2}{2 \sigma_t^2\, \alpha_t\, (1 - \bar{\alpha}_t)}
# \tag{12}
# $$
#
# times, for $t > 1$; at $t = 1$ the bound has a code length. $L_\text{simple}$ drops this factor. Look for the times that lose by it.

# %% mystnb={"image": {"alt": "The weight of Equation 12 against time, both axes logarithmic. It is 0.27 at time 2, falls to 0.005 near time 350, and rises to 0.01 at the end."}}
b, bar = diffusion.beta[2:], diffusion.alpha_bar[2:]
weight = b / (2 * (1 - b) * (1 - bar))  # (eq-ddpm-12) with the variance β
assert weight.argmax() == 0
assert weight[:20].mean() > 5 * weight.mean()
figure, axis = plt.subplots(figsize=(5.4, 2.4))
axis.loglog(range(2, 1001), weight)
axis.set(xlabel="time t", ylabel="weight in the bound")
plt.show()


# %% [markdown]
# In the bound the small times, those with hardly any noise, count most. Without the weights the network can spend itself on the harder ones; the paper finds that this makes better images (Section 3.4), and the experiment below tries it.
#
# ## The bound, in bits
#
# How likely does the model find a given image? That is an integral over all ways in which noise could have become it, which cannot be worked out; but it has a bound. With $\mathbb{E}_q$ the mean over images $\mathbf{x}_0$ and over the noise of the forward process, $-\log p_\theta(\mathbf{x}_0)$ is on average at most
#
# (eq-ddpm-5)=
# $$
# \begin{aligned} L = \mathbb{E}_q \Bigl[ &\underbrace{D_\text{KL}\bigl(q(\mathbf{x}_T | \mathbf{x}_0) \,\Vert\, p(\mathbf{x}_T)\bigr)}_{L_T} \cr
# &+ \sum_{t > 1} \underbrace{D_\text{KL}\bigl(q(\mathbf{x}_{t-1} | \mathbf{x}_t, \mathbf{x}_0) \,\Vert\, p_\theta(\mathbf{x}_{t-1} | \mathbf{x}_t)\bigr)}_{L_{t-1}}
# \underbrace{- \log p_\theta(\mathbf{x}_0 | \mathbf{x}_1)}_{L_0} \Bigr] \end{aligned}
# \tag{5}
# $$
#
# $D_\text{KL}$ is the {term}`Kullback–Leibler divergence`, how many {term}`nats <nat>` a code for the second distribution wastes on the first; between two normal distributions it is a formula. It is the squared distance of the means, divided by $2\sigma_t^2$, and a constant that
# no training changes (0 if the variances are equal). That is the paper's Eq. 8, and with [Eq. 11](#eq-ddpm-11) it becomes the weighted loss above.
#
# The last step has to name one of 256 values a pixel, so its probability is that of an interval. Where $x_0^i$ is −1 the lower limit is $-\infty$, where it is 1 the upper one is $\infty$:
#
# (eq-ddpm-13)=
# $$
# p_\theta(\mathbf{x}_0 \mid \mathbf{x}_1) = \prod_i \int_{x_0^i - 1/255}^{x_0^i + 1/255} \mathcal{N}\bigl(x;\ \mu_\theta^i(\mathbf{x}_1, 1),\ \sigma_1^2\bigr)\, dx
# \tag{13}
# $$
#
# Here $i$ counts the pixels, three values a pixel in a colour image, and $\sigma_1^2$ is $\tilde{\beta}_2$, since $\tilde{\beta}_1$ is 0 (so the official code). Divided by $\ln 2$ and by the number of these values, $L$ is a length in bits a dimension: what a code made from the model would need.

# %%
def bound_naive(model, x_0, t, epsilon):  # (eq-ddpm-5), one time t > 1, in bits
    x_t = diffusion.q_sample(x_0, t, epsilon)
    mean, variance = diffusion.posterior(x_t, x_0, t)
    b, bar = diffusion.beta[t].view(-1, 1, 1, 1), diffusion.alpha_bar[t]
    noise = model(x_t, t - 1) * (b / (1 - bar).view_as(b).sqrt()).float()
    ours = Normal((x_t - noise) / (1 - b).sqrt().float(), b.sqrt().float())
    true = Normal(mean, variance.view_as(b).sqrt().float())
    return kl_divergence(true, ours).mean(dim=(1, 2, 3)) / math.log(2)


# %% [markdown]
# And 256 probabilities, one for each value that a pixel can have, must sum to 1, wherever the mean lies:

# %% tags=["nbval-check-output"]
later = torch.tensor([2, 3, 50, 100, 250, 500, 999, 1000])
term = lambda x: diffusion.bound_term(model, x, later, epsilon)
slow = lambda x: bound_naive(model, x, later, epsilon)
ladder.prove(
    "Eq. 5: L_t",
    "torch.distributions",
    term,
    slow,
    digits,
    shared=model,
)
values = to_signed(torch.arange(256, dtype=torch.uint8)).double()
for mean, width in ((0.3, 0.2), (-1.2, 0.05), (0.99, 3.0)):
    centre, sigma = (torch.tensor(x, dtype=torch.float64) for x in (mean, width))
    bins = ddpm.log_bin_probability(values, centre, sigma).exp()  # (eq-ddpm-13)
    assert math.isclose(bins.sum().item(), 1, abs_tol=1e-6)
print("divergences equal, and 256 bins have all the probability")


# %% [markdown]
# $L_T$ has nothing to learn; the paper puts it at about $10^{-5}$ bits. Is ours of that size? And is the whole a bound? That can be tested where the truth is
# known: if pixels are independent and normal with deviation 0.25, the best network is a formula, and so is the true code length.

# %%
def best_for_normal(x, t):  # the mean of ε, given x
    bar = short.alpha_bar[t + 1].float().view(-1, 1, 1, 1)
    return (1 - bar).sqrt() * x / (0.25**2 * bar + 1 - bar)


short = GaussianDiffusion(linear_schedule(400, 1e-4, 0.05))
x_0 = to_signed(ddpm.to_pixels(0.25 * torch.randn(40, 1, 16, 16)))
truth = -Normal(0.0, 0.25).log_prob(x_0).mean().item() / math.log(2)
truth += math.log2(255 / 2)  # a bin is 2/255 wide

# %% tags=["nbval-check-output"]
terms = short.bits_per_dim(best_for_normal, x_0, generator(1, 0))
assert terms.shape == (40, 401)  # L_0, L_1, ..., L_T
bits = terms.sum(1).mean().item()
assert truth < bits < truth + 0.1
worse = lambda x, t: 0.9 * best_for_normal(x, t)
assert short.bits_per_dim(worse, x_0, generator(1, 0)).sum(1).mean() > bits + 0.01
assert 1e-6 < diffusion.prior_term(digits).mean() < 1e-4
print(f"truth {truth:.1f} bits a pixel, bound {bits:.1f}, from above")

# %% [markdown]
# Look for where the bits are.

# %% mystnb={"image": {"alt": "The bits per pixel that each time adds, against time, for the best network on normal pixels. The first term is the largest by far, and the terms fall steeply after it."}}
figure, axis = plt.subplots(figsize=(5.4, 2.4))
axis.loglog(range(1, 401), terms.mean(0)[:-1])
axis.set(xlabel="time t", ylabel="bits per pixel")
plt.show()
glue(first_share=100 * terms[:, 0].sum().item() / terms.sum().item())


# %% [markdown]
# The term of $t = 1$ alone has {glue:text}`first_share:.0f` % of the code: naming the last, invisible differences of brightness. For the paper's model it is more than half (Section 4.3: 1.97 of 3.75 bits).
#
# The process and its losses are one class, `GaussianDiffusion`:
#
# {source:ddpm}
#
# ## Sampling
#
# How do images come out? Algorithm 2 begins with noise and takes each step of [Eq. 1](#eq-ddpm-1) in turn:
#
# (eq-ddpm-a2)=
# $$
# \mathbf{x}_{t-1} = \frac{1}{\sqrt{\alpha_t}} \Bigl(\mathbf{x}_t - \frac{1 - \alpha_t}{\sqrt{1 - \bar{\alpha}_t}}\, \boldsymbol{\epsilon}_\theta(\mathbf{x}_t, t)\Bigr) + \sigma_t \mathbf{z}
# \tag{A2}
# $$
#
# with $\mathbf{z}$ standard normal, but $\mathbf{0}$ at $t = 1$: the last image is the mean alone.
#
# One thing stands only in the official code: at each step $\hat{\mathbf{x}}_0$ is cut off at −1 and 1, since no pixel lies outside, and the mean follows by [Eq. 7](#eq-ddpm-7). Our samplers do so, and so does `bits_per_dim`, unless told `clip=False`. To compare with the bare formulas we switch it off.

# %%
def algorithm_2_naive(model, x, draws):  # (eq-ddpm-a2)
    for t in range(1000, 0, -1):
        b, bar = diffusion.beta[t].item(), diffusion.alpha_bar[t].item()
        guess = model(x, torch.full((len(x),), t - 1))
        mean = (x - b / math.sqrt(1 - bar) * guess) / math.sqrt(1 - b)
        z = torch.randn(x.shape, generator=draws, dtype=x.dtype)
        x = mean + math.sqrt(b) * z if t > 1 else mean
    return x


# %% [markdown]
# To see that it works we need a network without error. There is one for an "image" of a single pixel that can have three values: the mean of the noise, given $x_t$, is then a sum over three cases.

# %%
points = torch.tensor([-0.8, 0.1, 0.7], dtype=torch.float64)
shares = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def perfect(x, t):
    bar = diffusion.alpha_bar[t + 1].to(x).view(-1, 1, 1, 1)
    fit = -(x - bar.sqrt() * points).square() / (2 * (1 - bar))  # (b, 1, 1, 3)
    x_0 = ((shares.log() + fit).softmax(-1) * points).sum(-1, keepdim=True)
    return (x - bar.sqrt() * x_0) / (1 - bar).sqrt()


# %% [markdown]
# What will two thousand samples look like, if the algorithm is right?

# %% tags=["nbval-check-output"]
noise = torch.randn(2000, 1, 1, 1, dtype=torch.float64)
x = ancestral(
    diffusion, perfect, noise, clip=False, generator=generator(1, 0)
).images
slow = algorithm_2_naive(perfect, noise, generator(1, 0))
assert torch.allclose(x, slow, atol=1e-9)
distance, nearest = (x - points).abs().min(-1)
assert (distance < 0.05).double().mean() > 0.99
found = class_shares(nearest.flatten(), 3).double()
assert (found - shares).abs().max() < 0.04
print("samples lie at the three points, in the right shares")

# %%
few = noise[:10]
run = lambda: ancestral(diffusion, perfect, few, clip=False)
ours = milliseconds(run, repeats=1)
naive = milliseconds(lambda: algorithm_2_naive(perfect, few, None), repeats=1)
print(f"1000 steps: with its checks {ours:.0f} ms, bare {naive:.0f} ms")


# %% [markdown]
# The loop is no faster in the module: steps follow each other and nothing can be done at once. What takes the time is the network, a thousand calls of it.
#
# And $\sigma_t^2$? The paper names two choices (Section 3.2): $\beta_t$, which is right if the pixels are standard normal, and $\tilde{\beta}_t$ of [Eq. 7](#eq-ddpm-7), which is right if there is only one image. Both claims can be measured: draw pairs $(x_{t-1}, x_t)$ and see how much of the variance of $x_{t-1}$ is left when the best straight line predicts it from $x_t$.

# %% tags=["nbval-check-output"]
def left_open(x_0, t):
    times = at_time(x_0, t)
    before = diffusion.q_sample(x_0, times - 1, torch.randn_like(x_0))
    after = diffusion.q_step(before, times, torch.randn_like(x_0))
    c = torch.cov(torch.stack([before.flatten(), after.flatten()]))
    return (c[0, 0] - c[0, 1] ** 2 / c[1, 1]).item()


many = torch.randn(200_000, 1, 1, 1, dtype=torch.float64)
small = GaussianDiffusion(beta, variance="small")
large, little = (d.reverse_variance(5, 4).item() for d in (diffusion, small))
assert math.isclose(left_open(many, 5), large, rel_tol=0.02)
assert math.isclose(left_open(many * 0 + 0.4, 5), little, rel_tol=0.02)
print(
    f"small is {little / large:.2f} of large at t = 5; each is right for its data"
)


# %% [markdown]
# diffusers has both, as `fixed_large` and `fixed_small`. We give it our tables (its own are in single precision, which costs it up to 0.1 % of $1 - \bar{\alpha}_t$ at small $t$), the same start and the same noise, and compare after a thousand steps.

# %% tags=["nbval-check-output"]
def diffusers_sampler(kind, steps, **options):
    scheduler = getattr(diffusers, kind)(
        timestep_spacing="trailing", clip_sample=False, **options
    )
    scheduler.betas, scheduler.alphas = beta, 1 - beta
    scheduler.alphas_cumprod = (1 - beta).cumprod(0)
    scheduler.set_timesteps(steps)
    return scheduler


def sample_with(scheduler, model, x, draws, **options):
    for t in scheduler.timesteps:
        guess = model(x, t.expand(len(x)))
        x = scheduler.step(guess, t, x, generator=draws, **options).prev_sample
    return x


for process in (diffusion, small):
    kind = f"fixed_{process.variance}"
    theirs = diffusers_sampler("DDPMScheduler", 1000, variance_type=kind)
    reference = sample_with(theirs, perfect, few, generator(2, 0))
    options = {"clip": False, "generator": generator(2, 0)}
    ours = ancestral(process, perfect, few, **options).images
    assert torch.allclose(ours, reference, atol=1e-9)
    print(f"{kind}: equal after 1000 steps")

# %% [markdown]
# Look at when the paths decide where to go.

# %% mystnb={"image": {"alt": "Two panels. Left, paths of single pixels from time 1000 to 0: they wander like noise, part between times 300 and 50 and end at three values. Right, the ratio of the small to the large variance against time: 0.45 at time 2, 0.9 at time 16, then close to 1."}}
options = {"clip": False, "every": 5, "generator": generator(3, 0)}
film = ancestral(diffusion, perfect, noise[:12], **options).film
figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.8))
axes[0].plot(
    [f.t for f in film], torch.stack([f.x_t.flatten() for f in film]), lw=0.7
)
axes[0].invert_xaxis()
axes[0].set(xlabel="time t", ylabel="x", title="twelve pixels")
later = torch.arange(2, 1001)
ratio = small.reverse_variance(later, later - 1) / diffusion.reverse_variance(
    later, later - 1
)
axes[1].semilogx(later, ratio)
axes[1].set(xlabel="time t", ylabel="small / large", title="variance")
plt.show()


# %% [markdown]
# Until about $t = 300$ nothing is decided, at $t = 50$ everything is. And the two variances differ in the first few dozen times only: the paper finds similar results with both (Section 3.2). With all thousand steps, that is; {cite:t}`song2021` find that in few steps the large one leaves visible noise.
#
# ## Fewer steps
#
# A thousand calls of the network for one image: can steps be left out?
#
# The training never says that one must go from $t$ to $t - 1$: the network only learned to see the noise in $\mathbf{x}_t$. {cite:t}`song2021` (DDIM) use that. Predict the image, then put back as much noise as belongs to an earlier time $s$: partly the noise that
# was predicted, partly, if one wants, new noise:
#
# (eq-ddpm-d12)=
# $$
# \mathbf{x}_s = \sqrt{\bar{\alpha}_s}\, \hat{\mathbf{x}}_0 + \sqrt{1 - \bar{\alpha}_s - \sigma^2}\, \boldsymbol{\epsilon}_\theta(\mathbf{x}_t, t) + \sigma \mathbf{z}
# \tag{D12}
# $$
#
# (eq-ddpm-d16)=
# $$
# \sigma = \eta \sqrt{\frac{1 - \bar{\alpha}_s}{1 - \bar{\alpha}_t}} \sqrt{1 - \frac{\bar{\alpha}_t}{\bar{\alpha}_s}}
# \tag{D16}
# $$
#
# (Their Eq. 12 and 16; what they call $\alpha_t$ is $\bar{\alpha}_t$ here.) With $\eta = 1$ and $s = t - 1$ this is Algorithm 2 with the small variance, as long as $\hat{\mathbf{x}}_0$ is not cut off; with $\eta = 0$ nothing is random but the start.

# %%
def ddim_naive(model, x, times, eta, draws):  # (eq-ddpm-d12), (eq-ddpm-d16)
    for t, s in zip(times[::-1], [*times[-2::-1], 0], strict=True):
        now, then = (diffusion.alpha_bar[i].item() for i in (t, s))
        guess = model(x, torch.full((len(x),), t - 1))
        x_0 = (x - math.sqrt(1 - now) * guess) / math.sqrt(now)
        sigma = eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        z = torch.randn(x.shape, generator=draws, dtype=x.dtype)
        x = (
            math.sqrt(then) * x_0
            + math.sqrt(1 - then - sigma**2) * guess
            + sigma * z
        )
    return x


# %% [markdown]
# Fifty steps of a thousand: which times are they? And is the result at $\eta = 0$ the same if the added noise has another seed?

# %% tags=["nbval-check-output"]
times = even_times(1000, 50)
assert times[:2] + times[-1:] == [20, 40, 1000]
for eta in (0.0, 0.4, 1.0):
    options = {"steps": 50, "eta": eta, "clip": False}
    x = ddim(diffusion, perfect, few, generator=generator(4, 0), **options).images
    slow = ddim_naive(perfect, few, times, eta, generator(4, 0))
    theirs = diffusers_sampler("DDIMScheduler", 50)
    reference = sample_with(theirs, perfect, few, generator(4, 0), eta=eta)
    assert torch.allclose(x, slow, atol=1e-9)
    assert torch.allclose(x, reference, atol=1e-9)
    other = ddim(
        diffusion, perfect, few, generator=generator(5, 0), **options
    ).images
    assert torch.equal(x, other) == (eta == 0)
    print(f"eta {eta}: naive, ours, diffusers equal; random: {eta > 0}")

# %% tags=["nbval-check-output"]
all_steps = ddim_naive(perfect, few, list(range(1, 1001)), 1.0, generator(6, 0))
options = {"clip": False, "generator": generator(6, 0)}
assert torch.allclose(
    all_steps, ancestral(small, perfect, few, **options).images, atol=1e-8
)
print("eta = 1 in all steps is Algorithm 2 with the small variance")

# %%
for steps in (1000, 50, 10):
    run = partial(ddim, diffusion, perfect, few, steps=steps)
    print(f"{steps} steps: {milliseconds(run, repeats=1):.1f} ms")

# %% [markdown]
# Look at whether the paths of fifty steps end where those of a thousand do.

# %% mystnb={"image": {"alt": "Paths of twelve pixels from time 1000 to 0 without added noise, in a thousand steps on the left and in fifty on the right. Left they are smooth curves, right polygons through nearly the same places, which end at the same three values."}}
figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.8), sharey=True)
ends = []
for axis, steps in zip(axes, (1000, 50), strict=True):
    made = ddim(diffusion, perfect, noise[:200], steps=steps, clip=False, every=1)
    states = torch.stack([noise[:12]] + [f.x_t[:12] for f in made.film]).flatten(1)
    axis.plot([1000, *(f.t for f in made.film)], states, lw=0.8)
    axis.invert_xaxis()
    axis.set(xlabel="time t", ylabel="x", title=f"{steps} steps, η = 0")
    away, nearest = (made.images - points).abs().min(-1)
    assert (away < 0.05).double().mean() > 0.97
    ends.append(nearest)
same = (ends[0] == ends[1]).double().mean().item()
assert same > 0.9
glue(same=100 * same)
plt.show()


# %% [markdown]
# Without added noise a path is a smooth curve, and a curve can be followed in a few strides: {glue:text}`same:.0f` % of two hundred starts end at the same point in fifty steps as in a thousand. The start decides the image.
#
# Both samplers, in any number of steps:
#
# {source:samplers}
#
# ## The network
#
# What network can see noise? It must look at single pixels and at the whole image at once, return something of the image's size, and know $t$. The paper takes a {term}`U-Net` {cite:p}`ronneberger2015` (Appendix B). We need four parts.
#
# **The time** is told as positions are told to the Transformer, with two differences: all sines come first, then all cosines; and the slowest frequency is $1/10000$ exactly.
#
# (eq-ddpm-time)=
# $$
# \mathbf{e}(t) = [\sin(t \omega_0), \ldots, \sin(t \omega_{d/2 - 1}), \cos(t \omega_0), \ldots, \cos(t \omega_{d/2-1})]
# \tag{B1}
# $$
#
# with $\omega_i = 10000^{-i / (d/2 - 1)}$. (Appendix B has no numbered equations; B1 to B3 are ours. $d$ is the number of channels of the first level.)

# %%
def time_naive(t, d):  # (eq-ddpm-time)
    rows = []
    for time in t.tolist():
        angles = [time * 10_000 ** (-i / (d / 2 - 1)) for i in range(d // 2)]
        rows.append([*map(math.sin, angles), *map(math.cos, angles)])
    return torch.tensor(rows)


# %% [markdown]
# What is $\mathbf{e}(0)$?

# %% tags=["nbval-check-output"]
from diffusers.models.embeddings import get_timestep_embedding

every = torch.arange(1000)
waves = time_embedding(every, 32)
theirs = get_timestep_embedding(every, 32, downscale_freq_shift=1)
assert torch.equal(waves[0], torch.tensor([0.0] * 16 + [1.0] * 16))
assert torch.allclose(waves, time_naive(every, 32), atol=2e-4)
assert torch.allclose(waves, theirs, atol=2e-4)
print("e(0) is 16 zeros and 16 ones; equal to the loop and to diffusers")

# %% [markdown]
# A small network, one for all blocks, makes $4d$ numbers of it: linear, {term}`swish`, linear. Look at how the columns share the work.

# %% mystnb={"image": {"alt": "Heat map of the time embedding, times 0 to 999 down, 32 channels across. The first channels of each half oscillate too fast to see, the last ones hardly change."}}
figure, axis = plt.subplots(figsize=(5.4, 2.6))
shade = axis.imshow(waves, aspect="auto", vmin=-1, vmax=1, cmap="RdBu")
axis.set(xlabel="channel", ylabel="time, from 0")
axis.grid(False)
bar = figure.colorbar(shade, label="value")

# %% [markdown]
# Fast channels tell neighbouring times apart, slow ones early from late.
#
# **The block** is where the work is done: {term}`group norm` {cite:p}`wu2018`, swish, a 3 × 3 convolution, twice, with a {term}`residual connection` around them. Between the two, the time is added, the same number to all places of a channel:
#
# (eq-ddpm-block)=
# $$
# \begin{aligned} \mathbf{y} &= \operatorname{conv}_1\bigl(\operatorname{swish}(\operatorname{GN}_1(\mathbf{x}))\bigr) + \mathbf{W} \operatorname{swish}(\mathbf{e}') \cr
# \operatorname{block}(\mathbf{x}) &= \mathbf{x} + \operatorname{conv}_2\bigl(\operatorname{swish}(\operatorname{GN}_2(\mathbf{y}))\bigr) \end{aligned}
# \tag{B2}
# $$
#
# $\mathbf{W}$ has a bias, and in training dropout comes before $\operatorname{conv}_2$ if there is any. $\mathbf{e}'$ is the time after the small network; $\operatorname{swish}(x) = x / (1 + e^{-x})$. Where the number of channels changes, $\mathbf{x}$ is carried across by a 1 × 1 convolution. Group norm takes mean and variance over the places and over a *group* of channels, in each image by itself: it does not mix images, as batch norm does, so it works
# for any batch.

# %%
swish = lambda x: x / (1 + torch.exp(-x))


def norm_naive(norm, x):
    groups = [part for image in x for part in image.chunk(norm.num_groups)]
    normed = [
        (p - p.mean()) / (p.var(correction=0) + norm.eps).sqrt() for p in groups
    ]
    out = torch.cat(normed).view_as(x)
    return out * norm.weight[:, None, None] + norm.bias[:, None, None]


def conv_naive(conv, x):
    (h, w), out = x.shape[2:], conv.bias[:, None, None]
    x = F.pad(x, (1, 1, 1, 1))
    for i in range(3):
        for j in range(3):
            seen = x[:, :, i : i + h, j : j + w]
            out = out + torch.einsum("bchw,oc->bohw", seen, conv.weight[:, :, i, j])
    return out


# %%
def block_naive(block, x, time):  # (eq-ddpm-block)
    y = conv_naive(block.conv1, swish(norm_naive(block.norm1, x)))
    shift = swish(time) @ block.time_proj.weight.T + block.time_proj.bias
    y = y + shift[:, :, None, None]
    y = conv_naive(block.conv2, swish(norm_naive(block.norm2, y)))
    across = torch.einsum("bchw,oc->bohw", x, block.shortcut.weight[..., 0, 0])
    return across + block.shortcut.bias[:, None, None] + y


# %% [markdown]
# From 8 channels to 16 on a map of 6 × 6: which shape comes out, and how many gradients are there to compare? (Two inputs, and a weight and a bias of each of two norms, two convolutions, one linear layer and the shortcut.)

# %% tags=["nbval-check-output"]
from diffusers.models.resnet import ResnetBlock2D

sizes = {"in_channels": 8, "out_channels": 16, "temb_channels": 32}
theirs = ResnetBlock2D(**sizes, groups=4, eps=1e-6, non_linearity="swish")
for parameter in theirs.parameters():
    nn.init.normal_(parameter, std=0.3)
norms = {"n_groups": 4, "norm_eps": 1e-6}
block = ResidualBlock(8, 16, 32, dropout=0.0, **norms)
called = {"time_emb_proj": "time_proj", "conv_shortcut": "shortcut"}
rename = lambda tensors: {
    ".".join(called.get(part, part) for part in name.split(".")): tensor
    for name, tensor in tensors.items()
}
maps, time = torch.randn(2, 8, 6, 6), torch.randn(2, 32)
rung = ladder.prove("block", "diffusers", block, theirs, maps, time, convert=rename)
slow = partial(block_naive, block)
ladder.prove("block", "naive loops", block, slow, maps, time, shared=block)
assert block(maps, time).shape == (2, 16, 6, 6)
assert rung.n_gradients == 14
print("block equal to naive and diffusers,", rung.n_gradients, "gradients each")

# %%
with torch.no_grad():
    ours = milliseconds(lambda: block(maps, time))
    naive = milliseconds(lambda: slow(maps, time))
print(f"2 maps: block {ours:.2f} ms, loops {naive:.2f} ms")


# %% [markdown]
# **Attention** lets every place of a map see every other. It is that of the Transformer, with one head; the $h \cdot w$ places are the tokens, and a group norm comes first:

# %% tags=["nbval-check-output"]
def attention_naive(layer, x):
    places = norm_naive(layer.norm, x).flatten(2).mT  # (b, h w, c)
    q, k, v = layer.attention.in_proj(places).chunk(3, dim=-1)
    seen = (q @ k.mT / math.sqrt(x.shape[1])).softmax(dim=-1)
    out = layer.attention.out_proj(seen @ v)
    return x + out.mT.reshape(x.shape)


layer = SpatialAttention(8, 1, **norms)
slow = partial(attention_naive, layer)
ladder.prove("attention", "naive", layer, slow, maps, shared=layer)
assert layer(maps).shape == maps.shape
print("attention over", 6 * 6, "places equal to its formula")

# %% [markdown]
# It costs the square of the places, so the paper has it at one size only, 16 × 16; the official code has it also in the middle, 4 × 4 for CIFAR-10.
#
# **The levels** give the U its name. Down: blocks, then a convolution with stride 2 halves the side, then blocks again. Up: the same with doubling, and every block reads, beside its input, a map of the same size that was kept on the way down. So fine detail need not pass through the narrow bottom. Which blocks are these in the
# paper's model for CIFAR-10, with 128 channels at first and levels of 1, 2, 2, 2 times as many?

# %% tags=["nbval-check-output"]
config = UNetConfig.cifar10()
down, up = config.stages()
for way, stages in (("down", down), ("up", up)):
    for stage in stages:
        blocks = ", ".join(f"{c_in}-{c_out}" for c_in, c_out in stage.blocks)
        print(f"{way} {stage.side:2d} px: {blocks}{' attention' * stage.attention}")
assert [len(stage.blocks) for stage in (*down, *up)] == [2] * 4 + [3] * 4
# What a block on the way up reads is what is below it and one kept map.
assert up[0].blocks[0] == (256 + 256, 256)
assert up[-1].blocks[-1] == (128 + 128, 128)

# %% [markdown]
# Look for the U: the side of the maps falls and rises, and the blocks on the way up have more to read.

# %% mystnb={"image": {"alt": "Bars for the 22 residual blocks in the order in which they run. Their height, the side of the map in pixels, falls from 32 over 16 and 8 to 4 and rises again to 32. The numbers of channels stand above the bars: 128 or 256 on the way down, up to 512 into a block on the way up."}}
side = config.sides[-1]
middle = [(side, 256, "middle")] * 2
bars = [(s.side, c, "down") for s in down for c, _ in s.blocks] + middle
bars += [(s.side, c, "up") for s in up for c, _ in s.blocks]
figure, axis = plt.subplots(figsize=(7.2, 2.8))
for kind in ("down", "middle", "up"):
    at = [i for i, bar in enumerate(bars) if bar[2] == kind]
    axis.bar(at, [bars[i][0] for i in at], label=kind)
for i, (height, channels, _) in enumerate(bars):
    axis.text(i, height + 0.7, channels, ha="center", fontsize=6)
axis.set(xlabel="block", ylabel="side, pixels", ylim=(0, 37))
axis.legend(loc="upper center")
plt.show()


# %% [markdown]
# One trap: a side of 32 halved by a 3 × 3 convolution with stride 2 needs padding at one end only. TensorFlow, in which the paper's code is written, puts the zeros below and to the right; PyTorch's `padding=1` would put them all around and look at other pixels. Now the whole, against diffusers, with random weights; and with that other padding it
# must be refused.

# %%
def diffusers_unet(config, **changes):
    attend = [side in config.attention_sizes for side in config.sides]
    options = {
        "sample_size": config.image_size,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "down_block_types": [
            "AttnDownBlock2D" if a else "DownBlock2D" for a in attend
        ],
        "up_block_types": [
            "AttnUpBlock2D" if a else "UpBlock2D" for a in attend[::-1]
        ],
        "block_out_channels": config.widths,
        "layers_per_block": config.n_blocks,
        "downsample_padding": 0,
        "attention_head_dim": config.d_head,
        "norm_num_groups": config.n_groups,
        "norm_eps": config.norm_eps,
    }
    return diffusers.UNet2DModel(**options | changes)


# %% tags=["nbval-check-output"]
tiny = UNetConfig(
    8,
    1,
    d_model=8,
    multipliers=(1, 2),
    n_blocks=1,
    attention_sizes=(4,),
    n_groups=4,
)
theirs, padded = (diffusers_unet(tiny, downsample_padding=p).eval() for p in (0, 1))
for parameter in (*theirs.parameters(), *padded.parameters()):
    parameter.data += 0.2 * torch.randn_like(parameter)
inputs = torch.randn(2, 1, 8, 8), torch.tensor([0, 999])
read = {"convert": our_names, "read": lambda out: out.sample}
unet = UNet(tiny).eval()
rung = ladder.prove("U-Net", "diffusers", unet, theirs, *inputs, **read)
assert rung.n_gradients == 1 + len(list(unet.parameters()))
assert refuses(UNet(tiny).eval(), padded, *inputs, **read)
print(rung.n_gradients, "gradients equal; padding all around is refused")

# %%
ladder

# %% [markdown]
# The whole network:
#
# {source:unet}
#
# At the published size the same is tested in the repository, with all 35.7 million weights; here we compare names and shapes. Files in diffusers' format, such as google/ddpm-cifar10-32, are read by `UNet.from_pretrained`; we write one and read it.

# %% tags=["nbval-check-output"]
import tempfile

with torch.device("meta"):
    ours, published = UNet(UNetConfig()), diffusers_unet(UNetConfig())
shapes = {name: p.shape for name, p in ours.state_dict().items()}
theirs_named = our_names(dict(published.state_dict()))
assert shapes == {name: p.shape for name, p in theirs_named.items()}
with tempfile.TemporaryDirectory() as folder:
    theirs.save_pretrained(folder)
    loaded = UNet.from_pretrained(folder)
with torch.no_grad():
    assert torch.allclose(loaded(*inputs), theirs(*inputs).sample, atol=1e-5)
print(f"{sum(p.numel() for p in ours.parameters()):,} parameters; the paper: 35.7M")

# %% [markdown]
# What does it cost? A 3 × 3 convolution from $c$ to $o$ channels costs $18\, c\, o$ FLOPs a place and dominates everything. In training, weights, gradients and Adam's two moments take 16 bytes a parameter, and the moving average of the weights 4 more. `config.forward_flops` counts the FLOPs; we compare it with what torch counts, and the 16 bytes with the tensors' sizes.

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

net = UNet(UNetConfig.mnist())
with FlopCounterMode(display=False) as counter, torch.no_grad():
    net(torch.zeros(1, 1, 28, 28), torch.zeros(1).long())
assert counter.get_total_flops() == net.config.forward_flops()
optimiser = torch.optim.AdamW(unet.parameters())
unet(*inputs).sum().backward()
optimiser.step()
moments = [
    s[k] for s in optimiser.state.values() for k in ("exp_avg", "exp_avg_sq")
]
kept = [x for p in unet.parameters() for x in (p, p.grad)] + moments
n_tiny = sum(p.numel() for p in unet.parameters())
assert sum(x.nbytes for x in kept) == 16 * n_tiny
for name in ("cifar10", "pixels_256", "mnist"):
    c = getattr(UNetConfig, name)()
    with torch.device("meta"):
        n = sum(p.numel() for p in UNet(c).parameters())
    print(
        f"{name:10} {n / 1e6:6.1f}M {c.forward_flops() / 1e9:7.2f} GFLOPs an image"
    )

# %% [markdown]
# 35.7M and 114M are the paper's (Appendix B, which also has one of 256M). The third is ours, for digits. A thousand calls of it for an image are {glue:text}`sampling_tflops:.2f` TFLOPs.

# %%
gflops = net.config.forward_flops() / 1e9
batch, stamps = torch.zeros(16, 1, 28, 28), torch.zeros(16).long()
net.eval()
with torch.no_grad():
    call = milliseconds(lambda: net(batch, stamps), repeats=3) / 16
glue(sampling_tflops=gflops, gflops_second=gflops / call * 1000, call=call)


# %% [markdown]
# Here a call takes {glue:text}`call:.1f` ms an image on one thread, {glue:text}`gflops_second:.0f` GFLOPs a second. Hence the page samples in twenty to a hundred steps.
#
# (training-a-small-one)=
# ## Training
#
# Algorithm 1, then: draw images, times and noise, take a step of Adam on [Eq. 14](#eq-ddpm-14). One thing more stands in Appendix B: the images are not drawn from the weights $\theta$ of the last step but from their {term}`exponential moving average`,
#
# (eq-ddpm-ema)=
# $$
# \bar{\theta} \leftarrow \delta\, \bar{\theta} + (1 - \delta)\, \theta
# \tag{B3}
# $$
#
# after each step, with $\delta = 0.9999$. Why? Each batch pulls the weights somewhere else, and at a constant learning rate they never come to rest. If they jitter independently around the right values, how much less does the average jitter? With $k = 0, 1, \ldots$ counting the steps back, its variance is $\sum_k (1 - \delta)^2 \delta^{2k} = (1 - \delta) / (1 + \delta)$ of theirs.

# %%
def average_naive(steps, decay):  # (eq-ddpm-ema)
    mean = steps[0].clone()
    for weights in steps[1:]:
        for i in range(len(mean)):
            mean[i] = decay * mean[i] + (1 - decay) * weights[i]
    return mean


# %% [markdown]
# With $\delta = 0.98$: to which share does the jitter fall? ($\sqrt{0.02 / 1.98}$, a tenth.)

# %% tags=["nbval-check-output"]
class Weights(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)


steps = 1 + 0.3 * torch.randn(400, 3000)  # 3000 weights, jittering around 1
average = Weights(steps[0].clone())
for values in steps[1:]:
    follow(average, Weights(values), 0.98)
left = (average.values.std() / steps[-1].std()).item()
assert abs(left - math.sqrt(0.02 / 1.98)) < 0.01
slow = average_naive(steps[:, :50], 0.98)
assert torch.allclose(average.values[:50].detach(), slow, atol=1e-5)
print(f"the average jitters {left:.1f} times as much")

# %% [markdown]
# The price is that it lags: it looks back over about $1 / (1 - \delta)$ steps, ten thousand in the paper's 800,000. In a run of {glue:text}`n_steps:.0f` steps we take 0.98.
#
# Now train: the digits' U-Net at half its width, {glue:text}`n_small` parameters, {glue:text}`n_steps:.0f` batches of {glue:text}`n_batch:.0f`. So short a run does not learn a thousand small
# corrections. We give it a process of a hundred steps, each with ten times the noise, so that it ends where the paper's ends.

# %%
brief = replace(experiment.SMALL, steps=200, ema=0.98)
process = brief.diffusion()
n_small = sum(p.numel() for p in brief.build().parameters())
bar = progress(range(brief.steps), "training")
small_net, small_average, losses = experiment.pretrain(brief, bar)
smooth = torch.tensor(losses).unfold(0, 20, 1).mean(-1)
assert process.alpha_bar[100] < 1e-4
assert smooth[-1] < smooth[0] / 2
glue(n_small=f"{n_small:,}", n_steps=brief.steps, n_batch=brief.batch_size)
glue(last_loss=smooth[-1].item())

# %% [markdown]
# The loss begins at 1, what answering zeros costs. A mark to measure it by: what would a network reach that sees one noisy pixel, without its neighbours, and knows how often each grey occurs? The best guess of the noise is then a mean over 256 cases, as it was
# over three points. Below that mark it must have looked at neighbours.

# %%
grey = to_signed(torch.arange(256, dtype=torch.uint8)).double()
often = data.train[:1000].flatten().long().bincount(minlength=256).double()
often = often / often.sum()
one = grey[often.multinomial(2000, replacement=True)]
alone = []
for bar in process.alpha_bar[1::3]:
    noise = torch.randn_like(one)
    seen = bar.sqrt() * one + (1 - bar).sqrt() * noise
    fit = -((seen[:, None] - bar.sqrt() * grey) ** 2) / (2 * (1 - bar))
    x_0 = (often.log() + fit).softmax(-1) @ grey  # the mean of x_0, given x_t
    guess = (seen - bar.sqrt() * x_0) / (1 - bar).sqrt()
    alone.append((noise - guess).square().mean().item())
mark = sum(alone) / len(alone)
assert smooth[-1] < mark < 1
glue(mark=mark)

# %% [markdown]
# Look for how fast the loss falls below that mark, and for what it does then.

# %% mystnb={"image": {"alt": "Training loss against step, logarithmic. It starts at 1, falls below the dotted line of the best guess from single pixels within some sixty steps, and then falls slowly further, with large jumps from batch to batch."}}
figure, axis = plt.subplots(figsize=(6.0, 3.0))
axis.semilogy(losses, alpha=0.3, label="each batch")
axis.semilogy(range(19, len(losses)), smooth, label="mean of 20 batches")
axis.axhline(mark, color="grey", ls=":", label="each pixel by itself")
axis.set(xlabel="step", ylabel="loss")
axis.legend()
plt.show()

# %% [markdown]
# The loss falls to {glue:text}`last_loss:.3f`, the mark is {glue:text}`mark:.3f`. Then it moves little, jumping with the times that a batch happens to draw. It will never be 0, since the noise in a pixel cannot be known, and from here on it says little: between this model and one that paints perfect digits lie a few
# hundredths. So we look at samples, all hundred steps of Algorithm 2, first from the last weights, then from their average, from the same noise.

# %% mystnb={"image": {"alt": "Two rows of ten generated images of 28 by 28 pixels: the upper from the last weights, the lower from the average. Most show white strokes, bent like parts of digits, some on a dark and some on a grey ground; one or more are grey grain with hardly a stroke."}}
start = torch.randn(60, 1, 28, 28, generator=generator(7, 0))
with fast_autocast():
    rows = [
        ancestral(process, m, start[:10], generator=generator(7, 1)).images
        for m in (small_net, small_average)
    ]
both = torch.cat(rows)
assert both.isfinite().all()
figure = plot.show_images(pixels(both), columns=10, side=0.7)

# %% [markdown]
# Most show strokes of the right width, bent like parts of digits, some on a dark ground, some on one that stayed grey; where the grey is lightest there is hardly a stroke. The first steps out of the noise decide how bright an image is, and what goes wrong there is carried on. That is what half a minute
# teaches.
#
# (the-velocity)=
# ## The velocity
#
# Why grey? [Eq. 15](#eq-ddpm-15) multiplies errors, as {cite:t}`salimans2022` note (their Section 4): at $t = T$ it divides by $\sqrt{\bar{\alpha}_T}$, in the process of a hundred steps above {glue:text}`last_signal:.4f`. An error of a hundredth in the noise is an error of {glue:text}`hundredth:.1f` in $\hat{\mathbf{x}}_0$, and from black to white is 2. In [Eq. 11](#eq-ddpm-11) the factor cancels, since there the image has as small a weight. But we cut $\hat{\mathbf{x}}_0$ off at −1 and 1, and that does not cancel. Where a dark image is guessed with large errors of either sign, black and white are left of it, grey on the whole, and each such step makes $\mathbf{x}_t$ a little too bright. Later steps can mend that; in the network above, so we guess, they do not.
#
# Does the network have to name the noise? Where almost everything is noise, it could name the image. Salimans and Ho let it predict a mixture that is nearly the noise where $t$ is small and nearly minus the image where $t$ is large, the *velocity*:
#
# (eq-ddpm-velocity)=
# $$
# \mathbf{v} = \sqrt{\bar{\alpha}_t}\, \boldsymbol{\epsilon} - \sqrt{1 - \bar{\alpha}_t}\, \mathbf{x}_0
# \tag{S1}
# $$
#
# (The numbers S1 and S2 are ours.) Think of an angle $\phi$ with $\cos \phi = \sqrt{\bar{\alpha}_t}$ and $\sin \phi = \sqrt{1 - \bar{\alpha}_t}$, so that $\mathbf{x}_t = \cos \phi\; \mathbf{x}_0 + \sin \phi\; \boldsymbol{\epsilon}$: then $\mathbf{v}$ is the derivative of $\mathbf{x}_t$ with respect to $\phi$ (their Appendix D). Rotating back by $\phi$ gives image and noise, with no division:
#
# (eq-ddpm-turn)=
# $$
# \hat{\mathbf{x}}_0 = \sqrt{\bar{\alpha}_t}\, \mathbf{x}_t - \sqrt{1 - \bar{\alpha}_t}\, \mathbf{v}_\theta, \qquad
# \hat{\boldsymbol{\epsilon}} = \sqrt{1 - \bar{\alpha}_t}\, \mathbf{x}_t + \sqrt{\bar{\alpha}_t}\, \mathbf{v}_\theta
# \tag{S2}
# $$
#
# $\mathbf{v}_\theta$ is the network's output. Nothing else changes in sampling: a step of Algorithm 2 is [Eq. 7](#eq-ddpm-7) with this $\hat{\mathbf{x}}_0$, cut off as before, and in DDIM $\hat{\boldsymbol{\epsilon}}$ takes the place of $\boldsymbol{\epsilon}_\theta$. By how much is an error in $\mathbf{v}_\theta$ multiplied in $\hat{\mathbf{x}}_0$? (By $\sqrt{1 - \bar{\alpha}_t}$, less than 1.)

# %%
t = torch.tensor([1, 2, 50, 100, 250, 500, 999, 1000])


def angles(t):
    return [math.acos(diffusion.alpha_bar[i].item() ** 0.5) for i in t.tolist()]


def velocity_naive(x_0, epsilon):  # (eq-ddpm-velocity), one image after another
    rows = []
    for phi, image, noise in zip(angles(t), x_0, epsilon, strict=True):
        rows.append(math.cos(phi) * noise - math.sin(phi) * image)
    return torch.stack(rows)


# %%
def turn_naive(v, x_t):  # (eq-ddpm-turn), images and then noises
    images, noises = [], []
    for phi, output, image in zip(angles(t), v, x_t, strict=True):
        images.append(math.cos(phi) * image - math.sin(phi) * output)
        noises.append(math.sin(phi) * image + math.cos(phi) * output)
    return torch.stack([*images, *noises])


# %%
turning = GaussianDiffusion(linear_schedule(), predict="velocity")
turner = diffusers.DDPMScheduler(prediction_type="v_prediction")
target = lambda x, e: turning.target(x, turning.q_sample(x, t, e), t, e)
their_target = lambda x, e: turner.get_velocity(x, e, t - 1)
both_read = lambda v, x: torch.cat(turning.read(v, x, t))
undone = lambda x, e: both_read(target(x, e), turning.q_sample(x, t, e))

# %% tags=["nbval-check-output"]
turns = Ladder()
turns.prove("S1: velocity", "naive loops", target, velocity_naive, digits, epsilon)
turns.prove("S1: velocity", "diffusers", target, their_target, digits, epsilon)
turns.prove("S2: both", "naive loops", both_read, turn_naive, epsilon, digits)
pair = lambda x, e: torch.cat([x, e])
turns.prove("S2 undoes S1", "image and noise", undone, pair, digits, epsilon)
swapped = lambda x, e: target(e, x)
assert refuses(swapped, velocity_naive, digits, epsilon)
print("equal in outputs and gradients; image and noise interchanged are refused")

# %%
turns

# %%
signal = process.alpha_bar[-1].sqrt().item()
glue(last_signal=signal, hundredth=0.01 / signal)
glue(weight_last=1 / diffusion.alpha_bar[-1].item())

# %% [markdown]
# The loss is now the mean of $\lVert \mathbf{v} - \mathbf{v}_\theta \rVert^2$. At each $t$, since $\hat{\boldsymbol{\epsilon}} - \boldsymbol{\epsilon} = \sqrt{\bar{\alpha}_t}\, (\mathbf{v}_\theta - \mathbf{v})$, that is the squared error of $\hat{\boldsymbol{\epsilon}}$ divided by $\bar{\alpha}_t$. So the large times count for more than in [Eq. 14](#eq-ddpm-14), the last of a thousand $1 / \bar{\alpha}_T$ = {glue:text}`weight_last:,.0f` times as much.
#
# Does it help? Small networks are asked [below](#what-to-predict), on digits and on [clothes](#clothes), with three seeds each; whole ones in the [table of cards](#which-times-to-train-on).
#
# ## A trained one
#
# The book ships the full-width network after {glue:text}`passes:.0f` passes over 55,000 digits. It predicts the noise, as the paper's does; the times were not drawn as Algorithm 1 draws them, which the [next section](#which-times-to-train-on) is about, and what else differs is [listed below](#differs). `paperwalk train ddpm --recipe mnist-cpu` made it in {glue:text}`minutes:.0f` minutes of one core. The paper's own model for CIFAR-10 is trained by the same command with `--recipe paper`, and {glue:text}`times_more:,.0f` times as much computing.

# %%
folder = checkpoint("ddpm-mnist")
card = json.loads((folder / "card.json").read_text())
figures = {name: each["value"] for name, each in card["metrics"].items()}
unet = UNet.from_pretrained(folder)
assert unet.config == experiment.RECIPE.model
assert card["recipe"]["predict"] == diffusion.predict == "epsilon"
glue(passes=card["recipe"]["epochs"], minutes=card["cpu_seconds"] / 60)
glue(card_bits=figures["bits per dimension"])
paper = DDPMRecipe.named()["paper"]
ours, theirs = (
    r.forward_flops() * r.batch_size * r.steps_of(55_000)
    for r in (experiment.RECIPE, paper)
)
glue(times_more=theirs / ours)

# %% [markdown]
# Watch it work, by Algorithm 2 with a hundred calls: each step goes over ten times at once, from $t$ to $s = t - 10$. That is [Eq. 7](#eq-ddpm-7) with $\bar{\alpha}_s$ in place of $\bar{\alpha}_{t-1}$ and
# $\bar{\alpha}_t / \bar{\alpha}_s$ in place of $\alpha_t$, so $1 - \bar{\alpha}_t / \bar{\alpha}_s$ in place of $\beta_t$, also as $\sigma_t^2$. The upper row is $\mathbf{x}_s$, the lower the prediction $\hat{\mathbf{x}}_0$ of [Eq. 15](#eq-ddpm-15) on the way there, cut off at −1 and 1. Move the slider: at which time can you say which digit it will be, in each row?

# %%
noise = torch.randn(10, 1, 28, 28, generator=generator(8, 0))
options = {"steps": 100, "every": 5, "generator": generator(8, 1)}
film = ancestral(diffusion, unet, noise, **options).film
frames = []
for frame in film:
    both = ddpm.to_pixels(torch.cat([frame.x_t, frame.x_0]))
    tiled = rearrange(both, "(r k) 1 h w -> (r h) (k w)", k=10)
    frames.append(tiled.repeat_interleave(2, 0).repeat_interleave(2, 1))
assert [film[0].t, film[-1].t] == [950, 0]
rows = (
    "Ten digits coming out of noise; above the noisy images, below the predicted."
)
plot.slider(frames, [f"t = {f.t}" for f in film], alt=rows, name="time")

# %% [markdown]
# This is the paper's Figure 6, progressive generation: large features appear first, details last. Below, every second frame of four of them:

# %% mystnb={"image": {"alt": "Four rows of predicted images over time, from left to right. At first a blurred grey spot, then a blurred digit, which sharpens and settles into a clear digit in the last columns."}}
chosen = film[1::2]
rows = torch.cat([torch.stack([f.x_0[i] for f in chosen]) for i in range(4)])
titles = [f"{f.t}" for f in chosen] + [""] * (3 * len(chosen))
figure = plot.show_images(
    pixels(rows), titles=titles, columns=len(chosen), side=0.7
)
early, late = (
    (f.x_0 - film[-1].x_0).square().mean().item() for f in (film[3], film[15])
)
assert late < early

# %% [markdown]
# Early predictions are blurs: with so much noise many digits are possible, and the squared error is least for their average. So it is with a masked autoencoder, which stops there. Here the blur is only the direction of one small step, after which the network looks again.
#
# Now sixty by DDIM in twenty steps, $\eta = 0$, and as many by the small one [trained on this page](#training-a-small-one), to compare with (its own with $\eta = 1$: without new noise it stays grey). Look at the shipped model's for any that is no digit.

# %% mystnb={"image": {"alt": "Forty generated handwritten digits in four rows of ten, white on black, of all classes; most could be from the data, some are strokes that make no digit."}}
with fast_autocast():
    live = ddim(
        process, small_average, start, steps=20, eta=1.0, generator=generator(7, 1)
    ).images
    drawn = ddim(diffusion, unet, start, steps=20).images
assert drawn.shape == (60, 1, 28, 28)
figure = plot.show_images(pixels(drawn[:40]), columns=10, side=0.7)

# %% [markdown]
# How good are they? A classifier that has seen real digits, from here on *the judge*, can say: how sure is it of them, does it see all ten equally often, and are its features of our digits distributed like those of real ones? The first two in one number are the *class score*: $\exp$ of the mean divergence of an image's classes from those of all images, 1 at worst, 10 at best (with Inception's classes it is
# the Inception score of {cite:t}`salimans2016`). The last is the {term}`Fréchet distance` {cite:p}`heusel2017` of two normal distributions with the features' means and covariances, as the paper uses it with another network, Inception, under the name FID. With means
# $\boldsymbol{\mu}_a, \boldsymbol{\mu}_b$ and covariances $\mathbf{C}_a, \mathbf{C}_b$ (their Eq. 6):
#
# (eq-ddpm-fid)=
# $$
# d^2 = \lVert \boldsymbol{\mu}_a - \boldsymbol{\mu}_b \rVert^2 + \operatorname{tr}\bigl(\mathbf{C}_a + \mathbf{C}_b - 2 (\mathbf{C}_a \mathbf{C}_b)^{1/2}\bigr)
# \tag{H6}
# $$

# %% tags=["nbval-check-output"]
a = torch.randn(5000, 4, dtype=torch.float64)
a = (a - a.mean(0)) @ torch.linalg.cholesky(torch.cov(a.T)).inverse().T  # C = I
shift = torch.tensor([3.0, 0, 0, 0])
# Covariances I and 4 I: tr(I + 4 I - 2 · 2 I) = 4.
found = frechet_distance(a, 2 * a + shift)  # (eq-ddpm-fid)
assert math.isclose(found, 9 + 4, rel_tol=1e-6)
assert abs(frechet_distance(a, a)) < 1e-9
print("shifted by 3 and twice as wide, in 4 dimensions: 9 + 4")

# %%
real = to_signed(data.held_out[:60])  # neither model nor judge has seen them
tried = {"live": live, "shipped": drawn, "real": real}
tried["noise"] = start.clamp(-1, 1)
here = {name: experiment.quality(each, 2000) for name, each in tried.items()}
for name, each in here.items():
    each["sure"] *= 100
    glue(**{f"{name}_{metric}": value for metric, value in each.items()})
assert here["shipped"]["distance"] < here["live"]["distance"] / 2
assert here["live"]["distance"] < here["noise"]["distance"] / 2
assert here["shipped"]["score"] > 7
assert here["noise"]["sure"] > 90
assert here["noise"]["score"] < 1.5

# %%
for kind in ("", "real: "):
    key = kind.removesuffix(": ")
    glue(**{f"card_{key}distance": figures[f"{kind}Fréchet distance"]})
    glue(**{f"card_{key}score": figures[f"{kind}class score"]})
    for metric in ("sure", "rarest class", "commonest class"):
        name = f"card_{key}{metric.removesuffix(' class')}"
        glue(**{name: 100 * figures[kind + metric]})
assert 0.8 < figures["sure"] < figures["real: sure"]
glue(unsure=100 - 100 * figures["sure"])
glue(unsure_real=100 - 100 * figures["real: sure"])
assert figures["rarest class"] > 0.05
assert figures["commonest class"] < 0.15

# %% [markdown]
# The command wrote a *card* beside the weights: the same figures, measured on many images.
#
# | | images | class score | judge sure, % | rarest digit, % | commonest, % | Fréchet distance |
# |---|---|---|---|---|---|---|
# | pure noise | 60 | {glue:text}`noise_score:.1f` | {glue:text}`noise_sure:.0f` | | | {glue:text}`noise_distance:.0f` |
# | trained on this page, 20 steps with $\eta = 1$ | 60 | {glue:text}`live_score:.1f` | {glue:text}`live_sure:.0f` | | | {glue:text}`live_distance:.0f` |
# | shipped, 20 steps | 60 | {glue:text}`shipped_score:.1f` | {glue:text}`shipped_sure:.0f` | | | {glue:text}`shipped_distance:.0f` |
# | real, held out | 60 | {glue:text}`real_score:.1f` | {glue:text}`real_sure:.0f` | | | {glue:text}`real_distance:.0f` |
# | shipped, 100 steps with $\eta = 1$, its card | 5,000 | {glue:text}`card_score:.2f` | {glue:text}`card_sure:.1f` | {glue:text}`card_rarest:.1f` | {glue:text}`card_commonest:.1f` | {glue:text}`card_distance:.1f` |
# | real, held out, its card | 5,000 | {glue:text}`card_realscore:.2f` | {glue:text}`card_realsure:.1f` | {glue:text}`card_realrarest:.1f` | {glue:text}`card_realcommonest:.1f` | {glue:text}`card_realdistance:.1f` |
#
# So of every hundred generated images some {glue:text}`unsure:.0f` are no digit that the judge would put its name to, of real ones {glue:text}`unsure_real:.0f`: this is where {glue:text}`minutes:.0f` minutes of one core end, and what a loss, which soon moves little, does not show.
#
# Sure means a probability over 0.9 for one digit. Do not trust sureness alone: the judge has only ever seen digits and must name one, and it is sure of pure noise too, always of the same digit. A measure needs the spread over the classes beside it, or the distance. Distances from sixty
# images, here to 2,000 test images, are too large, also for real ones: compare them with each other only, those of the upper four rows and those of the lower two, which are to all 10,000. By distance the shipped digits are hardly farther than real ones; by the judge's sureness they clearly are. Distances are in units of our small classifier; the paper's 3.17 is in those of Inception, a network trained on ImageNet.
#
# Does it paint all ten digits equally often? Look for bars outside the band, where two standard deviations of pure chance end. (Of ten bars one is often a little outside by chance; the table has the shares among 5,000.)

# %% mystnb={"image": {"alt": "Bars for the ten digits: the percentage of sixty generated images that the judge takes for each, beside the shares in the test set. The bars scatter around ten, nearly all within a shaded band from 2 to 18; the ones are just below it."}}
classes = experiment.judge().judge(drawn).probabilities.argmax(1)
shown = 100 * class_shares(classes, 10)
chance = 200 * math.sqrt(0.1 * 0.9 / len(classes))  # two standard deviations
among_real = 100 * class_shares(load("mnist").test.labels, 10)
figure, axis = plt.subplots(figsize=(5.4, 2.6))
axis.axhspan(10 - chance, 10 + chance, color="grey", alpha=0.2)
axis.bar(torch.arange(10) - 0.2, shown, 0.4, label="sixty generated")
axis.bar(torch.arange(10) + 0.2, among_real, 0.4, label="test set")
axis.set(xlabel="digit, as the judge sees it", ylabel="percent")
axis.set_xticks(range(10))
axis.legend(fontsize=8)
plt.show()
assert shown.max() < 25

# %% [markdown]
# And in bits? The bound of [Eq. 5](#eq-ddpm-5) on twenty test images, estimated by a few terms of each; the card has it for a thousand.

# %%
test = to_signed(data.test[:20])
bits = estimated_bits(diffusion, unet, test).mean().item()
with torch.no_grad():
    first = diffusion.bound_term(
        unet, test, at_time(test, 1), torch.randn_like(test), clip=True
    )
assert 0.5 < bits < 3.7
glue(bits=bits, first=first.mean().item())

# %% [markdown]
# {glue:text}`bits:.2f` bits a pixel, of which {glue:text}`first:.2f` belong to the last step alone (on the card: {glue:text}`card_bits:.2f` in all). The paper reaches at most 3.75 on CIFAR-10 with $L_\text{simple}$, 3.70 when trained on the bound. Most of MNIST is black, so a pixel costs less, though our training [cares less for bits](#which-times-to-train-on).
#
# (which-times-to-train-on)=
# ## Which times to train on
#
# Algorithm 1 draws every time as often as every other. Does every time matter as much?
#
# Ask another model, of the shipped one's size, trained with every time as likely, to predict the noise, for {glue:text}`alike_passes:.0f` passes. Take {glue:text}`cleaned:.0f` test digits, add noise up to $t$, and let it take the noise out again, ten times a step, with $\eta = 1$. Two things can go wrong: another digit comes back, or something that is none. At which $t$ would you expect the one, and at which the other? The grey hill, without a scale, is what we make of the answer, and the third line a model trained by it.

# %% mystnb={"image": {"alt": "Against the time from 100 to 1000 three lines and a hill. The percentage of images that still show the same digit falls from nearly all at 200 to a tenth at 800, most steeply from 400 to 600. The percentage of which the judge is sure falls a little from 200 to 300, changes little up to 800 and is lowest at 1000; for a model trained by the hill it falls alike. The hill is highest near 330 and has most of its area between 150 and 600."}}
stored = json.loads(experiment.RESULTS.read_text())
assert stored["recipe"] == json.loads(json.dumps(experiment.about()))
cleaned = lambda start, model: stored[f"from {start} {model}"]
hill = diffusion.alpha_bar[1:].sqrt() * (1 - diffusion.alpha_bar[1:])
lines = {
    "the same digit": ("same", "alike"),
    "judge sure": ("sure", "alike"),
    "judge sure, trained by the hill": ("sure", "hill"),
}
figure, axis = plt.subplots(figsize=(6.4, 3.0))
starts = experiment.STARTS
for label, (name, model) in lines.items():
    percent = [100 * cleaned(each, model)[name] for each in starts]
    axis.plot(starts, percent, marker="o", label=label)
hill_label = "how often to train on a time"
axis.fill_between(
    range(1, 1001),
    40 * hill / hill.max(),
    color="grey",
    alpha=0.25,
    label=hill_label,
)
axis.set(xlabel="noise added up to time t", ylabel="percent", ylim=(0, 105))
axis.legend(fontsize=7, loc=(0.58, 0.28))
plt.show()

# %%
early, mid, late = (cleaned(start, "alike") for start in (200, 500, 800))
assert early["same"] > 0.9
assert late["same"] < 0.2
# Two standard errors of a difference are about 4 %.
whole = cleaned(1000, "alike")
assert early["sure"] - whole["sure"] > 0.04
loss = torch.tensor(stored["loss alike"])
loss = 100 * loss / loss.sum()
assert loss[0] > loss[3:6].sum()
glue(same_200=100 * early["same"], same_500=100 * mid["same"])
glue(same_800=100 * late["same"], sure_200=100 * early["sure"])
glue(sure_500=100 * mid["sure"], sure_all=100 * whole["sure"])
glue(sure_300=100 * cleaned(300, "alike")["sure"])
glue(loss_100=loss[0].item(), loss_600=loss[3:6].sum().item())
glue(loss_1000=loss[7:].sum().item(), cleaned=experiment.CLEANED)


# %% [markdown]
# From $t = 200$, {glue:text}`same_200:.0f` % come back as the digit they were, from 500 {glue:text}`same_500:.0f` %, and from 800 {glue:text}`same_800:.0f` %, where chance is ten. So it is in between that the model decides what to paint (a single pixel, in the figure further up, decided later: here 784 of them betray the digit together). Errors begin a little earlier: the judge is sure of {glue:text}`sure_200:.0f` % of the images if the model starts at 200, of {glue:text}`sure_300:.0f` % at 300, of {glue:text}`sure_500:.0f` % at 500 and of {glue:text}`sure_all:.0f` % at 1000, each give or take two, so that chance is as large as the difference of neighbours.
#
# The loss is elsewhere: the first hundred times have {glue:text}`loss_100:.0f` % of $L_\text{simple}$, those from 301 to 600 have {glue:text}`loss_600:.0f` %, and the last three hundred, 30 % of all that are drawn, have {glue:text}`loss_1000:.1f` %. Why not train on the middle more often? Call $p(t)$ the probability that a time is drawn, and let
#
# (eq-ddpm-times)=
# $$
# p(t) \propto \bigl(\sqrt{\bar{\alpha}_t}\, (1 - \bar{\alpha}_t)\bigr)^\kappa
# \tag{P1}
# $$
#
# with $\kappa = 0$ for Algorithm 1 and $\kappa = 1$ for the grey hill: next to nothing at both ends, most where a third of the variance is the image's, at $t = 327$. Its form is a choice, not a derivation. {cite:t}`hang2024` choose another: they draw $\ln(\bar{\alpha}_t / (1 - \bar{\alpha}_t))$ mostly near 0, where image and noise are equally strong (here at $t = 260$), and find training on ImageNet more efficient. What is minimised is then [Eq. 14](#eq-ddpm-14) with a weight $T p(t)$ at each time: $L_\text{simple}$ makes less of the small times than the bound does, and this goes one step further in the same direction. (Where the velocity is predicted, $p(t)$ weights *its* error; in that of the noise the large times count for $1 / \bar{\alpha}_t$ times as much again.)
#
# And the times of a batch need not be drawn one by one. In our longer trainings, with the hill or without, they lie evenly over the distribution, the first at random ({cite:t}`kingma2021`, their Section 5.3), so that each batch has nearly the same mix of easy and hard ones.

# %%
def times_naive(kappa, start, n):  # (eq-ddpm-times)
    bars = diffusion.alpha_bar[1:].tolist()
    shares = [(b**0.5 * (1 - b)) ** kappa for b in bars]
    found = []
    for i in range(n):
        place = (start + i / n) % 1 * sum(shares)
        t, below = 1, shares[0]
        while below <= place:
            t += 1
            below += shares[t - 1]
        found.append(t)
    return found


# %% [markdown]
# Times above 700 have {glue:text}`hill_late:.0f` % of the hill's area. How many of a batch of 64 will be above 700, and how many if every time is as likely? (Some 4, and some 19.)

# %% tags=["nbval-check-output"]
begins = torch.rand(1, generator=generator(11, 0), dtype=torch.float64).item()
drawn_times = {}
for kappa in (0.0, 0.5, 1.0):
    recipe = replace(experiment.RECIPE, focus=kappa)
    drawn_times[kappa] = recipe.times(64, generator(11, 0))
    assert drawn_times[kappa].tolist() == times_naive(kappa, begins, 64)
assert experiment.RECIPE.focus == 0.5
alike, times = drawn_times[0.0], drawn_times[1.0]
area = (hill[700:].sum() / hill.sum()).item()
assert abs((times > 700).sum().item() - 64 * area) < 1
assert abs((alike > 700).sum().item() - 64 * 0.3) < 1
glue(hill_late=100 * area)
for name, heights in {"hill": hill, "root": hill.sqrt()}.items():
    glue(**{f"{name}_early": 100 * (heights[:100].sum() / heights.sum()).item()})
print(f"above 700: {(times > 700).sum()} of 64, else {(alike > 700).sum()}")

# %% [markdown]
# What does it buy, and at what price? Four trainings of the same network, one run each, with what their cards say of 5,000 images. The square root of the hill, $\kappa = \tfrac{1}{2}$, is milder: {glue:text}`root_early:.0f` % of the draws are of the first hundred times, with the hill itself {glue:text}`hill_early:.0f` %.

# %%
models = (*experiment.OTHERS, "shipped")
for model in models:
    each = stored[f"card {model}"]
    glue(**{f"{model}_passes": each["epochs"]})
    glue(**{f"{model}_of_card": 100 * each["sure"]})
    glue(**{f"{model}_far": each["Fréchet distance"]})
    glue(**{f"{model}_bits": each["bits per dimension"]})
cards = lambda metric: [stored[f"card {model}"][metric] for model in models]
assert cards("sure")[-1] == figures["sure"]

# %%
alike_sure, hill_sure, velocity_sure, shipped_sure = cards("sure")
assert abs(hill_sure - alike_sure) < 0.01
assert alike_sure + 0.01 < shipped_sure
assert abs(velocity_sure - shipped_sure) < 0.01
alike_bits, hill_bits, _, shipped_bits = cards("bits per dimension")
assert alike_bits + 0.1 < shipped_bits < hill_bits - 0.5
glue(root_costs=shipped_bits - alike_bits)
alike_far, hill_far, velocity_far, shipped_far = cards("Fréchet distance")
assert shipped_far < velocity_far < alike_far < hill_far

# %% [markdown]
# | times | predicts | learning rate | passes | judge sure, % | Fréchet distance | bits a pixel |
# |---|---|---|---|---|---|---|
# | every one as likely | noise | 0.001 | {glue:text}`alike_passes:.0f` | {glue:text}`alike_of_card:.1f` | {glue:text}`alike_far:.1f` | {glue:text}`alike_bits:.2f` |
# | by the hill | noise | 0.001 | {glue:text}`hill_passes:.0f` | {glue:text}`hill_of_card:.1f` | {glue:text}`hill_far:.1f` | {glue:text}`hill_bits:.2f` |
# | by its square root, shipped | noise | 0.002 | {glue:text}`shipped_passes:.0f` | {glue:text}`shipped_of_card:.1f` | {glue:text}`shipped_far:.1f` | {glue:text}`shipped_bits:.2f` |
# | by its square root | velocity | 0.002 | {glue:text}`velocity_passes:.0f` | {glue:text}`velocity_of_card:.1f` | {glue:text}`velocity_far:.1f` | {glue:text}`velocity_bits:.2f` |
#
# By the hill, {glue:text}`hill_passes:.0f` passes give digits about as good as {glue:text}`alike_passes:.0f` with all times alike: the judge is as sure, the distance a little larger, which one run each cannot tell from chance. The price is in the last column: most of the bits belong to the first few times, which nobody sees and which the hill hardly visits. Its square root costs {glue:text}`root_costs:.2f` bits and has the smallest distance of the four; but against the first row the learning rate differs too, against the second learning rate and passes, so this does not say which of them helped. Who wants to code images trains on all times alike.
#
# The last two rows differ in what is predicted, and in two passes. Trained for so long, we see no gain from the velocity on digits: the judge is as sure, distance and bits are a little worse; again one run each.
#
# The three that are not shipped are trained by commands in `src/paperwalk/experiments/ddpm.py`; with their folder, `python -m paperwalk.experiments.ddpm --others FOLDER` made the numbers of this section.
#
# (clothes)=
# ## Clothes
#
# Nothing in the model knows of digits. Fashion-MNIST {cite:p}`xiao2017` has as many pictures of clothes, as small and as grey, so one would expect to change nothing but the name of the data. One thing more will change.
#
# Clothes also put the [guess about grey](#the-velocity) to the test: if errors in the noise brighten, a network that predicts it paints too brightly. The small networks of the [comparison below](#what-to-predict), trained on clothes: a process of a hundred steps, {glue:text}`clothes_steps:.0f` batches of {glue:text}`clothes_batch:.0f`, three seeds, the same but for what is predicted; {glue:text}`clothes_drawn:.0f` images each, drawn by DDIM in all hundred steps with no noise added. Which mean pixel will be nearer to that of the test images?

# %%
worn = to_signed(load("fashion-mnist").test.images)
darker_than_grey = worn.mean((1, 2, 3)) < 0
assert darker_than_grey.double().mean() > 0.9
glue(worn_bright=worn.mean().item())
pick = lambda key, metric: torch.tensor(
    [stored[f"{key} {seed}"][metric] for seed in experiment.SEEDS]
)

# %%
brief = experiment.SMALL
glue(clothes_steps=brief.steps, clothes_batch=brief.batch_size)
glue(clothes_drawn=experiment.DRAWN)

# %%
too_bright = pick("clothes epsilon", "brightness") - worn.mean()
off = (pick("clothes velocity", "brightness") - worn.mean()).abs()
assert too_bright.min() > 2 * off.max()
for p in ("epsilon", "velocity"):
    for metric in ("brightness", "distance"):
        values = pick(f"clothes {p}", metric)
        glue(**{f"sewn_{p}_{metric}": values.mean().item()})
        glue(**{f"sewn_{p}_{metric}_sd": values.std().item()})

# %% [markdown]
# | clothes, predicting | mean pixel | Fréchet distance |
# |---|---|---|
# | the noise | {glue:text}`sewn_epsilon_brightness:.2f` ± {glue:text}`sewn_epsilon_brightness_sd:.2f` | {glue:text}`sewn_epsilon_distance:,.0f` ± {glue:text}`sewn_epsilon_distance_sd:,.0f` |
# | the velocity | {glue:text}`sewn_velocity_brightness:.2f` ± {glue:text}`sewn_velocity_brightness_sd:.2f` | {glue:text}`sewn_velocity_distance:,.0f` ± {glue:text}`sewn_velocity_distance_sd:,.0f` |
# | test images | {glue:text}`worn_bright:.2f` | |
#
# The velocity's, with every seed: who predicts the noise paints too brightly, who predicts the velocity comes close to the test images. (With the velocity comes the weight $1 / \bar{\alpha}_t$; which of the two helps, this cannot say. Nor did we leave out the cutting off, which the guess blames.) The distance gains less: after so few batches much else is wrong with both.
#
# So the recipe of clothes predicts the velocity. Otherwise it is that of the digits, with half the passes; whether its times are the best for clothes too, we have not tried, nor whether the noise would catch up as it does on digits.
#
# ```
# paperwalk train ddpm --recipe fashion-mnist-cpu --output runs/clothes
# paperwalk sample runs/clothes
# ```
#
# The data, as this book fetches them, do not say which images are for testing; we take the first thousand of each class. That this is the published split is likely, not certain: compare no accuracy with a published one. The book ships the result, after {glue:text}`clothes_passes:.0f` passes and {glue:text}`clothes_minutes:.0f` minutes of one core. These are drawn by DDIM in twenty steps, from the same noise as the digits above. Look at the outlines first, then at the surfaces, which digits do not have.

# %% mystnb={"image": {"alt": "Forty generated pictures in four rows of ten, grey on black: shirts, pullovers, coats, dresses, a bag, boots, sandals, trainers. Outlines are clear and sleeves match; some surfaces are even, others blotched."}}
folder = checkpoint("ddpm-fashion-mnist")
tailor = UNet.from_pretrained(folder)
assert tailor.config == unet.config
with fast_autocast():
    sewn = ddim(turning, tailor, start[:40], steps=20).images
figure = plot.show_images(pixels(sewn), columns=10, side=0.7)

# %% [markdown]
# The judge of clothes comes with the package too (`python -m paperwalk.train.judge --data fashion-mnist`). It is right on {glue:text}`clothes_judge:.1f` % of the test images: small grey shirts, pullovers and coats are hard to tell apart. Will it be sure of as many real images as the judge of digits?

# %%
tailor_card = json.loads((folder / "card.json").read_text())
assert tailor_card["recipe"]["predict"] == turning.predict
judged = json.loads((JUDGES / "fashion-mnist" / "card.json").read_text())
said = {name: each["value"] for name, each in tailor_card["metrics"].items()}

# %%
glue(clothes_judge=100 * judged["metrics"]["accuracy"]["value"])
glue(clothes_passes=tailor_card["recipe"]["epochs"])
glue(clothes_minutes=tailor_card["cpu_seconds"] / 60)
for of, key in {"": "clothes", "real: ": "worn"}.items():
    glue(**{f"{key}_far": said[f"{of}Fréchet distance"]})
    glue(**{f"{key}_score": said[f"{of}class score"]})
    for metric in ("sure", "rarest class", "commonest class"):
        glue(**{f"{key}_{metric.split()[0]}": 100 * said[of + metric]})

# %%
gap, of_digits = (c["real: sure"] - c["sure"] for c in (said, figures))
assert gap > of_digits > 0
assert said["real: sure"] < figures["real: sure"]
assert said["commonest class"] < 0.15


# %% [markdown]
# | 5,000 images, from the card | class score | judge sure, % | rarest class, % | commonest, % | Fréchet distance |
# |---|---|---|---|---|---|
# | shipped, 100 steps with $\eta = 1$ | {glue:text}`clothes_score:.2f` | {glue:text}`clothes_sure:.1f` | {glue:text}`clothes_rarest:.1f` | {glue:text}`clothes_commonest:.1f` | {glue:text}`clothes_far:.1f` |
# | real, held out | {glue:text}`worn_score:.2f` | {glue:text}`worn_sure:.1f` | {glue:text}`worn_rarest:.1f` | {glue:text}`worn_commonest:.1f` | {glue:text}`worn_far:.1f` |
#
# The judge would put its name to fewer of these than of real clothes, and the gap is wider than that of digits, after half the passes; how much of it more of them would close, we have not tried. The distance says it most loudly, {glue:text}`clothes_far:.0f` against {glue:text}`worn_far:.0f`. By the judge's count the classes come less evenly than the real ones. Of real clothes it is less often sure than the other judge is of real digits ({glue:text}`card_realsure:.1f` %), so a class score near ten is out of reach for them too.
#
# ## Between two images
#
# What lies between two digits? Pixels of both, if one mixes the images. The paper mixes them with noise (Section 4.4): add noise up to $t = 500$, mix, and let the reverse process clean up what is no digit.
#
# (eq-ddpm-mix)=
# $$
# \bar{\mathbf{x}}_t = (1 - \lambda)\, \mathbf{x}_t + \lambda\, \mathbf{x}_t'
# \tag{§4.4}
# $$
#
# $\mathbf{x}_t$ and $\mathbf{x}_t'$ are the two images with noise, $\lambda$ from 0 to 1 is the share of the second, and $\bar{\mathbf{x}}_t$ is the mixture. (The paper prints $\mathbf{x}_0$ and $\mathbf{x}_0'$ on the right; its words speak of "corrupted versions of the source images".) We give both ends the same noise, so that the mixture has the noise that belongs to $t$; and we add none on the way back, $\eta = 0$, so that only $\lambda$ differs.
#
# What are the two ends, $\lambda = 0$ and 1: the images themselves?

# %%
def mix_naive(a, b, lambdas):  # (eq-ddpm-mix)
    return torch.stack([(1 - x) * a + x * b for x in lambdas.tolist()])


lambdas = torch.linspace(0, 1, 8)
sources = digits[:4]  # 0 and 1, 2 and 3
noise = torch.randn(1, 1, 28, 28, generator=generator(9, 0)).expand(4, -1, -1, -1)
ends = diffusion.q_sample(sources, at_time(sources, 500), noise)
mixed = torch.cat([mix_naive(ends[i], ends[i + 1], lambdas) for i in (0, 2)])
at_once = torch.lerp(
    ends[[0, 2], None], ends[[1, 3], None], lambdas.view(-1, 1, 1, 1)
)
assert torch.allclose(mixed, at_once.flatten(0, 1), atol=1e-5)
between = ddim(diffusion, unet, mixed, steps=25, start=500).images

# %% mystnb={"image": {"alt": "Four rows of eight images. Rows one and three: mixtures of the pixels of two digits, both seen through each other. Rows two and four: what the model makes of the noisy mixtures, strokes of one digit that changes from left to right."}}
pairs = torch.cat([mix_naive(digits[i], digits[i + 1], lambdas) for i in (0, 2)])
rows = torch.cat([pairs[:8], between[:8], pairs[8:], between[8:]])
figure = plot.show_images(pixels(rows), columns=8, side=0.8)

# %% [markdown]
# The ends need not come back exactly: at $t = 500$ only {glue:text}`left_500:.3f` of the variance is still the image's, and the model fills in the rest.
#
# (what-to-predict)=
# ## What to predict, and how many steps
#
# The paper's Table 2 compares what the network predicts, and on which loss it is trained. Distances to CIFAR-10's training images, less is better:
#
# | | trained on the bound, [Eq. 5](#eq-ddpm-5) | on the simple loss |
# |---|---|---|
# | paper, predicting $\tilde{\boldsymbol{\mu}}$ | 13.22 | unstable |
# | paper, predicting $\boldsymbol{\epsilon}$ | 13.51 | **3.17** |
#
# Scaled down: a quarter of the shipped network's computing a call, {glue:text}`small_steps:.0f` batches of {glue:text}`small_batch:.0f`, a process of a hundred steps that ends in the same noise, {glue:text}`drawn_few:.0f` images drawn, three seeds. Everything else is the same, but for one thing that we take over from
# the official code: $\hat{\mathbf{x}}_0$ is cut off at −1 and 1 where the noise is predicted (here also where the velocity is), and a predicted mean is left as it is. `python -m paperwalk.experiments.ddpm` made the numbers in about an hour of one core.

# %%
for p, o in experiment.TRAINED:
    for metric in ("distance", "score", "bits"):
        values = pick(f"{p} {o}", metric)
        assert values.shape == (3,)
        key = f"{p}_{o}_{metric}"
        glue(**{key: values.mean().item(), f"{key}_sd": values.std().item()})
glue(real_distance_few=pick(f"real {experiment.DRAWN}", "distance").mean().item())
glue(real_score_few=pick(f"real {experiment.DRAWN}", "score").mean().item())
glue(small_steps=experiment.SMALL.steps, small_batch=experiment.SMALL.batch_size)
glue(drawn_few=experiment.DRAWN, drawn_shipped=experiment.DRAWN_SHIPPED)
glue(seen=experiment.SMALL.steps * experiment.SMALL.batch_size)
means = {
    (p, o): pick(f"{p} {o}", "distance").mean().item()
    for p, o in experiment.TRAINED
}
turned_mean = means.pop(("velocity", "simple"))
assert min(means, key=means.get) == ("epsilon", "simple")
assert turned_mean < means["epsilon", "simple"]
scores = {po: pick(" ".join(po), "score").mean() for po in experiment.TRAINED}
assert max(scores, key=scores.get) == ("velocity", "simple")
assert max(means, key=means.get) == ("epsilon", "bound")

# %% [markdown]
# | ours | distance | class score | bits a pixel |
# |---|---|---|---|
# | $\tilde{\boldsymbol{\mu}}$, bound | {glue:text}`mean_bound_distance:.0f` ± {glue:text}`mean_bound_distance_sd:.0f` | {glue:text}`mean_bound_score:.1f` ± {glue:text}`mean_bound_score_sd:.1f` | {glue:text}`mean_bound_bits:.2f` ± {glue:text}`mean_bound_bits_sd:.2f` |
# | $\tilde{\boldsymbol{\mu}}$, simple | {glue:text}`mean_simple_distance:.0f` ± {glue:text}`mean_simple_distance_sd:.0f` | {glue:text}`mean_simple_score:.1f` ± {glue:text}`mean_simple_score_sd:.1f` | {glue:text}`mean_simple_bits:.2f` ± {glue:text}`mean_simple_bits_sd:.2f` |
# | $\boldsymbol{\epsilon}$, bound | {glue:text}`epsilon_bound_distance:.0f` ± {glue:text}`epsilon_bound_distance_sd:.0f` | {glue:text}`epsilon_bound_score:.1f` ± {glue:text}`epsilon_bound_score_sd:.1f` | {glue:text}`epsilon_bound_bits:.2f` ± {glue:text}`epsilon_bound_bits_sd:.2f` |
# | $\boldsymbol{\epsilon}$, simple | {glue:text}`epsilon_simple_distance:.0f` ± {glue:text}`epsilon_simple_distance_sd:.0f` | {glue:text}`epsilon_simple_score:.1f` ± {glue:text}`epsilon_simple_score_sd:.1f` | {glue:text}`epsilon_simple_bits:.2f` ± {glue:text}`epsilon_simple_bits_sd:.2f` |
# | $\mathbf{v}$, simple | {glue:text}`velocity_simple_distance:.0f` ± {glue:text}`velocity_simple_distance_sd:.0f` | {glue:text}`velocity_simple_score:.1f` ± {glue:text}`velocity_simple_score_sd:.1f` | {glue:text}`velocity_simple_bits:.2f` ± {glue:text}`velocity_simple_bits_sd:.2f` |
# | as many real images | {glue:text}`real_distance_few:.0f` | {glue:text}`real_score_few:.1f` | |
#
# Of the four that the paper has, the smallest distance is that of $\boldsymbol{\epsilon}$ on the simple loss, as there. On the bound $\boldsymbol{\epsilon}$ does worst by far: there the small times count most ([Eq. 12](#eq-ddpm-12)), whose noise nobody sees.
#
# The rest is not the paper's. Predicting the mean is no worse on the simple loss than on the bound by distance, where the paper's run was unstable; on the bound it is much better than $\boldsymbol{\epsilon}$, where the paper finds both alike, and in class score it is level with the best of the four. Nor does the bound
# give $\boldsymbol{\epsilon}$ fewer bits. All are far from real digits: they have seen {glue:text}`seen:,.0f` images, the paper's a hundred million. And a network starts as zero. For the noise that says "$\mathbf{x}_t$ is right as it is"; who predicts the mean must first learn to copy its input, and the bits tell what that costs. So
# this table says how training begins; the paper's how it ends. (These bits do not compare with those of the shipped model: another $T$.) The last row of networks, the velocity of [Eq. S1](#eq-ddpm-velocity), is not in the paper: it is nearest, and paints the most classes, for about the bits of $\boldsymbol{\epsilon}$.
#
# And the number of steps? {cite:t}`song2021` find that DDIM needs ten to fifty times fewer steps than Algorithm 2. The shipped model, {glue:text}`drawn_shipped:.0f` images each, with no noise added and with as much as Algorithm 2 with the small variance adds ($\eta = 1$). Look for where the curves level off, and which is lower at the left.

# %% mystnb={"image": {"alt": "Fr\u00e9chet distance against the number of steps from 2 to 50, both logarithmic, one line without added noise and one with, error bars over three seeds, and a dotted line for real images."}}
figure, axis = plt.subplots(figsize=(6.0, 3.0))
reached = {}
for eta in experiment.ETAS:
    runs = [stored[f"steps {eta} {seed}"] for seed in experiment.SEEDS]
    table = torch.tensor(
        [[run[str(n)]["distance"] for n in experiment.STEPS] for run in runs]
    )
    reached[eta], label = table.mean(0), f"η = {eta:.0f}"
    bars = {"yerr": table.std(0), "marker": "o", "capsize": 3, "label": label}
    axis.errorbar(experiment.STEPS, reached[eta], **bars)
best = pick(f"real {experiment.DRAWN_SHIPPED}", "distance").mean().item()
axis.axhline(best, color="grey", ls=":", label="real images")
axis.set(xlabel="steps", ylabel="Fréchet distance", xscale="log", yscale="log")
axis.set_xticks(experiment.STEPS, experiment.STEPS)
axis.minorticks_off()
axis.legend()
plt.show()
assert (reached[0.0] < reached[1.0]).tolist()[:2] == [True, True]
assert reached[1.0][-1] < min(best, reached[0.0][-1])
assert abs(reached[0.0][-2] / reached[0.0][-1] - 1) < 0.1
glue(zero_50=reached[0.0][-1].item(), one_50=reached[1.0][-1].item())
last = [stored[f"steps 1.0 {seed}"]["50"]["score"] for seed in experiment.SEEDS]
among_real_score = pick(f"real {experiment.DRAWN_SHIPPED}", "score").mean().item()
assert sum(last) / 3 < among_real_score
glue(score_50=sum(last) / 3, score_150_real=among_real_score)

# %% [markdown]
# With the fewest steps it is better to add no noise, as they find with ten and more: noise that is added has to be taken out again, and there are not enough steps left for it. And without it twenty steps do as well as fifty. But in fifty steps the distance is {glue:text}`zero_50:.0f` without added noise and {glue:text}`one_50:.0f` with it, and
# that they do not find: with them noise wins in all thousand steps alone, and with the large variance. A guess: with noise, later steps can mend what earlier ones got wrong, and our network gets more wrong than theirs. That the last point lies below the dotted line does not say that the images are better than real ones: with so few, the distance cannot tell them apart any more. The class score can, {glue:text}`score_50:.1f` against {glue:text}`score_150_real:.1f`.
#
# (differs)=
# ## Where this differs from the paper
#
# | | paper or official code | here | why |
# |---|---|---|---|
# | data | CIFAR-10, CelebA-HQ, LSUN | MNIST, Fashion-MNIST | two cores |
# | model | 35.7M, 114M and 256M parameters; attention at 16 × 16; groups of the norm: 32 in the official code | 2.7M, 3 levels of one block, attention at 7 × 7, 8 groups; on this page and in the experiment half the width | two cores |
# | length | 800,000 steps of 128 on CIFAR-10, 0.5 to 2.4 million of 64 on the larger images | 16 passes (clothes: 8; three models to compare with: [see there](#which-times-to-train-on)), steps of 64 | two cores |
# | rate | constant $2 \cdot 10^{-4}$ ($2 \cdot 10^{-5}$ at 256 × 256), in the official code after 5,000 steps of warm-up | up to $2 \cdot 10^{-3}$, for two of the models to compare with $10^{-3}$, a cosine; the paper's in `--recipe paper` | a short run has to end |
# | average | 0.9999 | 0.9995; 0.98 on this page, 0.99 in the experiment | fewer steps to look back over |
# | dropout | 0.1 on CIFAR-10 | none | no overfitting to fight in so few passes |
# | held out | nothing of the training split | its last twelfth, also in `--recipe paper` | real images to compare with |
# | flips | yes, but on LSUN Bedroom | none | digits are not symmetric |
# | loss | sum over pixels; mean in the official code | mean | as the code |
# | what is predicted | the noise; the mean to compare with | the same; for clothes, and to compare with, [the velocity](#the-velocity) ({cite:t}`salimans2022`) | see there |
# | times of training | every time as likely | the same for the small networks; for the shipped ones in proportion to the [square root of a hill](#which-times-to-train-on); of the three to compare with, one each with every time alike, by the hill, by its root | see there |
# | times of a batch | each drawn by itself | in the longer trainings evenly over their distribution, the first at random ({cite:t}`kingma2021`, Section 5.3) | a like mix in each batch |
# | time | 1 … T; 0 … T − 1 in the official code | the network is told $t - 1$ | as the code |
# | $\sigma_1^2$ in the bound | official code: $\tilde{\beta}_2$ for both variances | the same | $\tilde{\beta}_1$ is 0 |
# | $\hat{\mathbf{x}}_0$ | cut off at −1 and 1 when sampling and in the bound, by the official code, where the noise is predicted | the same, also where the velocity is | as the code |
# | DDIM's $\hat{\mathbf{x}}_0$ | not cut off in its official code | cut off | as DDPM's official code |
# | the integral in Eq. 13 | official code: an approximation by tanh | exact | torch has it |
# | zero layers | official code: Xavier with $10^{-10}$ times the variance, so weights of $10^{-5}$ times the size | zero | next to no difference |
# | DDIM's times | official code begins a little before $T$ | the first is $T$ | the start is pure noise |
# | Figure 8 | a draw of noise for each source, as its notation reads; Algorithm 2 | one noise for both ends, DDIM | the mixture keeps its variance |
# | quality | FID and Inception score of 50,000 images in 1000 steps, distance to the training images | distance and class score by our own classifier, 5,000 images in 100 steps of DDIM with $\eta = 1$, distance to test images | digits are not ImageNet |
# | which weights | those of the least FID seen in training | the last average, stored in half precision | one run, one measurement |
# | bits | all T terms, the whole test set | $L_0$, $L_T$ and one term of each of 16 parts of the other times, 1,000 test images | two cores |
# | Figure 6 | all thousand steps | a hundred steps of ten | two cores |
# | short runs | T = 1000 | T = 100 on this page and in the experiment, with ten times the $\beta$ | half a minute |
# | Table 2 | learned variances too | fixed only | two cores |
#
# ## Exercises
#
# :::{exercise} A shorter process
# :label: ex-ddpm-short
#
# You want $T = 100$ and keep $\beta$ from $10^{-4}$ to 0.02. The loss falls as it should, and yet the samples are bad. Why? Which range of $\beta$ would you take?
# :::
#
# :::{solution-start} ex-ddpm-short
# :class: dropdown
# :::
#
# The sum of the betas is ten times smaller, so a third of the variance is still the image's at $t = T$. The network has never seen pure noise, yet that is what it is started from. Ten times the betas keep the sum; `DDPMRecipe(n_steps=100)` takes them by itself.

# %% tags=["nbval-check-output"]
kept = GaussianDiffusion(linear_schedule(100)).alpha_bar[-1].item()
scaled = GaussianDiffusion(linear_schedule(100, 1e-3, 0.2)).alpha_bar[-1].item()
assert kept > 0.3
assert scaled < 1e-4
print(
    f"image's share at the end: {kept:.2f}, with ten times the betas {scaled:.0e}"
)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Noise is a slope
# :label: ex-ddpm-score
#
# Show that the best $\boldsymbol{\epsilon}_\theta$ is $-\sqrt{1 - \bar{\alpha}_t}\, \nabla \log q(\mathbf{x}_t)$: predicting the noise is knowing which way the data get denser. Check it for the three points, by differentiating the logarithm of their density at time $t$.
# :::
#
# :::{solution-start} ex-ddpm-score
# :class: dropdown
# :::
#
# The squared error is least for the mean of $\boldsymbol{\epsilon}$ given $\mathbf{x}_t$. Now $\nabla q(\mathbf{x}_t) = \int q(\mathbf{x}_0)\, q(\mathbf{x}_t | \mathbf{x}_0)\, \nabla \log q(\mathbf{x}_t | \mathbf{x}_0)\, d\mathbf{x}_0$, and dividing by $q(\mathbf{x}_t)$ makes the weights $q(\mathbf{x}_0 | \mathbf{x}_t)$: $\nabla \log q(\mathbf{x}_t) = \mathbb{E}[\nabla \log q(\mathbf{x}_t | \mathbf{x}_0)]$, the mean being over $\mathbf{x}_0$ given $\mathbf{x}_t$. And $\nabla \log q(\mathbf{x}_t | \mathbf{x}_0) = -(\mathbf{x}_t - \sqrt{\bar{\alpha}_t} \mathbf{x}_0) / (1 - \bar{\alpha}_t) = -\boldsymbol{\epsilon} / \sqrt{1 - \bar{\alpha}_t}$.

# %% tags=["nbval-check-output"]
for t in (10, 300, 900):
    bar = diffusion.alpha_bar[t]
    x = torch.randn(50, 1, 1, 1, dtype=torch.float64).requires_grad_()
    each = Normal(bar.sqrt() * points, (1 - bar).sqrt()).log_prob(x)
    density = (shares.log() + each).logsumexp(-1)
    (slope,) = torch.autograd.grad(density.sum(), x)
    noise = perfect(x.detach(), torch.full((50,), t - 1))
    assert torch.allclose(noise, -(1 - bar).sqrt() * slope, atol=1e-9)
print("the best prediction of the noise is the slope of the density")

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} How much of the code is invisible?
# :label: ex-ddpm-rate
#
# Section 4.3 calls $L_1 + \cdots + L_T$ the rate and $L_0$ the distortion: 1.78 and 1.97 bits a dimension for the paper's best model, more than half for what nobody sees. What are they for our digits? And what is the root of the mean squared error of $\hat{\mathbf{x}}_0$ at $t = 1$, on the scale 0 … 255 (the paper's: 0.95)?
# :::
#
# :::{solution-start} ex-ddpm-rate
# :class: dropdown
# :::

# %%
noise = torch.randn_like(test)
x_1 = diffusion.q_sample(test, at_time(test, 1), noise)
with torch.no_grad():
    guess = unet(x_1, at_time(test, 0))
x_0_hat = diffusion.read(guess, x_1, at_time(test, 1), clip=True).x_0
error = 127.5 * (x_0_hat - test).square().mean().sqrt().item()
distortion = first.mean().item()
rate = bits - distortion
assert 0 < rate < bits
assert error < 127.5 * 0.01 * 2  # the noise of the first step has deviation 0.01
print(
    f"rate {rate:.2f}, distortion {distortion:.2f} bits; error {error:.2f} of 255"
)


# %% [markdown]
# The last step takes out noise of deviation 0.01, a little more than the distance of two neighbouring values. Naming the exact value is what the distortion pays for.
#
# :::{solution-end}
# :::
#
# :::{exercise} Spot the bug: a step of twenty that thinks it is one
# :label: ex-ddpm-bug-steps
#
# [diffusers #2076](https://github.com/huggingface/diffusers/pull/2076) is about a sampler that is right with all thousand steps and "just noise" with fewer. [A port to Rust](https://github.com/LaurentMazare/diffusers-rs/pull/47) had taken the behaviour over, and its authors had agreed that it was normal. The lines below have the bug. They walk over the times that `even_times` spreads. What is wrong?
# :::

# %%
def few_steps_with_bug(model, x, steps, draws):
    for t in even_times(1000, steps)[::-1]:
        b, bar, before = (
            table.item()
            for table in (
                diffusion.beta[t],
                diffusion.alpha_bar[t],
                diffusion.alpha_bar[t - 1],
            )
        )
        guess = model(x, torch.full((len(x),), t - 1))
        x_0 = (x - math.sqrt(1 - bar) * guess) / math.sqrt(bar)
        mean = math.sqrt(before) * b * x_0 + math.sqrt(1 - b) * (1 - before) * x
        z = torch.randn(x.shape, generator=draws, dtype=x.dtype)
        x = mean / (1 - bar) + math.sqrt((1 - before) / (1 - bar) * b) * z
    return x


# %% [markdown]
# :::{solution-start} ex-ddpm-bug-steps
# :class: dropdown
# :::
#
# The walk jumps from $t$ to $t - 20$, but $\beta_t$ and $\bar{\alpha}_{t-1}$ are those of one small step. Each jump takes out a twentieth of the noise that it should, while the network is told that all of it is gone. What is wanted is [Eq. 7](#eq-ddpm-7) with an earlier time $s$ in place of $t - 1$, and $1 - \bar{\alpha}_t / \bar{\alpha}_s$ in place of $\beta_t$; `posterior_weights(t, s)` has that.

# %% tags=["nbval-check-output"]
begin = torch.randn(500, 1, 1, 1, dtype=torch.float64)
far = lambda x: (x - points).abs().amin(-1).mean().item()
options = {"clip": False, "generator": generator(1, 1)}
for steps in (1000, 50):
    wrong = few_steps_with_bug(perfect, begin, steps, generator(1, 1))
    right = ancestral(small, perfect, begin, steps=steps, **options).images
    print(
        f"{steps} steps: {far(wrong):.1f} from any point, mended {far(right):.1f}"
    )
    assert (far(wrong) > 0.15) == (steps == 50)
    assert far(right) < 0.05


# %% [markdown]
# A test with all thousand steps cannot see it. That is why the tests of this book compare both samplers with few steps too.
#
# :::{solution-end}
# :::
#
# :::{exercise} Spot the bug: a bound below the truth
# :label: ex-ddpm-bug-seed
#
# This one happened to us, in a test of this chapter. The bound is computed for the normal pixels above, with the best network, and comes out *lower* than the true code length. No line of the model is wrong. What is?
# :::

# %%
def bound_with_bug():
    x_0 = 0.25 * torch.randn(
        40, 1, 16, 16, generator=torch.Generator().manual_seed(0)
    )
    x_0 = to_signed(ddpm.to_pixels(x_0))
    draws = torch.Generator().manual_seed(0)
    code = short.bits_per_dim(best_for_normal, x_0, draws).sum(1).mean().item()
    true = -Normal(0.0, 0.25).log_prob(x_0).mean().item() / math.log(2)
    return code, true + math.log2(255 / 2)


# %% [markdown]
# :::{solution-start} ex-ddpm-bug-seed
# :class: dropdown
# :::
#
# Both generators have the same seed, so the first noise drawn *is* the image, four times as large, and $\mathbf{x}_1 = 1.04\, \mathbf{x}_0$. The best network pulls each pixel a little towards 0, since
# large values owe, on average, a little of their size to the noise. Here every pixel *is* too large, so the pull is always in the right direction: the term of $t = 1$ falls by some hundredths of a bit, and that is more than the bound has to
# spare. A small slip, but a bound that is below the truth by any amount is wrong. Another seed, or one generator for both, is enough.

# %% tags=["nbval-check-output"]
code, true = bound_with_bug()
assert code < true
assert terms.sum(1).mean().item() > truth  # the cell of the bound, another seed
print("same seed: below the truth, which no bound can be; another seed: above")

# %% [markdown]
# :::{solution-end}
# :::
#
# ## Recap
#
# - Noise can be added in one jump ([Eq. 4](#eq-ddpm-4)), equal to many steps ([Eq. 2](#eq-ddpm-2)); if the image is known, the step back is Bayes' rule ([Eq. 7](#eq-ddpm-7)).
# - The network predicts the noise, from which image ([Eq. 15](#eq-ddpm-15)) and mean ([Eq. 11](#eq-ddpm-11)) follow (or the velocity, [Eq. S1](#eq-ddpm-velocity), which divides by nothing); the simple loss ([Eq. 14](#eq-ddpm-14)) is the bound ([Eq. 5](#eq-ddpm-5)) without its weights ([Eq. 12](#eq-ddpm-12)).
# - Algorithm 2 adds noise in each of its thousand steps but the last; DDIM ([Eq. D12](#eq-ddpm-d12)) can leave out both noise and steps, with the same network.
# - The U-Net sees small and large, is told the time in every block, and starts as zero. What one samples from is the average of its weights.
# - Loss says little of the quality of samples. Measure them, beside as many real images.
#
# Further reading: {cite:t}`nichol2021` learn the variances and get better bounds; {cite:t}`song2021sde` write the same as a stochastic differential equation; {cite:t}`heusel2017` on the distance; the official code, hojonathanho/diffusion, of which `diffusion_utils_2.py` is the part to read.
