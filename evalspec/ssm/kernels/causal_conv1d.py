"""Depthwise causal convolution, the short filter in front of both Mamba scans.

    y_t = bias + Σ_k w_k ⊙ x_{t−K+1+k}        k = 0 … K−1        (arXiv 2312.00752, section 3.4)

where t − 1 is the token before t on its path through a pack.

Glossary: t tokens · e channels · K width of the filter · g given states · k kept segments
A state is the last K−1 inputs, the oldest first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalspec.plan.pack import Pack


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, pack: Pack, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Filter each channel with the inputs up to now; what came before a path's first one is its given state.

    Args: x (t, e) · weight (e, K) · bias (e,) · state (g, K−1, e), zeros if None.
    Returns: y (t, e) in x's dtype, and the last K−1 inputs of each segment of `pack.keep` (k, K−1, e).
    """
    before = weight.shape[1] - 1
    if state is None:
        state = x.new_zeros(pack.given, before, x.shape[1])
    state = state.to(x.dtype)
    if pack.rows is not None:
        return _of_rows(torch.unflatten(x, 0, pack.rows), weight, bias, state)
    past = state.flatten(0, 1)
    ending = torch.from_numpy(pack.window(before) - len(past)).to(x.device)  # below 0: what a given state remembers
    window = torch.where((ending < 0)[..., None], past[ending.clamp(max=-1)], x[ending.clamp(min=0)])
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        return _compiled(x, weight, bias, pack, past), window
    inputs = torch.cat([past, x]).float()
    history = torch.from_numpy(pack.history(before)).to(x.device)
    y = x.float() * weight[:, before].float()
    for k in range(before):
        y = torch.addcmul(y, inputs[history[:, k]], weight[:, k].float())
    return (y if bias is None else y + bias.float()).to(x.dtype), window


def _of_rows(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of one length (b, l, e): K shifted products, which torch.compile makes one kernel of."""
    length = x.shape[1]
    past = torch.cat([state, x], dim=1)  # b, K−1+l, e
    y = past[:, :length].float() * weight[:, 0].float()
    for k in range(1, weight.shape[1]):
        y = torch.addcmul(y, past[:, k : k + length].float(), weight[:, k].float())
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype).flatten(0, 1), past[:, length:]


def _compiled(x: Tensor, weight: Tensor, bias: Tensor | None, pack: Pack, past: Tensor) -> Tensor:
    """The same on a CPU by a compiled loop, which reads each input where it stands."""
    from evalspec.ssm.kernels.compiled import convolve, share_threads

    share_threads()
    wide = x.float().contiguous()
    y = torch.empty_like(wide)
    offset = wide.new_zeros(x.shape[1]) if bias is None else bias.float()
    filters = weight.float().T.contiguous()
    history = pack.history(weight.shape[1] - 1)
    arrays = [tensor.detach().numpy() for tensor in (wide, filters, offset)]
    convolve(*arrays, history, past.float().detach().contiguous().numpy(), y.numpy())
    return y.to(x.dtype)
