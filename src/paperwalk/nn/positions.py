"""Position embeddings: learned and sinusoidal, along one axis or on a grid.

Vaswani et al. 2017, Section 3.5 (sinusoids); Dosovitskiy et al. 2020, Section 3.1, 3.2 and Appendix D.4 (learned,
2-D, resized); He et al. 2021, Appendix A.1 (2-D sinusoids).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def _angles(positions: Float[Tensor, " t"], n_waves: int) -> Float[Tensor, "t waves"]:
    frequencies = 10_000.0 ** (-torch.arange(n_waves, dtype=torch.float64) / n_waves)
    return positions.double()[:, None] * frequencies


def sinusoidal_1d(n_positions: int, d_model: int) -> Float[Tensor, "t d"]:
    """PE[t, 2i] = sin(t / 10000^{2i/d}), PE[t, 2i + 1] = cos(t / 10000^{2i/d}).

    Raises:
        ValueError: `d_model` is odd.

    Source: Vaswani et al. 2017, Section 3.5 (unnumbered equations).
    """
    if d_model % 2:
        raise ValueError(f"d_model={d_model}, expected an even number: sines and cosines come in pairs")
    angles = _angles(torch.arange(n_positions, dtype=torch.float64), d_model // 2)
    return rearrange([angles.sin(), angles.cos()], "two t waves -> t (waves two)").float()


def sinusoidal_2d(height: int, width: int, d_model: int) -> Float[Tensor, "t d"]:
    """Sinusoids of the column in the first d / 2 channels and of the row in the others, for a grid row by row.

    Each half holds all its sines, then all its cosines: the layout of the official MAE code.

    Args:
        height, width: rows and columns of the grid, in patches.
        d_model: width d, a multiple of 4.

    Raises:
        ValueError: `d_model` is not a multiple of 4.

    Source: He et al. 2021, Appendix A.1 ("the sine-cosine version"); layout: facebookresearch/mae, `util/pos_embed.py`.
    """
    if d_model % 4:
        raise ValueError(f"d_model={d_model}, expected a multiple of 4: sines and cosines for two axes")
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    halves = []
    for positions in (column, row):
        angles = _angles(positions.flatten().double(), d_model // 4)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=-1).float()


def resize_positions(
    positions: Float[Tensor, "t d"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "t_new d"]:
    """Positions learned on one grid of patches, interpolated (bicubic) to another; extra leading rows are kept.

    Args:
        positions: one row a token: first those without a place (the class token), then the grid row by row.
        old_grid, new_grid: (rows, columns), in patches.

    Raises:
        ValueError: `positions` has fewer rows than the old grid has patches.

    Source: Dosovitskiy et al. 2020, Section 3.2 ("2D interpolation of the pre-trained position embeddings").
    Differs: the official code interpolates bilinearly (scipy zoom, order 1), PyTorch's ecosystem bicubically.
    """
    n_extra = len(positions) - old_grid[0] * old_grid[1]
    if n_extra < 0:
        raise ValueError(f"{len(positions)} positions, expected at least {old_grid[0]} x {old_grid[1]}")
    if old_grid == new_grid:
        return positions
    extra, grid = positions[:n_extra], positions[n_extra:]
    grid = rearrange(grid, "(gh gw) d -> 1 d gh gw", gh=old_grid[0])
    grid = F.interpolate(grid, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([extra, rearrange(grid, "1 d gh gw -> (gh gw) d")])


class LearnedPositions(nn.Module):
    """One learned vector a position, added to the tokens.

    Args:
        n_positions: number of positions t.
        d_model: width d.
        std: standard deviation of the normal initialisation.

    Source: Dosovitskiy et al. 2020, Eq. 1 (E_pos) and Appendix D.4 ("1-dimensional positional embedding").
    """

    def __init__(self, n_positions: int, d_model: int, *, std: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_positions, d_model) * std)

    def forward(self) -> Float[Tensor, "t d"]:
        """The vectors of all positions."""
        return self.weight


class LearnedPositions2d(nn.Module):
    """A learned vector of d / 2 a row beside one of d / 2 a column, for a grid row by row.

    Args:
        height, width: rows and columns of the grid, in patches.
        d_model: width d, even.
        std: standard deviation of the normal initialisation.

    Raises:
        ValueError: `d_model` is odd.

    Source: Dosovitskiy et al. 2020, Appendix D.4 ("2-dimensional positional embedding").
    """

    def __init__(self, height: int, width: int, d_model: int, *, std: float = 0.02):
        super().__init__()
        if d_model % 2:
            raise ValueError(f"d_model={d_model}, expected an even number: half for rows, half for columns")
        self.rows = nn.Parameter(torch.randn(height, d_model // 2) * std)
        self.columns = nn.Parameter(torch.randn(width, d_model // 2) * std)

    def forward(self) -> Float[Tensor, "t d"]:
        """The vectors of all positions of the grid."""
        height, width = len(self.rows), len(self.columns)
        rows = self.rows[:, None].expand(-1, width, -1)
        columns = self.columns[None].expand(height, -1, -1)
        return rearrange([rows, columns], "two gh gw half -> (gh gw) (two half)")
