"""The search for the most probable sequence when each next token depends on the ones before: greedy and beam.

Wu et al., "Google's Neural Machine Translation System", 2016, arXiv:1609.08144, Section 7 (length penalty);
Vaswani et al. 2017, Section 6.1 (its values); code: tensorflow/tensor2tensor, `utils/beam_search.py`.

Both searches ask a function for the log-probabilities of the next token, (rows v), of each row of tokens, (rows t).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

NextLogP = Callable[[Tensor], Tensor]


def length_penalty(length: Tensor, alpha: float) -> Float[Tensor, "..."]:
    """lp = ((5 + length) / (5 + 1))^α, by which the log-probability of a hypothesis is divided.

    Args:
        length: tokens, the end token included.
        alpha: 0 for no penalty; Vaswani et al. use 0.6.

    Source: Wu et al. 2016, Eq. 14.
    """
    return ((5 + length) / 6) ** alpha


def _strip(rows: Sequence[Tensor], eos_id: int) -> list[list[int]]:
    """The tokens of each row after its first and before its end token."""
    lists = [row.tolist()[1:] for row in rows]
    return [tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens for tokens in lists]


def _check(limits: Tensor, beam: int, alpha: float) -> None:
    if limits.min() < 1:
        raise ValueError(f"max_length={limits.min().item()}, expected at least 1: the end token")
    if beam < 1:
        raise ValueError(f"beam={beam}, expected at least 1")
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha={alpha}, expected a number of at least 0")


def greedy_search(
    next_log_p: NextLogP, start: Int[Tensor, " b"], limits: Int[Tensor, " b"], *, eos_id: int, forbidden: Sequence[int]
) -> list[list[int]]:
    """Take the most probable token at each step, until the end token or a row's limit.

    Args:
        next_log_p: log-probabilities (b v) of the token after each row of (b t).
        start: the first token of each row.
        limits: most tokens of each row, the end token included.
        eos_id: the end token.
        forbidden: tokens that are never taken.

    Returns:
        The tokens of each row, without start and end.

    Raises:
        ValueError: a limit below 1.
    """
    _check(limits, 1, 0.0)
    rows = start[:, None]
    done = torch.zeros_like(start, dtype=torch.bool)
    for length in range(1, int(limits.max()) + 1):
        log_p = next_log_p(rows)
        log_p[:, list(forbidden)] = -torch.inf
        # A row that has ended goes on with the others; what it adds is cut off in the end.
        token = log_p.argmax(dim=-1).masked_fill(limits == length, eos_id)
        rows, done = torch.cat([rows, token[:, None]], dim=1), done | (token == eos_id)
        if done.all():
            break
    return _strip(list(rows), eos_id)


def beam_search(
    next_log_p: NextLogP,
    start: Int[Tensor, " b"],
    limits: Int[Tensor, " b"],
    *,
    beam: int,
    alpha: float,
    eos_id: int,
    forbidden: Sequence[int],
) -> list[list[int]]:
    """Keep the `beam` most probable beginnings at each step; return the ended sequence with the largest log p / lp.

    A sequence that reaches its limit has to end there. The search stops when no beginning can still win: its
    log-probability only falls, and at best it is divided by the penalty of the limit.

    Args:
        next_log_p: log-probabilities (b · beam v) of the token after each row of (b · beam t).
        start, limits, eos_id, forbidden: as in `greedy_search`.
        beam: number of beginnings kept for each of the b rows.
        alpha: exponent of the length penalty.

    Returns:
        The tokens of each row, without start and end.

    Raises:
        ValueError: a beam or limit below 1, or a negative or infinite alpha.

    Cost: `beam` times the greedy search.
    """
    _check(limits, beam, alpha)
    b = len(start)
    alive = start[:, None, None].repeat(1, beam, 1)
    # All beginnings are the same at first: only one may be extended.
    scores = torch.full((b, beam), -torch.inf, device=start.device)
    scores[:, 0] = 0.0
    best, best_scores = list(alive[:, 0]), torch.full((b,), -torch.inf, device=start.device)
    for length in range(1, int(limits.max()) + 1):
        log_p = next_log_p(alive.flatten(0, 1)).unflatten(0, (b, beam))
        log_p[..., list(forbidden)] = -torch.inf
        ending = torch.zeros_like(log_p, dtype=torch.bool)
        ending[..., eos_id] = True
        log_p = log_p.masked_fill((limits == length)[:, None, None] & ~ending, -torch.inf)
        # Of 2 · beam candidates at most `beam` end here, so that `beam` are left to go on.
        top, index = (scores[..., None] + log_p).flatten(1).topk(2 * beam)
        origin, token = index // log_p.shape[-1], index % log_p.shape[-1]
        rows = torch.cat([alive.gather(1, origin[..., None].expand(-1, -1, length)), token[..., None]], dim=-1)
        ended = token == eos_id
        final = (top / length_penalty(limits.new_tensor(length), alpha)).masked_fill(~ended, -torch.inf)[:, :beam]
        value, which = final.max(dim=1)
        for i in (value > best_scores).nonzero().flatten().tolist():
            best[i] = rows[i, which[i]]
        best_scores = torch.maximum(best_scores, value)
        scores, kept = top.masked_fill(ended, -torch.inf).topk(beam)
        alive = rows.gather(1, kept[..., None].expand(-1, -1, length + 1))
        if (best_scores >= scores[:, 0] / length_penalty(limits, alpha)).all():
            break
    return _strip(best, eos_id)
