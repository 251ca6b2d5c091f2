"""What `native` and `hybrid` share: a model of `ssm/`, the kernels that it runs on, the precision of its states."""

from __future__ import annotations

from typing import Generic, TypedDict, TypeVar

import torch
from torch import Tensor

import evalspec
from evalspec.execute.backends.batch_invariance import products
from evalspec.execute.backends.forking import Batch, ForkingModel, Row
from evalspec.models.tokens import Tokenizer
from evalspec.ssm.kernels.choice import Choice, Kernels
from evalspec.ssm.language_model import LanguageModel

Net = TypeVar("Net", bound=LanguageModel)


class Settings(TypedDict, total=False):
    """How a model of `ssm/` runs."""

    end_tokens: frozenset[int]
    """They end an answer."""
    batch_tokens: int | None
    """Most tokens in one batch; None: chosen from the device."""
    kernels: Choice
    state_dtype: torch.dtype
    """Precision in which state-space states are kept; what is computed is float32."""
    batch_invariant: bool
    """Results do not depend on what else a batch holds; `kernels` are `serial` then."""


class StateSpaceBackend(ForkingModel[Row, Batch], Generic[Net, Row, Batch]):
    """A `ForkingBackend` over a model of `ssm/`, on the device where its parameters are."""

    name = "native"
    model: Net

    def __init__(self, model: Net, tokenizer: Tokenizer | None, settings: Settings) -> None:
        self.batch_invariant = settings.get("batch_invariant", False)
        self.kernels: Choice = "serial" if self.batch_invariant else settings.get("kernels", "auto")
        self.state_dtype = settings.get("state_dtype", torch.float32)
        self.model = model.eval().freeze().use(self.kernels)
        head = model.lm_head.weight
        super().__init__(
            tokenizer,
            device=head.device,
            dtype=head.dtype,
            vocab_size=head.shape[0],
            end_tokens=settings.get("end_tokens", frozenset()),
            batch_tokens=settings.get("batch_tokens"),
        )
        theirs = f", {self.kernels.version}" if isinstance(self.kernels, Kernels) and self.kernels.version else ""
        self.hidden_bytes = head.shape[1] * head.element_size()
        """Bytes of the hidden vector that a state carries."""
        self.version = f"{evalspec.__version__} (torch {torch.__version__}{theirs})"

    @property
    def identity(self) -> tuple[str, ...]:
        """The precision of states beside that of weights: both round what is computed."""
        return (*super().identity, f"{str(self.state_dtype).removeprefix('torch.')} states")

    def _logits(self, hidden: Tensor) -> Tensor:
        with products(self.batch_invariant):
            return self.model.head(hidden)
