"""The frame that Mamba and Mamba-2 share: embedding, L blocks `h ← h + mixer(norm(h))`, final norm, output head.

Module and parameter names are those of Hugging Face's `MambaForCausalLM` and `Mamba2ForCausalLM`, so that their
safetensors load as they are, and what is trained here loads there.

Glossary: t tokens of a pack · b batch · l time · d model width · v vocabulary
"""

from __future__ import annotations

import math
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.choice import Choice
from evalspec.ssm.state import LayerState, RecurrentState


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) ⊙ weight, computed in float32; with a gate, of x ⊙ silu(gate) (as in Mamba-2)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """(…, size) → (…, size), in x's dtype or the weight's, whichever is wider."""
        if gate is not None and x.is_cuda and not torch.is_grad_enabled():
            from evalspec.ssm.kernels.norms_triton import gated_rms_norm_triton

            return gated_rms_norm_triton(x, gate, self.weight, self.eps)
        wide = x.float()
        if gate is not None:
            wide = wide * F.silu(gate.float())
        # The vector norm is one pass where squares, their mean and so on are several.
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / wide.shape[-1]
        wide = wide * torch.rsqrt(mean_square + self.eps)
        return self.weight * wide.to(x.dtype)


def add_and_norm(update: Tensor | None, stream: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    """Between two mixers: add the first one's output (t, d) to the residual stream (t, d), and norm it for the next.

    Returns: the normed stream in the norm's own dtype, and the new stream in the old one's.
    """
    if update is None:
        return norm(stream.to(norm.weight.dtype)), stream
    if stream.is_cuda:
        from evalspec.ssm.kernels.norms_triton import add_rms_norm_triton

        return add_rms_norm_triton(update, stream, norm.weight, norm.eps)
    stream = stream + update
    return norm(stream.to(norm.weight.dtype)), stream


class Mixer(nn.Module):
    """What a block does along time. Subclasses are Mamba's and Mamba-2's mixers."""

    out_proj: nn.Linear
    A_log: nn.Parameter
    kernels: Choice = "auto"
    """What its convolution and recurrence run on."""
    frozen: Tensor | None = None
    """A = −exp(A_log), once the parameters no longer change."""

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh parameters as the paper does."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: LayerState | None, pack: Pack) -> tuple[Tensor, LayerState]:
        """(t, d) → (t, d) and the states after the kept segments."""
        raise NotImplementedError

    def rates(self) -> Tensor:
        """A, in float32: what `freeze` found, or from the parameter."""
        return -torch.exp(self.A_log.float()) if self.frozen is None else self.frozen

    def freeze(self) -> None:
        """Keep what depends on parameters alone, which must not change from now on."""
        self.frozen = self.rates()

    def step(self, x: Tensor, state: LayerState) -> Tensor:
        """One token a row, (b, d) → (b, d); the state (b, …) is updated in place."""
        y, after = self(x, state, Pack.of_rows(len(x), 1))
        state.conv.copy_(after.conv)
        state.ssm.copy_(after.ssm)
        return cast(Tensor, y)


class Block(nn.Module):
    """One residual block. The residual stream is kept in float32 where the config asks for it."""

    def __init__(self, mixer: Mixer, d_model: int, eps: float, residual_in_fp32: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model, eps)
        self.mixer = mixer
        self.residual_in_fp32 = residual_in_fp32

    def forward(self, x: Tensor, state: LayerState | None, pack: Pack) -> tuple[Tensor, LayerState]:
        """(t, d) → (t, d) and the layer's state."""
        mixed, state = self.mixer(self.norm(x.to(self.norm.weight.dtype)), state, pack)
        return (x.float() if self.residual_in_fp32 else x) + mixed, state


class Backbone(nn.Module):
    """All but the output head."""

    def __init__(self, blocks: list[Block], *, vocab_size: int, d_model: int, eps: float) -> None:
        super().__init__()
        weight = torch.empty(vocab_size, d_model)
        if not weight.is_meta:  # on the meta device `normal_` imports torch's compiler: 2 s, to draw nothing
            nn.init.normal_(weight)
        self.embeddings = nn.Embedding(vocab_size, d_model, _weight=weight)
        self.layers = nn.ModuleList(blocks)
        self.norm_f = RMSNorm(d_model, eps)


class LanguageModel(nn.Module):
    """What purely recurrent models and hybrids with attention share: embedding, blocks, final norm and head."""

    def __init__(
        self,
        blocks: list[Block],
        *,
        vocab_size: int,
        d_model: int,
        eps: float,
        residual_in_fp32: bool,
        tie_word_embeddings: bool,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(blocks, vocab_size=vocab_size, d_model=d_model, eps=eps)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_word_embeddings:
            self.lm_head.weight = self.backbone.embeddings.weight
        self.tie_word_embeddings = tie_word_embeddings
        self.residual_in_fp32 = residual_in_fp32

    def _stream(self, embedded: Tensor) -> Tensor:
        """The residual stream that blocks add to: float32 where the config asks for it."""
        return embedded.float() if self.residual_in_fp32 else embedded

    def use(self, kernels: Choice) -> Self:
        """Run every layer's convolution and recurrence on these."""
        for block in self.backbone.layers:
            cast(Mixer, block.mixer).kernels = kernels
        return self

    def freeze(self) -> Self:
        """For inference: compute what depends on parameters alone, which must not change from now on."""
        self.requires_grad_(False)
        for block in self.backbone.layers:
            cast(Mixer, block.mixer).freeze()
        return self

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (…, v) in float32 of hidden vectors (…, d): ask only for the positions that are scored."""
        logits: Tensor = self.lm_head(hidden.to(self.lm_head.weight.dtype))
        return logits.float()


class RecurrentLanguageModel(LanguageModel):
    """A language model whose memory is a `RecurrentState`. Built by `mamba.Mamba` and `mamba2.Mamba2`."""

    def __init__(
        self,
        mixers: list[Mixer],
        *,
        vocab_size: int,
        d_model: int,
        eps: float,
        residual_in_fp32: bool,
        tie_word_embeddings: bool,
    ) -> None:
        super().__init__(
            [Block(mixer, d_model, eps, residual_in_fp32) for mixer in mixers],
            vocab_size=vocab_size,
            d_model=d_model,
            eps=eps,
            residual_in_fp32=residual_in_fp32,
            tie_word_embeddings=tie_word_embeddings,
        )

    def forward(
        self, input_ids: Tensor, state: RecurrentState | None = None, pack: Pack | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """Read tokens, from the beginning or on from `state`.

        Args: input_ids (t,), laid out as `pack` says, or (b, l), rows of one length · state of the pack's given
            sequences so far (of the b rows).
        Returns: hidden (t, d) or (b, l, d) after the final norm, and the states of the kept segments (of the b rows).
        """
        shape = input_ids.shape
        if pack is None:
            pack = Pack.of_rows(*shape)
        hidden = self.backbone.embeddings(input_ids.flatten())
        before = [None] * len(self.backbone.layers) if state is None else state.layers
        after = []
        if torch.is_grad_enabled():
            for block, layer in zip(self.backbone.layers, before, strict=True):
                hidden, layer_state = block(hidden, layer, pack)
                after.append(layer_state)
            hidden = self.backbone.norm_f(hidden)
        else:
            stream, update = self._stream(hidden), None
            for block, layer in zip(self.backbone.layers, before, strict=True):
                normed, stream = add_and_norm(update, stream, cast(Block, block).norm)
                update, layer_state = cast(Block, block).mixer(normed, layer, pack)
                after.append(layer_state)
            hidden, _ = add_and_norm(update, stream, self.backbone.norm_f)
        return torch.unflatten(hidden, 0, shape), RecurrentState(tuple(after))

    def step(self, tokens: Tensor, state: RecurrentState) -> Tensor:
        """Read one token a row (b,) on from `state`, which is updated in place: hidden (b, d) after the final norm."""
        stream, update = self._stream(self.backbone.embeddings(tokens)), None
        for block, layer in zip(self.backbone.layers, state.layers, strict=True):
            normed, stream = add_and_norm(update, stream, cast(Block, block).norm)
            update = cast(Block, block).mixer.step(normed, layer)
        return add_and_norm(update, stream, self.backbone.norm_f)[0]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh parameters: embeddings N(0, 0.02²), each mixer's own, its out_proj / √L.

        Follows `mamba_ssm.models.mixer_seq_simple._init_weights` (one residual a layer).
        """
        nn.init.normal_(self.backbone.embeddings.weight, std=0.02, generator=generator)
        if not self.tie_word_embeddings:
            fan_in_uniform_(self.lm_head.weight, self.lm_head.in_features, generator)
        for block in self.backbone.layers:
            mixer = cast(Mixer, block.mixer)
            mixer.initialise(generator)
            mixer.out_proj.weight /= math.sqrt(len(self.backbone.layers))


def fan_in_uniform_(weight: Tensor, fan_in: int, generator: torch.Generator | None) -> None:
    """Uniform in ±1/√fan_in: what nn.Linear and nn.Conv1d draw by default."""
    nn.init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5, generator=generator)


def inverse_softplus_of_log_uniform(
    shape: tuple[int, ...], low: float, high: float, floor: float, generator: torch.Generator | None
) -> Tensor:
    """Biases whose softplus is log-uniform in [low, high], at least `floor`: the first Δ (arXiv 2312.00752, 3.6)."""
    log_delta = torch.rand(shape, generator=generator) * (math.log(high) - math.log(low)) + math.log(low)
    delta = log_delta.exp().clamp(min=floor)
    return delta + torch.log(-torch.expm1(-delta))
