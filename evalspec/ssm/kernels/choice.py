"""Which kernels a layer runs on: this is the one place that chooses.

`auto` is Triton on a GPU, and on a CPU, or where gradients are asked for, the plain forms beside the mathematics
(`causal_conv1d`, `selective_scan`, `ssd`). What was chosen otherwise is handed to the layers as a `Kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from evalspec.ssm.kernels.ssd_serial import ssd_serial


@dataclass(frozen=True)
class Kernels:
    """Forward kernels that take in their neighbours: silu in the convolution, softplus and the gate in Mamba's scan.

    convolve       (x, weight, bias, *, pack, state, silu) → y, the last inputs of the kept segments
    convolve_step  (x, weight, bias, *, state, silu) → y; the state is updated in place
    scan           (x, delta, A, B, C, D, *, pack, state, z, delta_bias) → y, the last states of the pack's `ends`
    scan_step      (x, delta, A, B, C, D, *, state, z, delta_bias) → y; the state is updated in place
    ssd            (x, delta, A, B, C, D, *, pack, state) → y, the last states of the pack's `ends`
    ssd_step       (x, delta, A, B, C, D, *, state) → y; the state is updated in place

    Shapes are those of `causal_conv1d_triton`, `selective_scan_packed_triton` and `ssd_triton`.
    """

    convolve: Callable[..., tuple[Tensor, Tensor]]
    convolve_step: Callable[..., Tensor]
    scan: Callable[..., tuple[Tensor, Tensor]]
    scan_step: Callable[..., Tensor]
    ssd: Callable[..., tuple[Tensor, Tensor]]
    ssd_step: Callable[..., Tensor]
    version: str = ""
    """Of the packages that they come from, where that is not torch."""


Choice = Kernels | Literal["auto", "torch", "serial"]
"""What a layer is told: kernels, or the fastest for where it is, or PyTorch's own operations and no others. `serial` is
`auto`, but SSD goes token after token on a GPU too, so that no sum depends on where a batch begins."""


def kernels_for(choice: Choice, x: Tensor) -> Kernels | None:
    """The kernels that serve a layer whose input is x; None: the plain forms do."""
    if torch.is_grad_enabled() or choice == "torch":
        return None
    if choice == "auto":
        return triton_kernels() if x.is_cuda else None
    if choice == "serial":
        return replace(triton_kernels(), ssd=ssd_serial) if x.is_cuda else None
    return choice


@cache
def triton_kernels() -> Kernels:
    """Our own."""
    from evalspec.ssm.kernels import causal_conv1d_triton as conv
    from evalspec.ssm.kernels import selective_scan_packed_triton as scan
    from evalspec.ssm.kernels import ssd_triton as ssd

    return Kernels(
        conv.causal_conv1d_packed_triton,
        conv.causal_conv1d_step_triton,
        scan.selective_scan_packed_triton,
        scan.selective_scan_step_triton,
        ssd.ssd_packed_triton,
        ssd.ssd_step_triton,
    )
