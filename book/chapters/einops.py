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
# # Einops primer
#
# Tensor code goes wrong quietly. A `reshape` accepts any shape with the right number of elements, and a mean accepts any axis.
# {cite:t}`rogozhnikov2022` claims that "some commonly used operations do not provide sufficient checks and can break a tensor
# structure", and that these mistakes are "elusive as no tools or tests can detect them". His answer is to name the axes. The pattern
# `"h w c -> c h w"` says what goes in and what comes out, and the library checks what it can.
#
# The paper aims at readable and reliable code, so there is no number to reach. We prove the main patterns equal to their plain
# torch twins, in outputs and gradients. We also make the mistakes on purpose, on photographs and digits, and measure what a loss
# curve shows of one of them.
#
# :::{admonition} Before you start
# No other chapter comes first. You should know what the shape of a torch tensor is, and what a linear layer does. The section
# "Would training notice?" also uses a training loop and attention; on a first reading take them as given.
#
# After this chapter you can read and write every einops pattern of this book: `rearrange`, `reduce`, `repeat`, `pack`,
# `einsum` and the layers. You can say what einops checks, what it cannot check, and how to catch the rest.
#
# This page took {run-time} to run on one thread.
# :::

# %% tags=["hide-input"]
import torch
import torch.nn.functional as F
from einops import EinopsError, einsum, pack, rearrange, reduce, repeat, unpack
from einops.layers.torch import Rearrange, Reduce
from matplotlib import pyplot as plt
from skimage import data as photos
from torch import nn

from paperwalk import plot
from paperwalk.data import load, to_float
from paperwalk.nn import patchify
from paperwalk.notebook import glue, milliseconds, progress
from paperwalk.testing import Ladder, relative_error

plot.use_style()
torch.manual_seed(0)


def print_times(**versions):
    """Median time of each version, in milliseconds."""
    for name, version in versions.items():
        print(f"{name:>8}: {milliseconds(version):8.3f} ms")


def close(ours, theirs):
    """Equal up to rounding: the difference is tiny beside the largest value."""
    return relative_error(ours, theirs) < 1e-5


# %% [markdown]
# ## Which axis is which?
#
# A photo from a file has rows, columns and channels, in that order. A convolution in torch wants the channels first. How do we
# write that so that a reader can check it without running it?
#
# Give every axis a letter: $h$ for the rows, $w$ for the columns, $c$ for the channels. In an equation the letter is an index,
# counted from zero, and its capital is the length of the axis. We want
#
# (eq-einops-1)=
# $$
# y_{c,h,w} = x_{h,w,c}
# \tag{1}
# $$
#
# In loops:

# %%
def naive_channels_first(x):
    H, W, C = x.shape
    y = torch.empty(C, H, W, dtype=x.dtype)
    for c in range(C):
        for h in range(H):
            for w in range(W):
                y[c, h, w] = x[h, w, c]  # (eq-einops-1)
    return y


# %% [markdown]
# A pattern is this equation on one line: the axes of the input, an arrow, the axes of the output. `rearrange` only moves
# numbers, so each letter must stand on both sides.
#
# We take a small copy of a photo, 64 × 64 pixels in 3 colours. Predict the shape of the result.

# %% tags=["nbval-check-output"]
astronaut = torch.from_numpy(photos.astronaut())
small = astronaut[::8, ::8]
y = rearrange(small, "h w c -> c h w")
assert y.shape == (3, 64, 64)
assert torch.equal(y, naive_channels_first(small))
assert torch.equal(y, small.permute(2, 0, 1))
print(tuple(small.shape), "->", tuple(y.shape))

# %% [markdown]
# The lengths follow the letters. The last assertion is the plain torch twin: `permute(2, 0, 1)` does the same, but a reader must
# know what 2, 0 and 1 were.
#
# Nothing was copied, either: `rearrange` returns a view where torch can.

# %%
assert y.data_ptr() == small.data_ptr()
print_times(
    naive=lambda: naive_channels_first(small),
    permute=lambda: small.permute(2, 0, 1),
    einops=lambda: rearrange(small, "h w c -> c h w"),
)

# %% [markdown]
# Looking up a pattern costs some microseconds a call. Next to the matrix products of a model that is little.
#
# Now two mistakes. The photo is square, so the three results below have one shape, and no shape check tells them apart.

# %% tags=["nbval-check-output"]
right = rearrange(astronaut, "h w c -> c h w")
reshaped = astronaut.reshape(3, 512, 512)
swapped = astronaut.permute(2, 1, 0)
assert torch.equal(swapped, rearrange(astronaut, "h w c -> c w h"))
for name, y in dict(right=right, reshaped=reshaped, swapped=swapped).items():
    print(f"{name:>8} {tuple(y.shape)}, equal to right: {torch.equal(y, right)}")

# %% [markdown]
# Look for the astronaut, and which way is up.

# %% mystnb={"image": {"alt": "Three square images. Left: the photo of an astronaut, upright. Middle: nine stretched parts of the photo, three in each colour channel, over one another in false colours, crossed by a fine grid. Right: the photo mirrored along its diagonal, the astronaut lying on her side."}}
titles = ["h w c -> c h w", "reshape(3, 512, 512)", "h w c -> c w h"]
images = torch.stack([right, reshaped, swapped])
figure = plot.show_images(images, titles=titles, columns=3, side=2.3)


# %% [markdown]
# `reshape` moves no number. It cuts the same long row of numbers at other places. The red, green and blue of one pixel become three
# neighbours, and the top third of the photo becomes the red channel, the middle third the green, the bottom third the blue.
# And each row of the photo has 1,536 numbers, three rows of the result: its left, middle and right third lie in turn under one
# another. The third image is mirrored along its diagonal: rows and columns were swapped.
#
# In the pattern the second mistake can be seen, `c w h` instead of `c h w`; in `permute(2, 1, 0)` it cannot.
#
# ## How do two axes become one, and one two?
#
# A batch of digits has four axes: `b` images, `c` channels, `h` rows, `w` columns. We want the images side by side in one wide
# picture. Which column of the picture is column $w$ of image $b$?
#
# Each image is $W$ columns wide, so it is column $b \cdot W + w$. That sum is what parentheses mean, in this book's equations and
# in einops:
#
# (eq-einops-2)=
# $$
# y_{c,\,h,\,(b\,w)} = x_{b,c,h,w},
# \qquad (b\,w) = b \cdot W + w
# \tag{2}
# $$
#
# The rightmost letter in parentheses changes fastest, like the last digit of a number.

# %%
def naive_row(x):
    B, C, H, W = x.shape
    y = torch.empty(C, H, B * W)
    for b in range(B):
        for w in range(W):
            y[:, :, b * W + w] = x[b, :, :, w]  # (eq-einops-2)
    return y


# %% [markdown]
# Ten digits of 28 × 28 pixels, one channel. Predict the shape.

# %% tags=["nbval-check-output"]
mnist = load("mnist-5k")
digits = to_float(mnist.test.images[:10])
assert mnist.test.labels[:10].tolist() == list(range(10))  # one of each, in order
row = rearrange(digits, "b c h w -> c h (b w)")
assert row.shape == (1, 28, 280)
assert torch.equal(row, naive_row(digits))
assert torch.equal(row, digits.permute(1, 2, 0, 3).reshape(1, 28, 280))
print(tuple(digits.shape), "->", tuple(row.shape))

# %% [markdown]
# The columns become 10 · 28. Plain torch needs two steps, and the second one forgets the meaning of 280.
#
# To split an axis, write the parentheses on the left. All lengths but one must be given; the last follows. Swapping the two sides
# undoes a pattern:

# %% tags=["nbval-check-output"]
again = rearrange(row, "c h (b w) -> b c h w", b=10)
assert torch.equal(again, digits)
grid = rearrange(digits, "(b1 b2) c h w -> c (b1 h) (b2 w)", b1=2)
assert grid.shape == (1, 2 * 28, 5 * 28)
print("split again:", tuple(again.shape), " two rows of five:", tuple(grid.shape))

# %% [markdown]
# What if the letters in the parentheses change places? `(w b)` has the same length. Look at where the columns of each digit
# end up.

# %% mystnb={"image": {"alt": "Three wide strips. Top: the digits 0 to 9 side by side. Middle: the columns of all digits interleaved, an unreadable blur of vertical stripes. Bottom: short horizontal dashes in ten columns, in which no digit can be recognised."}}
strips = {
    "(b w)": row,
    "(w b)": rearrange(digits, "b c h w -> c h (w b)"),
    "reshape(1, 28, 280)": digits.reshape(1, 28, 280),
}
images = torch.stack([*strips.values()])
figure = plot.show_images(images, titles=[*strips], columns=1, side=6)
figure.set_size_inches(6, 3.2)

# %% [markdown]
# With `(w b)` we see column 0 of all ten digits, then column 1 of all ten, and so on: the digits are interleaved. `reshape` alone
# lays ten successive rows side by side, mostly of one digit, then the next ten below. All three have the same shape.

# %%
print_times(
    naive=lambda: naive_row(digits),
    torch=lambda: digits.permute(1, 2, 0, 3).reshape(1, 28, 280),
    einops=lambda: rearrange(digits, "b c h w -> c h (b w)"),
)

# %% [markdown]
# One more convenience: a list of tensors counts as an axis, the first one.

# %%
pair = [digits[0], digits[1]]
assert torch.equal(rearrange(pair, "b c h w -> c h (b w)"), row[:, :, :56])


# %% [markdown]
# ## How does a photo become a sequence?
#
# A Vision Transformer reads an image as a sequence of {term}`patches <patch>`: squares of $P \times P$ pixels, each flattened to one
# vector. Which pixel goes where?
#
# Let $g_h$ and $g_w$ be the row and column of a patch in the grid, `gh` and `gw` in code, and $p_1$ and $p_2$ the row and column
# inside the patch. Then
#
# (eq-einops-3)=
# $$
# y_{b,\,(g_h\,g_w),\,(p_1\,p_2\,c)} = x_{b,\,c,\,(g_h\,p_1),\,(g_w\,p_2)}
# \tag{3}
# $$
#
# Three letters in parentheses work like two: $(p_1\,p_2\,c) = (p_1 \cdot P + p_2) \cdot C + c$.

# %%
def naive_patches(x, P):
    B, C, H, W = x.shape
    y = torch.empty(B, (H // P) * (W // P), P * P * C)
    for gh in range(H // P):
        for gw in range(W // P):
            for p1 in range(P):
                for p2 in range(P):
                    t, q = gh * (W // P) + gw, (p1 * P + p2) * C
                    pixel = x[:, :, gh * P + p1, gw * P + p2]
                    y[:, t, q : q + C] = pixel  # (eq-einops-3)
    return y


# %% [markdown]
# We cut a photo of a cat, 288 × 432 pixels in 3 colours, into patches of 48 × 48. Predict the shape. (The loops get a smaller
# copy, with patches of 8.)

# %% tags=["nbval-check-output"]
photo = torch.from_numpy(photos.chelsea())[:288, :432]
cat = to_float(rearrange(photo, "h w c -> 1 c h w"))
tiny = cat[:, :, ::6, ::6]
cut = "b c (gh p1) (gw p2) -> b (gh gw) (p1 p2 c)"
patches = rearrange(cat, cut, p1=48, p2=48)
assert patches.shape == (1, 54, 6912)
assert torch.equal(rearrange(tiny, cut, p1=8, p2=8), naive_patches(tiny, 8))
assert torch.equal(patches, patchify(cat, 48))  # as the later chapters do it
print(tuple(cat.shape), "->", tuple(patches.shape))

# %% [markdown]
# There are 6 · 9 = 54 patches, each of 48 · 48 · 3 = 6,912 numbers. The `1` in `1 c h w` is an axis of length one: written on the
# right it is added, written on the left it is removed.

# %% mystnb={"image": {"alt": "A photo of a tabby cat cut into 54 square patches, drawn with gaps between them, in six rows of nine."}}
squares = rearrange(patches, "1 t (p1 p2 c) -> t c p1 p2", p1=48, p2=48)
figure = plot.show_images(squares, columns=9, side=0.6)


# %% [markdown]
# The sequence runs like a page of text, row by row; patch 0 is top left, patch 53 bottom right.
#
# Plain torch needs a reshape to six axes, a permutation of them and another reshape. torch's own `F.unfold` also cuts patches,
# but with the channels first inside each patch. One pattern translates:

# %%
def torch_patches(x, P):
    B, C, H, W = x.shape
    x = x.reshape(B, C, H // P, P, W // P, P).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(B, (H // P) * (W // P), P * P * C)


assert torch.equal(patches, torch_patches(cat, 48))
unfolded = F.unfold(cat, kernel_size=48, stride=48)
translate = "b (c p1 p2) t -> b t (p1 p2 c)"
assert torch.equal(patches, rearrange(unfolded, translate, p1=48, p2=48))
print_times(
    naive=lambda: naive_patches(tiny, 8),
    torch=lambda: torch_patches(tiny, 8),
    einops=lambda: rearrange(tiny, cut, p1=8, p2=8),
)

# %% [markdown]
# When two pieces of code disagree on the order, for example ours and a published model, each runs. We put the patches together
# with the wrong order in one pair of parentheses at a time. Look at what each mistake does to the cat.

# %% mystnb={"image": {"alt": "Four versions of the cat photo. First: intact. Second: the patches stand in wrong places. Third: the patches stand in the right places but each is mirrored along its diagonal. Fourth: the patches stand in the right places, but each is a dull, finely gridded mix of colours in which the cat is hardly visible."}}
mistakes = {
    "(gh gw) (p1 p2 c)": "b (gh gw) (p1 p2 c) -> b c (gh p1) (gw p2)",
    "(gw gh) (p1 p2 c)": "b (gw gh) (p1 p2 c) -> b c (gh p1) (gw p2)",
    "(gh gw) (p2 p1 c)": "b (gh gw) (p2 p1 c) -> b c (gh p1) (gw p2)",
    "(gh gw) (c p1 p2)": "b (gh gw) (c p1 p2) -> b c (gh p1) (gw p2)",
}
sizes = dict(gh=6, gw=9, p1=48, p2=48)
back = [rearrange(patches, pattern, **sizes) for pattern in mistakes.values()]
assert [i for i in range(4) if torch.equal(back[i], cat)] == [0]
figure = plot.show_images(torch.cat(back), titles=[*mistakes], columns=2, side=3)
figure.set_size_inches(6, 4.4)


# %% [markdown]
# `(gw gh)` puts whole patches in wrong places. `(p2 p1 c)` mirrors each patch along its diagonal. `(c p1 p2)` mixes colours with
# positions, as `reshape` did above. A Vision Transformer trained from scratch can learn with any of the four orders; weights
# trained with one order cannot be used with another.
#
# ## What happens to an axis that disappears?
#
# A letter that stands on the left only is reduced: the numbers along it become one. `reduce` wants to know how, by mean, sum,
# maximum or minimum.
#
# The labels of the training digits run 0, 1, …, 9, 0, 1, …, 9, so image number $b$ has class
# $b \bmod 10$. What does the average digit of each class look like? Let $k$ be the class and $i$ the number of the image within
# its class, $I$ of them:
#
# (eq-einops-4)=
# $$
# y_{k,c,h,w} = \frac{1}{I} \sum_{i=0}^{I-1} x_{(i\,k),\,c,\,h,\,w}
# \tag{4}
# $$

# %%
def naive_class_means(x, K):
    y = torch.zeros(K, *x.shape[1:])
    for b in range(len(x)):
        y[b % K] += x[b] / (len(x) // K)  # (eq-einops-4)
    return y


# %% [markdown]
# 4,000 images, ten classes. Predict the shape of the means. Sums may be taken in another order, so we compare up to rounding:
# `close` wants the largest difference below 1e-5 of the largest value.

# %% tags=["nbval-check-output"]
train = to_float(mnist.train.images)
labels = rearrange(mnist.train.labels, "(i k) -> i k", k=10)
assert torch.equal(labels, torch.arange(10).expand(400, 10))
means = reduce(train, "(i k) c h w -> k c h w", "mean", k=10)
assert means.shape == (10, 1, 28, 28)
assert close(means, naive_class_means(train, 10))
assert close(means, train.reshape(400, 10, 1, 28, 28).mean(0))
print(tuple(train.shape), "->", tuple(means.shape))

# %% [markdown]
# There is one image, `c h w`, for each class. With `(k i)` instead of `(i k)` the shape is the same. Predict what such a mean
# looks like.

# %% mystnb={"image": {"alt": "Two rows of ten mean images. Above, blurred but readable digits 0 to 9. Below, ten nearly identical grey blobs."}}
wrong_means = reduce(train, "(k i) c h w -> k c h w", "mean", k=10)
assert wrong_means.shape == means.shape
figure = plot.show_images(torch.cat([means, wrong_means]), columns=10, side=0.65)

# %% [markdown]
# Above are ten blurred digits. Below, `k` counts blocks of 400 images, so each image averages all classes. No
# error, and no number that looks odd.
#
# Pooling is the same operation: split the rows and columns, then drop the small axes.

# %% tags=["nbval-check-output"]
pool = "b c (h r1) (w r2) -> b c h w"
largest = reduce(digits, pool, "max", r1=2, r2=2)
average = reduce(digits, pool, "mean", r1=2, r2=2)
assert torch.equal(largest, F.max_pool2d(digits, 2))
assert close(average, F.avg_pool2d(digits, 2))
print("pooled:", tuple(largest.shape))
print("one number a channel:", tuple(reduce(digits, "b c h w -> c", "mean").shape))

# %%
print_times(
    naive=lambda: naive_class_means(train, 10),
    torch=lambda: train.reshape(400, 10, 1, 28, 28).mean(0),
    einops=lambda: reduce(train, "(i k) c h w -> k c h w", "mean", k=10),
)

# %% [markdown]
# A mean over the wrong axis is accepted by everything. Say we want to subtract from a photo the mean of each colour. A
# `1` in the pattern keeps the axis, so that the subtraction fits:

# %%
rocket = to_float(rearrange(torch.from_numpy(photos.rocket()), "h w c -> 1 c h w"))
per_channel = rocket - reduce(rocket, "b c h w -> 1 c 1 1", "mean")
assert close(per_channel, rocket - rocket.mean(dim=(0, 2, 3), keepdim=True))
wrong_axis = rocket - rocket.mean(dim=(0, 1, 2), keepdim=True)
assert not close(wrong_axis, per_channel)

# %% [markdown]
# `dim=(0, 1, 2)` would be right for a photo with the channels last. Here it takes the mean of each *column*. Look at the sky. (Both
# images got one number added everywhere, to be bright enough to see.)

# %% mystnb={"image": {"alt": "Two versions of a photo of a rocket at dusk. Left: the photo as expected. Right: the same, with dark vertical bars in the sky above the rocket and above the two masts."}}
both = torch.cat([per_channel, wrong_axis]) + rocket.mean()
titles = ["minus the mean of each channel", "minus the mean of each column"]
figure = plot.show_images(both.clamp(0, 1), titles=titles, columns=2, side=3)
figure.set_size_inches(6, 2.4)


# %% [markdown]
# Both could pass for the photo. But on the right a dark bar stands in the sky above the rocket. The rocket is bright, so the
# mean of its columns is high, and all of the column pays for it. `"b c h w -> 1 c 1 1"` says which axes stay; three numbers in
# `dim` do not.
#
# ## How is a tensor copied along a new axis?
#
# A letter that stands on the right only is new, and `repeat` copies along it. Where does each copy go?
#
# Take an image and make it $R$ times larger, each pixel becoming an $R \times R$ square, as the decoder of a U-Net does. With
# $r_1$ and $r_2$ the row and column inside such a square:
#
# (eq-einops-5)=
# $$
# y_{c,\,(h\,r_1),\,(w\,r_2)} = x_{c,h,w}
# \tag{5}
# $$

# %%
def naive_enlarge(x, R):
    C, H, W = x.shape
    y = torch.empty(C, H * R, W * R)
    for i in range(H * R):
        for j in range(W * R):
            y[:, i, j] = x[:, i // R, j // R]  # (eq-einops-5)
    return y


# %% [markdown]
# A digit of 28 × 28 pixels becomes three times larger. Predict the shape.

# %% tags=["nbval-check-output"]
four = digits[4]
large = repeat(four, "c h w -> c (h r1) (w r2)", r1=3, r2=3)
assert large.shape == (1, 84, 84)
assert torch.equal(large, naive_enlarge(four, 3))
assert torch.equal(large, F.interpolate(four[None], scale_factor=3)[0])
print(tuple(four.shape), "->", tuple(large.shape))

# %% [markdown]
# 3 · 28 = 84 rows and columns. The pattern mirrors that of pooling, `(h r1) (w r2)` to `h w`. Inside the parentheses the order
# matters again. What does `(r1 h) (r2 w)` do?

# %% mystnb={"image": {"alt": "Two square images of one size. Left: one large, coarse digit 4. Right: nine small copies of the digit in a three by three grid."}}
tiled = repeat(four, "c h w -> c (r1 h) (r2 w)", r1=3, r2=3)
assert torch.equal(tiled, four.repeat(1, 3, 3))
titles = ["(h r1) (w r2)", "(r1 h) (r2 w)"]
images = torch.stack([large, tiled])
figure = plot.show_images(images, titles=titles, columns=2, side=2)

# %% [markdown]
# `(h r1)` enlarges. In `(r1 h)` the row of the original changes fastest, which tiles. torch has both, under names that do not say
# so: `Tensor.repeat` tiles, and `repeat_interleave` enlarges.

# %%
print_times(
    naive=lambda: naive_enlarge(four, 3),
    torch=lambda: F.interpolate(four[None], scale_factor=3)[0],
    einops=lambda: repeat(four, "c h w -> c (h r1) (w r2)", r1=3, r2=3),
)

# %% [markdown]
# The other use in this book is the {term}`class token`: one learned vector of width `d` that is put before the {term}`tokens <token>` of
# every image in the batch. `repeat` makes one for each image, and `pack` joins it to the rest. The `*` in its pattern marks the
# axis to join along.

# %% tags=["nbval-check-output"]
class_token, words = torch.randn(8), torch.randn(4, 16, 8)
first = repeat(class_token, "d -> b 1 d", b=4)
tokens, shapes = pack([first, words], "b * d")
assert torch.equal(tokens, torch.cat([class_token.expand(4, 1, 8), words], dim=1))
print(tuple(first.shape), "and", tuple(words.shape), "->", tuple(tokens.shape))
print("lengths along *:", [tuple(shape) for shape in shapes])

# %% [markdown]
# `pack` also returns what it joined, and `unpack` takes that to undo it.
# No index is written, so none can be off by one.

# %%
class_again, words_again = unpack(tokens, shapes, "b * d")
assert torch.equal(class_again, first)
assert torch.equal(words_again, words)
assert first.data_ptr() == class_token.data_ptr()  # repeated without a copy


# %% [markdown]
# ## How do two tensors meet?
#
# Attention compares each {term}`query with each key <query, key, value>` by a dot product. Each tensor has its own axes, and some are
# shared. Which?
#
# The query $q$ has positions $t$, the key $k$ has positions $s$, and both have a batch $b$, heads $n$ and a width $e$. (The
# tensor $k$ is the key; it has nothing to do with the class $k$ of [Eq. 4](#eq-einops-4).) The scores are
#
# (eq-einops-6)=
# $$
# a_{b,n,t,s} = \sum_{e} q_{b,n,t,e}\; k_{b,n,s,e}
# \tag{6}
# $$
#
# `einsum` takes the equation without the sum sign: first the tensors, then the pattern. A letter that both tensors have is
# aligned. A letter missing on the right is summed over, after the product.

# %%
def naive_scores(q, k):
    (B, N, T, _), S = q.shape, k.shape[2]
    a = torch.zeros(B, N, T, S)
    for b in range(B):
        for n in range(N):
            for t in range(T):
                for s in range(S):
                    a[b, n, t, s] = (q[b, n, t] * k[b, n, s]).sum()  # (eq-einops-6)
    return a


# %% [markdown]
# Two sequences, three heads, four queries, five keys. Predict the shape of the scores.

# %% tags=["nbval-check-output"]
q, k = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 5, 6)
scores = einsum(q, k, "b n t e, b n s e -> b n t s")
assert scores.shape == (2, 3, 4, 5)
assert close(scores, naive_scores(q, k))
assert close(scores, q @ k.mT)
assert close(scores, torch.einsum("bnte,bnse->bnts", q, k))
print(tuple(q.shape), "and", tuple(k.shape), "->", tuple(scores.shape))

# %% [markdown]
# There is one score for each pair of query and key.

# %%
print_times(
    naive=lambda: naive_scores(q, k),
    torch=lambda: q @ k.mT,
    einops=lambda: einsum(q, k, "b n t e, b n s e -> b n t s"),
)


# %% [markdown]
# Other patterns that you will meet:
#
# | pattern | what it is | where |
# |---|---|---|
# | `t, freq -> t freq` | every position times every frequency | sinusoidal positions |
# | `b n t s, b n s e -> b n t e` | a weighted sum of values | attention |
# | `b t d, d v -> b t v` | a linear layer | language model head |
# | `b d, k d -> b k` | every image against every class | CLIP |
#
# The last one already classifies. Here $d$ counts the 784 pixels. Scale every test digit and every class mean to length one, take
# all dot products, and answer with the class of the largest. The scores are the {term}`logits`.

# %%
def classify(means):
    images = F.normalize(to_float(mnist.test.images).flatten(1), dim=1)
    classes = F.normalize(means.flatten(1), dim=1)
    return einsum(images, classes, "b d, k d -> b k")


logits = {"(i k)": classify(means), "(k i)": classify(wrong_means)}
correct = {order: x.argmax(1) == mnist.test.labels for order, x in logits.items()}
percent = {order: 100 * x.float().mean().item() for order, x in correct.items()}
assert percent["(i k)"] > 75 > 20 > percent["(k i)"]
hits = correct["(i k)"][:10].sum().item()
glue(right_means=percent["(i k)"], wrong_means=percent["(k i)"], hits=hits)

# %% [markdown]
# With the class means of the section on `reduce`, {glue:text}`right_means:.1f` % of 1,000 test digits are right. With the means of the wrong
# order it is {glue:text}`wrong_means:.1f` %, no better than guessing (10 %). Look at the scores behind that: rows are ten digits, 0 to 9,
# columns are the classes.

# %% mystnb={"image": {"alt": "Two heat maps of scores, ten digits by ten classes. Left: the diagonal is mostly the brightest of its row. Right: every row is uniform, no class stands out."}}
figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.1), sharey=True)
for axis, (order, scores) in zip(axes, logits.items(), strict=True):
    shown = axis.imshow(scores[:10], vmin=0, vmax=0.9)
    axis.set(title=f"means over {order}", xlabel="class k")
    axis.set(xticks=range(10), yticks=range(10))
    axis.grid(False)
axes[0].set_ylabel("digit in the image")
_ = figure.colorbar(shown, ax=axes, label="cosine, dimensionless")


# %% [markdown]
# On the left the brightest class of a row is the right one for {glue:text}`hits` of these ten digits. On the right every row is nearly
# uniform, since all ten means are the same average.
#
# ## How is one wide vector split into heads?
#
# One linear layer computes queries, keys and values of all heads at once. It returns, for each token, one vector of $3 N E$
# numbers, with $N$ heads of width $E$. Which of these numbers is entry $e$ of the key of head $n$?
#
# There is no law, only a convention. torch, and this book, store all queries first, then all keys, then all values, and the heads
# one after the other within each. An axis may be named by a word, too: with parts = 0, 1, 2 for query, key and value,
#
# (eq-einops-7)=
# $$
# y_{\text{parts},b,n,t,e} = x_{b,\,t,\,(\text{parts}\,n\,e)}
# \tag{7}
# $$

# %%
def naive_heads(x, N):
    B, T, E = x.shape[0], x.shape[1], x.shape[2] // (3 * N)
    y = torch.empty(3, B, N, T, E)
    for part in range(3):
        for n in range(N):
            start = (part * N + n) * E
            y[part, :, n] = x[:, :, start : start + E]  # (eq-einops-7)
    return y


# %% [markdown]
# One sequence of five tokens of width 24, two heads. Predict the shape.

# %% tags=["nbval-check-output"]
x = torch.randn(1, 5, 24)
parts = rearrange(x, "b t (parts n e) -> parts b n t e", parts=3, n=2)
assert parts.shape == (3, 1, 2, 5, 4)
assert torch.equal(parts, naive_heads(x, 2))
assert torch.equal(parts, x.reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4))
q, k, v = parts
print("q, k, v:", tuple(q.shape), tuple(k.shape), tuple(v.shape))

# %% [markdown]
# $3 \cdot 2 \cdot E = 24$ gives $E = 4$.

# %%
print_times(
    naive=lambda: naive_heads(x, 2),
    torch=lambda: x.reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4),
    einops=lambda: rearrange(x, "b t (parts n e) -> parts b n t e", parts=3, n=2),
)

# %% [markdown]
# Three letters have six orders, and all six run. The figure shows for three of them which of the 24 numbers go where: the colour
# and the letter are the part, the digit and the depth of the colour are the head.

# %% mystnb={"image": {"alt": "Three rows of 24 cells, each labelled q0, q1, k0, k1, v0 or v1. First row: four q0, four q1, four k0, four k1, four v0, four v1. Second row: q0 and q1 alternate, then k0 and k1, then v0 and v1. Third row: four q0, four k0, four v0, then four q1, four k1, four v1."}}
orders = ["parts n e", "parts e n", "n parts e"]
centre = dict(ha="center", va="center", fontsize=8)
figure, axes = plt.subplots(3, 1, figsize=(7.2, 2.6))
for axis, order in zip(axes, orders, strict=True):
    place = rearrange(torch.arange(24), f"({order}) -> parts n e", parts=3, n=2)
    for part, n in [(part, n) for part in range(3) for n in range(2)]:
        colour = dict(color=plot.COLOURS[part], alpha=0.35 + 0.35 * n)
        axis.bar(place[part, n].tolist(), 1, width=0.94, **colour)
        for column in place[part, n].tolist():
            axis.text(column, 0.5, f"{'qkv'[part]}{n}", **centre)
    axis.axis("off")
    axis.set_title(f"({order})", fontsize=9, loc="left")

# %% [markdown]
# In the first row a head owns four numbers in a run. In the second, the heads take turns. In the third, the query, key and value
# of one head lie together.
#
# Which one is right is decided by the weights. We take those of torch's attention, our {term}`oracle` here, and split with each order.

# %%
mha = nn.MultiheadAttention(8, 2, batch_first=True)


def self_attention(x, order="parts n e"):
    x = F.linear(x, mha.in_proj_weight, mha.in_proj_bias)
    q, k, v = rearrange(x, f"b t ({order}) -> parts b n t e", parts=3, n=2)
    heads = F.scaled_dot_product_attention(q, k, v)
    return mha.out_proj(rearrange(heads, "b n t e -> b t (n e)"))


# %% tags=["nbval-check-output"]
words = torch.randn(4, 5, 8)
expected, _ = mha(words, words, words)
equal = {}
for order in orders:
    equal[order] = close(self_attention(words, order), expected)
    print(f"({order}) runs; equal to torch.nn.MultiheadAttention: {equal[order]}")
assert [*equal.values()] == [True, False, False]


# %% [markdown]
# The other orders are not wrong in themselves. BLOOM and GPT-NeoX, two language models, store their weights as `(n parts e)`, and a
# model trained with that order works. It is wrong only to read weights in an order in which they were not written. Only a
# comparison with the owner of the weights shows that.
#
# ## Can a pattern be a layer?
#
# `Rearrange` and `Reduce` are modules with a fixed pattern. They have no parameters, and they fit into `nn.Sequential`. How much of
# a model can be written like that?
#
# The first layer of a Vision Transformer is a linear map of each patch. With the patches of [Eq. 3](#eq-einops-3) as $x$, a matrix
# $M$ and a bias $\beta$, output number $d$ of patch $t$ is
#
# (eq-einops-8)=
# $$
# y_{b,t,d} = \beta_d + \sum_{p_1, p_2, c} x_{b,\,t,\,(p_1\,p_2\,c)}\; M_{d,\,(p_1\,p_2\,c)}
# \tag{8}
# $$

# %%
def naive_embedding(images, weight, bias, P):
    x = naive_patches(images, P)
    y = torch.empty(*x.shape[:2], len(bias))
    for t in range(x.shape[1]):
        for d in range(len(bias)):
            y[:, t, d] = bias[d] + (x[:, t] * weight[d]).sum(1)  # (eq-einops-8)
    return y


# %% [markdown]
# The small cat has 48 × 72 pixels. With patches of 8 and a width of 16, predict the shape. The printed model is its own
# documentation:

# %% tags=["nbval-check-output"]
embed = nn.Sequential(
    Rearrange("b c (gh p1) (gw p2) -> b (gh gw) (p1 p2 c)", p1=8, p2=8),
    nn.Linear(8 * 8 * 3, 16),
)
y = embed(tiny)
assert y.shape == (1, 54, 16)
assert close(y, naive_embedding(tiny, embed[1].weight, embed[1].bias, 8))
print(embed)

# %% [markdown]
# That is 6 · 9 = 54 patches. A convolution whose kernel and stride are the patch computes the same. Its kernel has the axes
# `d c p1 p2`, our matrix wants `d (p1 p2 c)`. `flatten` gives `d (c p1 p2)`: the right shape, the wrong order.

# %% tags=["nbval-check-output"]
conv = nn.Conv2d(3, 16, kernel_size=8, stride=8)
expected = rearrange(conv(tiny), "b d gh gw -> b (gh gw) d")
ordered = rearrange(conv.weight, "d c p1 p2 -> d (p1 p2 c)")
flattened = conv.weight.flatten(1)
for name, weight in {"rearranged": ordered, "flattened": flattened}.items():
    y = F.linear(embed[0](tiny), weight, conv.bias)
    print(f"{name:>10} {tuple(weight.shape)}, equal: {close(y, expected)}")
assert close(F.linear(embed[0](tiny), ordered, conv.bias), expected)
assert not close(F.linear(embed[0](tiny), flattened, conv.bias), expected)

# %%
with torch.no_grad():
    print_times(
        naive=lambda: naive_embedding(tiny, embed[1].weight, embed[1].bias, 8),
        conv=lambda: conv(tiny),
        einops=lambda: embed(tiny),
    )

# %% [markdown]
# The mean over all tokens, the step before the final linear layer of many classifiers, is a `Reduce`:

# %%
y = embed(tiny)
pooled = Reduce("b t d -> b d", "mean")(y)
assert close(pooled, y.mean(dim=1))
assert not [*Rearrange("b t d -> b d t").parameters()]


# %% [markdown]
# ## What does a wrong pattern say?
#
# So far the mistakes were silent. Which ones are not? Before anything is moved, einops checks the pattern against the tensor:
#
# - the tensor has as many axes as the left side names;
# - each letter is on the sides where the operation allows it;
# - each length fits what was given, and each split comes out even.
#
# We keep the last line of the message, which names the fault.

# %%
def says(operation, *arguments, **lengths):
    try:
        operation(*arguments, **lengths)
    except EinopsError as error:
        return str(error).splitlines()[-1].strip()
    raise AssertionError("no error")


# %% [markdown]
# The tensor has ten digits, `b c h w` = (10, 1, 28, 28). For each line, predict what is wrong.

# %% tags=["nbval-check-output"]
attempts = {
    "b h w -> b (h w)": {},
    "b c h w -> b (c h)": {},
    "b c h w -> b c h w k": {},
    "b c (gh p) w -> b gh (p c w)": {"p": 5},
    "b c h w -> b (c h w)": {"h": 32},
    "b c h w -> b c h w": {"p": 7},
    "b c h w -> b c (h w": {},
}
for pattern, lengths in attempts.items():
    print(pattern, *[f"  {letter}={length}" for letter, length in lengths.items()])
    print("   ", says(rearrange, digits, pattern, **lengths))

# %% [markdown]
# The first pattern forgot the channels. The second lost `w`; dropping a letter is the business of `reduce`. The third has a new
# letter, which only `repeat` may add. Then come a split that leaves a rest, a length that contradicts the tensor, a length for
# a letter that the pattern does not have, and an open parenthesis.
#
# Plain torch says nothing: `flatten(1)` takes a colour batch too, and returns 2,352 numbers an image instead of 784.

# %% tags=["nbval-check-output"]
colour = torch.rand(10, 3, 28, 28)
print("torch:", tuple(colour.flatten(1).shape))
print("einops:", says(rearrange, colour, "b 1 h w -> b (h w)"))
assert colour.flatten(1).shape == (10, 2352)

# %% [markdown]
# And here are the limits. The letters are not stored in the tensor. They are a claim of the line that you read, and einops can
# only compare the claim with the lengths. Swap two letters of equal length and nothing can be noticed:

# %%
swapped = rearrange(digits, "b c w h -> b (c h w)")  # false: it is b c h w
assert swapped.shape == (10, 784)
assert not torch.equal(swapped, digits.flatten(1))


# %% [markdown]
# What names give you is a line that can be compared with the equation by eye. What they do not give you is a proof.
#
# ## Would training notice?
#
# Suppose that a silent mistake stands in a model. Will it not show, since the model does not learn?
#
# In May 2025 a reader of [a public teaching transformer](https://github.com/jsbaan/transformer-from-scratch/issues/4) saw that a
# permutation was missing. After attention, the heads `b n t e` were reshaped to `b t d` directly, so that the vector of one token
# was put together from pieces of several. The training test passed all the same. The author, who
# [fixed it in March 2026](https://github.com/jsbaan/transformer-from-scratch/pull/6), thinks it was probably because the task,
# to copy a sequence, is too easy: an over-parameterised model learns to compensate.
#
# We make the same mistake in a digit classifier. Here are the two merges. Both take `b n t e` and return `b t d`.

# %% tags=["nbval-check-output"]
def merge(heads):
    return rearrange(heads, "b n t e -> b t (n e)")


def merge_without_permute(heads):
    b, n, t, e = heads.shape
    return heads.reshape(b, t, n * e)


source = repeat(torch.arange(4), "t -> 1 n t e", n=2, e=3)  # each number: its token
for function in (merge, merge_without_permute):
    token = function(source)[0, 0]
    print(f"{function.__name__}: token 0 is made of {token.tolist()}")
assert merge(source)[0, 0].tolist() == [0] * 6


# %% [markdown]
# The model is small: 16 patches of 7 × 7 pixels, width 32, learned positions, one attention layer with four heads and a residual
# connection, a GELU, a mean over the tokens, one linear layer. Only `merge` differs.

# %%
class OneAttention(nn.Module):
    def __init__(self, merge, d=32):
        super().__init__()
        self.merge = merge
        cut = Rearrange("b c (gh p1) (gw p2) -> b (gh gw) (p1 p2 c)", p1=7, p2=7)
        self.embed = nn.Sequential(cut, nn.Linear(49, d))
        self.positions = nn.Parameter(0.3 * torch.randn(16, d))
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        mean = Reduce("b t d -> b d", "mean")
        self.head = nn.Sequential(nn.GELU(), mean, nn.Linear(d, 10))

    def forward(self, images):
        x = self.embed(images) + self.positions
        split = "b t (parts n e) -> parts b n t e"
        q, k, v = rearrange(self.qkv(x), split, parts=3, n=4)
        tokens = self.merge(F.scaled_dot_product_attention(q, k, v))
        return self.head(x + self.out(tokens))


# %% [markdown]
# Each merge is trained with the seeds 0, 1 and 2, for 300 steps of 64 training digits; the 1,000 test digits are used at the end
# only. With the same seed, both models start from the same weights and see the same digits.

# %%
def train_once(merge, seed, n_steps=300):
    torch.manual_seed(seed)
    model, losses = OneAttention(merge), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for chosen in torch.randint(len(train), (n_steps, 64)):
        loss = F.cross_entropy(model(train[chosen]), mnist.train.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        predicted = model(to_float(mnist.test.images)).argmax(1)
    return losses, 100 * (predicted == mnist.test.labels).float().mean().item()


# %%
runs = {merge: [], merge_without_permute: []}
plan = [(seed, function) for seed in range(3) for function in runs]
for seed, function in progress(plan, "six trainings"):
    runs[function].append(train_once(function, seed))
correct, wrong = (torch.tensor([accuracy for _, accuracy in runs[f]]) for f in runs)
assert min(*correct, *wrong) > 70  # both learn
glue(
    correct=correct.mean().item(),
    correct_sd=correct.std().item(),
    wrong=wrong.mean().item(),
    wrong_sd=wrong.std().item(),
)

# %% [markdown]
# A is one of the merges, B the other; curves of one style share a seed. Which has the bug?

# %% mystnb={"image": {"alt": "Six training curves, loss in nats against step, three labelled A and three labelled B, with one line style for each seed. All fall from 2.3 to about 0.4. Of two curves with the same style A lies slightly above B nearly all the way; taken together, the three curves of A and the three of B overlap."}}
figure, axis = plt.subplots()
curves = zip(plot.COLOURS, "AB", reversed(runs.values()), strict=False)
for colour, name, results in curves:
    for seed, (losses, _) in enumerate(results):
        losses = torch.tensor(losses)
        smooth = reduce(losses, "(points steps) -> points", "mean", steps=10)
        look = dict(color=colour, linestyle=["-", "--", ":"][seed])
        label = f"{name}, seed {seed}"
        axis.plot(torch.arange(5, 300, 10), smooth, label=label, **look)
axis.set(xlabel="step", ylabel="loss, mean of 10 steps (nats)", ylim=(0, 2.5))
_ = axis.legend()

# %%
right, buggy = (torch.tensor([losses for losses, _ in runs[f]]) for f in runs)
above = reduce(
    buggy - right, "seed (points steps) -> seed points", "mean", steps=10
)
fewest = (above > 0).sum(1).min().item()  # of 30 points
gap = (buggy - right)[:, 100:].mean().item()
level = right[:, 100:].mean(1)
spread = (level.max() - level.min()).item()
assert fewest > 20
assert spread > gap > 0.05
glue(gap=gap, fewest=fewest, spread=spread)

# %% [markdown]
# A has the bug. Of two curves with the same seed, the one with the bug lies about {glue:text}`gap:.1f` nats higher nearly all the way, at
# {glue:text}`fewest` or more of the 30 points. But other seeds differ by as much (over the last 200 steps, the correct curves by up to
# {glue:text}`spread:.1f`), and whoever has the bug sees one curve only. It falls as curves do and ends well. A loss curve detects the bug
# only beside a curve without it.
#
# Without the bug {glue:text}`correct:.1f` % of the test digits are right, with a standard deviation of
# {glue:text}`correct_sd:.1f` over the seeds; with it {glue:text}`wrong:.1f` %, with one of {glue:text}`wrong_sd:.1f`. Three seeds are too few to tell
# whether the bug costs accuracy; try `range(10)`.
#
# The paper calls such mistakes elusive for good reason. "No tools or tests" is too pessimistic, though. A comparison with code that
# says the same in another way needs no training:

# %% tags=["nbval-check-output"]
heads = torch.randn(4, 2, 5, 4)
expected = torch.cat(heads.unbind(1), dim=-1)  # a token's heads, side by side
for function in runs:
    equal = torch.equal(function(heads), expected)
    print(f"{function.__name__}: equal to a concatenation of the heads: {equal}")
assert torch.equal(merge(heads), expected)
assert not torch.equal(merge_without_permute(heads), expected)

# %% [markdown]
# This is why every block in this book climbs a ladder of proof instead of being judged by its loss curve.
#
# ## The ladder
#
# The main patterns of this chapter against their plain torch twins. `Ladder` runs both versions on the same inputs, pulls the same
# random gradient back through both, and stops the page if they differ. `rearrange`, `repeat` and `pack` only move numbers, so their
# outputs must agree to the last bit; the others may differ by rounding. Each row of the table is a rung.

# %%
ladder = Ladder()


def rung(operation, pattern, against, twin, *inputs, **options):
    def ours(*tensors):
        return operation(*tensors, pattern, **options)

    name = f"{operation.__name__}: {pattern}"
    result = ladder.prove(name, against, ours, twin, *inputs)
    assert result.n_gradients == len(inputs)


# %%
def unfold(x):
    columns = F.unfold(x, 6, stride=6).unflatten(1, (3, 36))
    return columns.permute(0, 3, 2, 1).flatten(2)


def side_by_side(x):
    return x.permute(1, 2, 0, 3).flatten(2)


hwc, x = torch.rand(12, 18, 3), torch.rand(6, 3, 12, 18)
rung(rearrange, "h w c -> c h w", "permute", lambda x: x.permute(2, 0, 1), hwc)
rung(rearrange, "b c h w -> c h (b w)", "permute, flatten", side_by_side, x)
rung(rearrange, cut, "F.unfold", unfold, x, p1=6, p2=6)


# %%
def mean_by_hand(x):
    return x.unflatten(0, (2, 3)).mean(0)


def enlarge(x):
    return F.interpolate(x, scale_factor=3)


by_class, mean = "(i k) c h w -> k c h w", dict(reduction="mean", k=3)
rung(reduce, by_class, "unflatten, mean", mean_by_hand, x, **mean)
maximum = dict(reduction="max", r1=2, r2=2)
rung(reduce, pool, "F.max_pool2d", lambda x: F.max_pool2d(x, 2), x, **maximum)
larger, three = "b c h w -> b c (h r1) (w r2)", dict(r1=3, r2=3)
rung(repeat, larger, "F.interpolate", enlarge, x, **three)

# %%
q, k = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 5, 6)
weights, v = torch.rand(2, 3, 4, 5), torch.randn(2, 3, 5, 6)
score, weigh = "b n t e, b n s e -> b n t s", "b n t s, b n s e -> b n t e"
rung(einsum, score, "q @ k.mT", lambda q, k: q @ k.mT, q, k)
rung(einsum, weigh, "weights @ v", lambda w, v: w @ v, weights, v)
t, freq = torch.rand(5), torch.rand(7)
rung(einsum, "t, freq -> t freq", "torch.outer", torch.outer, t, freq)


# %%
def split_by_hand(x):
    parts = [part.unflatten(2, (2, 4)) for part in x.chunk(3, dim=2)]
    return torch.stack([part.transpose(1, 2) for part in parts])


split, x = "b t (parts n e) -> parts b n t e", torch.rand(4, 5, 24)
rung(rearrange, split, "chunk, transpose", split_by_hand, x, parts=3, n=2)
rung_of_heads = ladder.prove(
    "attention in heads",
    "nn.MultiheadAttention",
    self_attention,
    lambda x: mha(x, x, x)[0],
    torch.randn(4, 5, 8),
    shared=mha,
)
assert rung_of_heads.n_gradients == 5  # the input, two weights and two biases


# %%
def prepend(first, rest):
    return pack([repeat(first, "d -> b 1 d", b=4), rest], "b * d")[0]


def by_hand(first, rest):
    return torch.cat([first.expand(4, 1, 8), rest], dim=1)


rest = torch.randn(4, 16, 8)
packed = ladder.prove(
    "repeat, pack: class token", "expand, cat", prepend, by_hand, class_token, rest
)
assert packed.n_gradients == 2


# %%
def from_conv(state):
    weight = rearrange(state["weight"], "d c p1 p2 -> d (p1 p2 c)")
    return {"1.weight": weight, "1.bias": state["bias"]}


ladder.prove(
    "Rearrange, nn.Linear",
    "nn.Conv2d",
    embed,
    conv,
    tiny,
    convert=from_conv,
    read=lambda y: rearrange(y, "b d gh gw -> b (gh gw) d"),
)
assert len(ladder.rungs) == 13
moves = [r for r in ladder.rungs if r.block.startswith(("rearrange", "repeat"))]
assert max(r.output_error for r in moves) == 0
ladder

# %% [markdown]
# ## Where this differs: what einops does not do
#
# | wanted | einops | use instead |
# |---|---|---|
# | overlapping windows: an index such as $h + p_1$ | no; a pattern only composes and splits axes | `F.unfold`, `Tensor.unfold`, a convolution |
# | shifting, cropping, flipping | no; every index keeps its number | `torch.roll`, slices, `flip` |
# | choosing by index | no | `gather`, `index_select` (see the third exercise) |
# | names checked across a function's boundary | no; they hold for one line | shape annotations with jaxtyping |
# | a softmax or a norm along a named axis | no | the axis as a number, and a test |
#
# The paper came before `einsum` and `pack` were in the library; both are described in its documentation.
#
# ## Exercises
#
# :::{exercise} Pixel shuffle
# :label: ex-einops-1
# `F.pixel_shuffle(x, 2)` turns channels into resolution: the shape $(B, 4C, H, W)$ becomes $(B, C, 2H, 2W)$. Each $2 \times 2$ square of
# the result comes from four consecutive channels, its pixels taken row by row. Some U-Nets go up in resolution that way. Write it, and
# its inverse, as patterns.
# :::
#
# :::{solution-start} ex-einops-1
# :class: dropdown
# :::

# %%
x = torch.randn(2, 12, 5, 7)
up = rearrange(x, "b (c r1 r2) h w -> b c (h r1) (w r2)", r1=2, r2=2)
assert torch.equal(up, F.pixel_shuffle(x, 2))
down = rearrange(up, "b c (h r1) (w r2) -> b (c r1 r2) h w", r1=2, r2=2)
assert torch.equal(down, F.pixel_unshuffle(up, 2))
assert torch.equal(down, x)


# %% [markdown]
# `(r1 r2 c)` in place of `(c r1 r2)` runs as well, and mixes the channels.
#
# :::{solution-end}
# :::
#
# :::{exercise} Group norm
# :label: ex-einops-2
# Group norm splits the channels into $G$ groups of neighbours. Within each image and each group it subtracts the mean and divides
# by $\sqrt{\sigma^2 + 10^{-5}}$, where $\sigma^2$ is the mean squared deviation. Write it with two calls of `reduce` and check it
# against `F.group_norm`.
# :::
#
# :::{solution-start} ex-einops-2
# :class: dropdown
# :::

# %%
def group_norm(x, n_groups, split="(g c)"):
    groups = rearrange(x, f"b {split} h w -> b g c h w", g=n_groups)
    groups = groups - reduce(groups, "b g c h w -> b g 1 1 1", "mean")
    variance = reduce(groups**2, "b g c h w -> b g 1 1 1", "mean")
    groups = groups / (variance + 1e-5).sqrt()
    return rearrange(groups, f"b g c h w -> b {split} h w")


x = torch.randn(2, 12, 5, 7)
assert close(group_norm(x, 4), F.group_norm(x, 4))
assert not close(group_norm(x, 4, "(c g)"), F.group_norm(x, 4))


# %% [markdown]
# With `(c g)` the groups are channels far apart, and nothing complains.
#
# :::{solution-end}
# :::
#
# :::{exercise} Keep a quarter of the patches
# :label: ex-einops-3
# A masked autoencoder shows its encoder 25 % of the patches, chosen at random for each image {cite:p}`he2022`. Given `patches` with
# axes `b t d` and `kept` with axes `b m` (the numbers of the patches to keep), return the kept patches, `b m d`, with
# `torch.gather`. It wants an index for every number of the result: that is a job for `repeat`.
# :::
#
# :::{solution-start} ex-einops-3
# :class: dropdown
# :::

# %%
def keep(patches, kept):
    return patches.gather(1, repeat(kept, "b m -> b m d", d=patches.shape[-1]))


batch = rearrange(to_float(mnist.test.images[:8]), cut, p1=7, p2=7)
kept = torch.rand(8, 16).argsort(dim=1)[:, :4]
visible = keep(batch, kept)
assert visible.shape == (8, 4, 49)
for b in range(8):
    for m in range(4):
        assert torch.equal(visible[b, m], batch[b, kept[b, m]])


# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Spot the bug: a softmax
# :label: ex-einops-4
# In September 2022 a reader of a public diffusion model [reported](https://github.com/labmlai/annotated_deep_learning_paper_implementations/issues/146)
# a mistake in its attention; the author called it "a big bug". The model had seemed to work. Below is the same mistake in our words:
# `q` has the axes `b t n e` and `k` the axes `b s n e`. Find it, say why einops cannot find it, and write the one-line test that
# fails.
#
# ```python
# def attention_weights(q, k):
#     scores = einsum(q, k, "b t n e, b s n e -> b t s n") / q.shape[-1] ** 0.5
#     return scores.softmax(dim=1)
# ```
# :::
#
# :::{solution-start} ex-einops-4
# :class: dropdown
# :::
#
# The scores are `b t s n`, so `dim=1` is `t`: the softmax runs over the queries. Each query should share out a weight of one among the
# keys, which is axis 2. einops names the axes inside the pattern only; `softmax` gets a bare number.

# %%
def attention_weights(q, k, axis=2):
    scores = einsum(q, k, "b t n e, b s n e -> b t s n") / q.shape[-1] ** 0.5
    return scores.softmax(dim=axis)


b, t, s, n, e = 2, 4, 5, 3, 8
q, k = torch.randn(b, t, n, e), torch.randn(b, s, n, e)
assert torch.allclose(attention_weights(q, k).sum(2), torch.ones(b, t, n))
buggy = attention_weights(q, k, axis=1)
assert not torch.allclose(buggy.sum(2), torch.ones(b, t, n))


# %% [markdown]
# The first assertion is the test; the buggy version fails it. The shape does not depend on the axis of a softmax, so no shape check
# can help. The reader trained both versions on CIFAR-10, as a conditional diffusion model with classifier-free guidance, and
# reported no difference in the quality of the images (FID, the usual measure, within 0.05); with longer training the correct version
# was even slightly worse. Once more, training did not notice.
#
# :::{solution-end}
# :::
#
# :::{exercise} A leak from the future
# :label: ex-einops-5
# In a language model token $t$ may see the tokens up to $t$ only. Show with a test that `merge_without_permute` breaks this rule,
# even though the attention itself is causal (`is_causal=True`). Take 6 tokens of width 8 and two heads, and use the split input
# itself as $q$, $k$ and $v$. Change the last token, and list the positions, counted from zero, whose output changes.
# :::
#
# :::{solution-start} ex-einops-5
# :class: dropdown
# :::

# %% tags=["nbval-check-output"]
def causal(x, merge):
    heads = rearrange(x, "b t (n e) -> b n t e", n=2)
    attend = F.scaled_dot_product_attention
    return merge(attend(heads, heads, heads, is_causal=True))


x = torch.randn(1, 6, 8)
changed = x.clone()
changed[:, -1] += 1
moved = {}
for function in (merge, merge_without_permute):
    difference = (causal(changed, function) - causal(x, function)).abs()
    largest = reduce(difference, "1 t d -> t", "max")
    moved[function] = largest.nonzero().flatten().tolist()
    print(f"{function.__name__}: outputs {moved[function]} change")
assert moved == {merge: [5], merge_without_permute: [2, 5]}

# %% [markdown]
# Position 2 sees the last token. With two heads, the first half of the outputs comes from head 0 and the second half from head 1, so the
# last token of head 0 ends in the middle. The leak is not limited to the last token: output 0 already holds token 1 of head 0. A
# language model with this bug sees part of what it is asked to predict.
#
# :::{solution-end}
# :::
#
# ## Recap
#
# - A pattern is an index equation: letters in, an arrow, letters out.
# - Parentheses compose: $(b\,w) = b \cdot W + w$, and the rightmost letter changes fastest. Swapping the sides of the arrow undoes it.
# - `rearrange` keeps every letter; `reduce` drops letters; `repeat` adds letters; `einsum` aligns what is shared and sums what is dropped.
# - `pack` and `unpack` join and separate along one axis, without indices.
# - einops checks the number of axes, the letters and the lengths. It cannot check that the letters are true, nor that your order is
#   that of the weights.
# - A loss curve cannot either; a comparison with an independent implementation can.
#
# ## Further reading
#
# - {cite:t}`rogozhnikov2022`, for the design and for more patterns. [einops.rocks](https://einops.rocks) is the documentation.
# - [Tensor Considered Harmful](https://nlp.seas.harvard.edu/NamedTensor), Alexander Rush's essay on why axes should have names.
# - Next: the [Vision Transformer](vit.md), which uses these patterns throughout.
