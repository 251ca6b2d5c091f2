"""State-space duality (SSD), the recurrence of Mamba-2: one scalar decay a head, so that chunks become matrix products.

    h_t = exp(Δ_t A) h_{t−1} + Δ_t x_t B_tᵀ        y_t = h_t C_t + D x_t        (arXiv 2405.21060, section 6, listing 1)

where t − 1 is the token before t on its path through a pack. A chunk (`Pack.chunks`) is a small forest that hangs from
one state h; with cum_q = Σ Δ_s A over the path from there through q,

    y_q = Σ_{s ≤ q < reach[s]} (C_q · B_s) exp(cum_q − cum_s) Δ_s x_s  +  exp(cum_q) h C_q  +  D x_q

so a question and its four choices are one masked product, and no state between them is ever written down: of the
segments' last states only those that are to be kept are given.

Glossary: t tokens · h heads · p head size · n state · r groups that share B and C · g given states
c chunks · q, s positions in a chunk · k kept segments (`Pack.keep`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.ssd_rows import ssd_rows
from evalspec.ssm.kernels.ssd_serial import ssd_serial

# Tokens a chunk. Any size gives the same result: the (chunk × chunk) scores cost more than longer chunks save.
_CHUNK = 64


def ssd_reference(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, pack: Pack, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence one step at a time, in float32. The chunked form must equal this.

    Args: x (t, h, p) · delta (t, h) · A (h,), negative · B, C (t, r, n), r divides h · D (h,)
        state (g, h, p, n), zeros if None.
    Returns: y (t, h, p) in x's dtype, and the states after the segments `pack.keep` (k, h, p, n) in float32.
    """
    u, delta, A, B, C, D = (tensor.float() for tensor in (x, delta, A, B, C, D))
    heads_a_group = u.shape[1] // B.shape[1]
    B, C = (tensor.repeat_interleave(heads_a_group, dim=1) for tensor in (B, C))  # t, h, n
    given = u.new_zeros(pack.given, *u.shape[1:], B.shape[2]) if state is None else state.float()
    last: dict[int, Tensor] = {}
    outputs = []
    for number, above in enumerate(pack.parent.tolist()):
        h = last[above] if above >= 0 else given[-1 - above]
        for t in range(int(pack.start[number]), int(pack.stop[number])):
            h = torch.exp(delta[t] * A)[:, None, None] * h + (delta[t, :, None] * u[t])[..., None] * B[t, :, None, :]
            outputs.append((h * C[t, :, None, :]).sum(-1) + D[:, None] * u[t])
        last[number] = h
    kept = torch.stack([last[number] for number in pack.keep.tolist()]) if len(pack.keep) else given[:0]
    return torch.stack(outputs).to(x.dtype), kept


@dataclass(frozen=True, eq=False)
class _Plan:
    """The index arrays of one pack's chunks, on a device; every layer uses the same ones.

    token   (c, q)     the token at each position; 0 where the chunk is shorter
    real    (c, q)     whether there is one
    before  (c, q, s)  whether position s is on the path to position q
    order              behind the padding: (c · q) positions of the tokens (t,)
    entry   (c,)       the state each chunk hangs from: given ones first, then ports
    hanging            for each state that chunks hang from, its number and those chunks
    ports              per depth: numbers of the ports (tokens whose state is needed), their chunks and positions there
    kept    (k,)       the ports of `Pack.keep`, counted likewise
    """

    token: Tensor
    real: Tensor
    before: Tensor
    order: Tensor
    entry: Tensor
    hanging: tuple[tuple[int, Tensor], ...]
    ports: tuple[tuple[Tensor, Tensor, Tensor], ...]
    count: int
    kept: Tensor


_PLANS: WeakKeyDictionary[Pack, dict[tuple[int, torch.device], _Plan]] = WeakKeyDictionary()


def _plan(pack: Pack, most: int, device: torch.device) -> _Plan:
    known = _PLANS.setdefault(pack, {})
    if (most, device) not in known:
        known[most, device] = _make_plan(pack, most, device)
    return known[most, device]


def _make_plan(pack: Pack, most: int, device: torch.device) -> _Plan:
    chunks = pack.chunks(most)
    size = chunks.stop - chunks.start
    position = np.arange(int(size.max()))
    real = position < size[:, None]
    token = np.where(real, chunks.start[:, None] + position, 0)
    reach = np.where(real, pack.reach[token] - chunks.start[:, None], 0)
    before = (position[None, :] <= position[:, None]) & (position[:, None] < reach[:, None, :]) & real[:, :, None]
    port = np.unique(np.concatenate([chunks.entry[chunks.entry >= 0], pack.stop[pack.keep] - 1]))
    home = np.searchsorted(chunks.stop, port, side="right")  # the chunk that each port stands in
    number = {int(at): pack.given + place for place, at in enumerate(port)}
    entry = np.asarray([number[at] if at >= 0 else -1 - at for at in chunks.entry.tolist()], np.int64)
    depth: list[int] = []
    for chunk in home.tolist():
        above = int(entry[chunk]) - pack.given
        depth.append(depth[above] + 1 if above >= 0 else 0)

    def on_device(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    levels = [np.flatnonzero(np.asarray(depth) == level) for level in range(max(depth, default=-1) + 1)]
    return _Plan(
        token=on_device(token),
        real=on_device(real),
        before=on_device(before),
        order=on_device(np.flatnonzero(real.ravel())),
        entry=on_device(entry),
        hanging=tuple((state, on_device(np.flatnonzero(entry == state))) for state in np.unique(entry).tolist()),
        ports=tuple(
            (on_device(level + pack.given), on_device(home[level]), on_device((port - chunks.start[home])[level]))
            for level in levels
        ),
        count=len(port) + pack.given,
        kept=on_device(np.asarray([number[at] for at in (pack.stop[pack.keep] - 1).tolist()], np.int64)),
    )


def ssd_chunked(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    pack: Pack,
    state: Tensor | None = None,
    chunk: int = _CHUNK,
) -> tuple[Tensor, Tensor]:
    """The same in chunks, as the head of this file says. Made of plain products: it serves any device, and autograd.

    Sums of log decays are float64: their differences would cancel where decays are strong.
    """
    _, heads, size = x.shape
    groups, n = B.shape[1:]
    per_group = heads // groups
    plan = _plan(pack, chunk, x.device)
    longest = plan.token.shape[1]
    u, step = x.float(), delta.float()
    value = (u * step[..., None])[plan.token].permute(0, 2, 1, 3)  # c h q p
    a = torch.where(plan.real[..., None], (step * A.float())[plan.token], 0.0)
    B, C = (tensor.float()[plan.token].permute(0, 2, 1, 3) for tensor in (B, C))  # c r q n
    cum = torch.matmul(plan.before.double(), a.double()).transpose(1, 2)  # c h q
    from_entry = cum.float().exp()  # c h q

    # 1. Within the chunk.
    scores = torch.matmul(C, B.transpose(-1, -2))  # c r q s
    y = torch.matmul(_weighted(scores, cum, plan), value)  # c h q p

    # 2. The states at ports: what their chunk adds, and what is left of the state that it hangs from.
    states = u.new_zeros(plan.count, heads, size, n)
    if state is not None:
        states[: pack.given] = state.float()
    for port, home, place in plan.ports:
        since = (cum[home, :, place][..., None] - cum[home]).float()  # ports h s
        weight = since.masked_fill(~plan.before[home, place][:, None], -torch.inf).exp()
        keys = B[home].repeat_interleave(per_group, dim=1)  # ports h s n
        added = torch.matmul((value[home] * weight[..., None]).transpose(-1, -2), keys)  # ports h p n
        left = from_entry[home, :, place][..., None, None]
        states[port] = torch.addcmul(added, left, states[plan.entry[home]])

    # 3. What the entry's state gives to each output; chunks that hang from one state are one product a group.
    carried = []
    for entry, here in plan.hanging:
        queries = C[here].transpose(0, 1).flatten(1, 2)  # r (c q) n
        carried.append(torch.matmul(queries, states[entry].reshape(groups, per_group * size, n).transpose(1, 2)))
    y = _joined(y, [part.transpose(0, 1).reshape(-1, longest, heads, size) for part in carried], from_entry, plan)
    return torch.addcmul(y, D.float()[:, None], u).to(x.dtype), states[plan.kept]


def _joined(y: Tensor, carried: list[Tensor], from_entry: Tensor, plan: _Plan) -> Tensor:
    """What each chunk gives to itself, y (c, h, q, p), and what its entry's state gives, decayed: (t, h, p).

    `carried` are (c, q, h, p), of the chunks of each of `plan.hanging`; `from_entry` (c, h, q) are their decays.
    """
    _, heads, longest, size = y.shape
    whole = y.new_empty(len(y), longest, heads, size)
    for (_, here), part in zip(plan.hanging, carried, strict=True):
        whole[here] = part
    y = torch.addcmul(y, whole.transpose(1, 2), from_entry[..., None])
    return y.transpose(1, 2).reshape(-1, heads, size)[plan.order]


def _weighted(scores: Tensor, cum: Tensor, plan: _Plan) -> Tensor:
    """C_q · B_s exp(cum_q − cum_s) for each head and each s on the path to q: (c, r, q, s) → (c, h, q, s)."""
    groups, heads = scores.shape[1], cum.shape[1]
    decay = (cum[..., :, None] - cum[..., None, :]).float().masked_fill(~plan.before[:, None], -torch.inf).exp()
    return (scores[:, :, None] * torch.unflatten(decay, 1, (groups, heads // groups))).flatten(1, 2)


def ssd(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, pack: Pack, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """SSD by the form that serves: on a CPU a compiled loop; for gradients an ordinary batch, or chunks of a forest.
    (Without gradients a GPU has faster ones: see `choice`.)"""
    gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, delta, A, B, C, D))
    if not x.is_cuda and not gradients:
        return ssd_serial(x, delta, A, B, C, D, pack=pack, state=state)
    if pack.rows is None:
        return ssd_chunked(x, delta, A, B, C, D, pack=pack, state=state)
    x, delta, B, C = (torch.unflatten(tensor, 0, pack.rows) for tensor in (x, delta, B, C))
    y, last = ssd_rows(x, delta, A, B, C, D, state=state, chunk=_CHUNK)
    return y.flatten(0, 1), last
