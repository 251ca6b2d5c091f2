"""Depthwise causal convolution, the short filter in front of both Mamba scans.

    y_t = bias + Σ_k w_k ⊙ x_{t−K+1+k}        k = 0 … K−1        (arXiv 2312.00752, section 3.4)

Glossary: b batch · l time · e channels · K width of the filter. Its state is the last K−1 inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, state: Tensor | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Filter each channel with the inputs up to now; what came before the first one is `state`.

    Args: x (b, l, e) · weight (e, K) · bias (e,) · state (b, K−1, e), zeros if None · lengths (b,), how many of
        the l inputs of each row are real (the rest is padding on the right); all if None.
    Returns: y (b, l, e) in x's dtype, and each row's last K−1 real inputs (b, K−1, e), older ones coming from `state`.
    """
    batch, length, channels = x.shape
    width = weight.shape[1]
    if state is None:
        state = x.new_zeros(batch, width - 1, channels)
    past = torch.cat([state.to(x.dtype), x], dim=1)  # b, K−1+l, e
    # K shifted products: faster than a grouped convolution on the CPU, one fused kernel under torch.compile.
    y = past[:, :length].float() * weight[:, 0].float()
    for k in range(1, width):
        y = torch.addcmul(y, past[:, k : k + length].float(), weight[:, k].float())
    if bias is not None:
        y = y + bias.float()
    if lengths is None:
        return y.to(x.dtype), past[:, length:]
    window = lengths[:, None] + torch.arange(width - 1, device=x.device)  # b, K−1: row's own end, counted in `past`
    return y.to(x.dtype), past.gather(1, window[:, :, None].expand(-1, -1, channels))
