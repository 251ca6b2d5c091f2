"""SSD over an ordinary batch, rows of one length: for training.

`ssd` says what is computed. Here time is an axis of its own, which torch.compile and autocast like.

Glossary: b batch · l time · h heads · p head size · n state · g groups that share B and C
c chunks · q, s positions in a chunk
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def segment_sum(a: Tensor) -> Tensor:
    """Sums over (s, q] for every pair of positions: (…, q) → (…, q, s), −∞ where s > q.

    Summed within the mask rather than as a difference of cumulative sums, which would cancel for strong decays.
    """
    size = a.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=a.device).tril(-1)
    sums = a[..., :, None].expand(*a.shape, size).masked_fill(~below, 0.0).cumsum(dim=-2)
    return sums.masked_fill(~(below | torch.eye(size, dtype=torch.bool, device=a.device)), -torch.inf)


def ssd_rows(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    state: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """SSD in chunks: within one a masked product of C, B and decays; between them the recurrence of states.

    Differentiable, and made of plain products, so torch.compile and autocast serve it.
    Args: x (b, l, h, p) · delta (b, l, h) · A (h,), negative · B, C (b, l, g, n), g divides h · D (h,)
        state (b, h, p, n), zeros if None.
    Returns: y (b, l, h, p) in x's dtype, and the state after the last step (b, h, p, n) in float32.
    """
    batch, length, heads, size = x.shape
    groups, n = B.shape[2:]
    per_group = heads // groups
    chunk = min(chunk, length)
    missing = -length % chunk
    u, delta = x.float(), delta.float()
    inputs = u * delta[..., None]
    log_decay = delta * A.float()  # b, l, h
    B, C = B.float(), C.float()
    if missing:  # Δ = 0 there
        inputs = F.pad(inputs, (0, 0, 0, 0, 0, missing))
        log_decay = F.pad(log_decay, (0, 0, 0, missing))
        B, C = (F.pad(tensor, (0, 0, 0, 0, 0, missing)) for tensor in (B, C))
    chunks = inputs.shape[1] // chunk
    # Batch-like axes first: every product below is then one batched matrix product.
    v = inputs.reshape(batch, chunks, chunk, groups, per_group, size).permute(0, 1, 3, 4, 2, 5)  # b c g r q p
    a = log_decay.reshape(batch, chunks, chunk, groups, per_group).permute(0, 1, 3, 4, 2)  # b c g r q
    B = B.reshape(batch, chunks, chunk, groups, n).transpose(2, 3)  # b c g q n
    C = C.reshape(batch, chunks, chunk, groups, n).transpose(2, 3)
    total = a.cumsum(-1)  # b c g r q: log decay from the chunk's start through q

    # 1. Within the chunk: y_q += Σ_s (C_q · B_s) exp(Σ_{(s,q]} a) v_s
    scores = torch.matmul(C, B.transpose(-1, -2))[:, :, :, None] * segment_sum(a).exp()  # b c g r q s
    y = torch.matmul(scores.to(v.dtype), v)
    # 2. What each chunk adds to the state
    to_end = torch.exp(total[..., -1:] - total)[..., None]  # b c g r q 1
    added = torch.matmul((v * to_end).transpose(-1, -2), B[:, :, :, None]).float()  # b c g r p n
    # 3. The state at each chunk's start
    through = total[..., -1].exp()[..., None, None]  # b c g r 1 1
    if state is None:
        h = added.new_zeros(batch, groups, per_group, size, n)
    else:
        h = state.float().reshape(batch, groups, per_group, size, n)
    starts = []
    for c in range(chunks):
        starts.append(h)
        h = through[:, c] * h + added[:, c]
    # 4. What that state gives to the chunk's outputs
    carried = torch.matmul(C[:, :, :, None], torch.stack(starts, dim=1).transpose(-1, -2))  # b c g r q p
    y = y + carried * total.exp()[..., None]
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, chunks * chunk, heads, size)[:, :length]
    y = y + D.float()[:, None] * u
    return y.to(x.dtype), h.reshape(batch, heads, size, n)
