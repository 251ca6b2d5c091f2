"""The forms that our recurrences come in, each under the signatures of `Kernels`, so that they stand in one table.

    triton      our kernels for GPUs                        compiled   our loops on a CPU
    mamba_ssm   those of mamba-ssm and causal-conv1d        plain      one step at a time, beside the mathematics

`plain` is what the others are held against.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.causal_conv1d import causal_conv1d
from evalspec.ssm.kernels.choice import Kernels, triton_kernels
from evalspec.ssm.kernels.selective_scan import selective_scan_compiled, selective_scan_reference
from evalspec.ssm.kernels.ssd import ssd, ssd_reference

Recurrence = Callable[..., tuple[Tensor, Tensor]]


def forms_on(device: torch.device) -> dict[str, Callable[[], Kernels]]:
    """The forms to try on this device, by name. Getting one raises ImportError (or what a broken package raises)."""
    if device.type == "cpu":
        return {"compiled": compiled_kernels}
    from evalspec.ssm.kernels.mamba_ssm_kernels import load_mamba_ssm

    return {"triton": triton_kernels, "mamba_ssm": load_mamba_ssm}


@cache
def compiled_kernels() -> Kernels:
    """What `kernels: auto` comes to on a CPU."""
    return _kernels(causal_conv1d, selective_scan_compiled, ssd)


@cache
def plain_kernels() -> Kernels:
    """The references."""
    return _kernels(_plain_conv, selective_scan_reference, ssd_reference)


def _plain_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, pack: Pack, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():  # without gradients it would be the compiled loop
        y, window = causal_conv1d(x, weight, bias, pack=pack, state=state)
    return y.detach(), window.detach()


def _kernels(conv: Recurrence, scan: Recurrence, dual: Recurrence) -> Kernels:
    convolve, scanned = partial(_convolve, conv), partial(_scan, scan)
    return Kernels(convolve, partial(_step, convolve), scanned, partial(_step, scanned), dual, partial(_step, dual))


def _step(over_a_pack: Recurrence, x: Tensor, *inputs: Tensor | None, state: Tensor, **more: Any) -> Tensor:
    """One token a row, by what a pack takes; the state is updated in place."""
    y, after = over_a_pack(x, *inputs, pack=Pack.of_rows(len(x), 1), state=state, **more)
    state.copy_(after)
    return y


def _convolve(
    conv: Recurrence,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pack: Pack,
    state: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    y, window = conv(x.float(), weight, bias, pack=pack, state=state)
    return (F.silu(y) if silu else y).to(x.dtype), window.to(x.dtype)


def _scan(
    scan: Recurrence,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    pack: Pack,
    state: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if delta_bias is not None:
        delta = F.softplus(delta.float() + delta_bias.float())
    y, ends = scan(x.float(), delta, A, B, C, D, pack=pack, state=state)
    return (y if z is None else y * F.silu(z.float())).to(x.dtype), ends
