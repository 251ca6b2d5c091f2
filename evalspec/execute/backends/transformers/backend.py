"""The transformers backend: any causal language model that transformers loads, its memory forked by evalspec.

Three ways, each in a module of its own; the first that fits the model:

- *tree*: attention is taken over, a pack runs as one row, nothing is padded or copied;
- *rows*: models with attention of their own (ALiBi in Bloom), and those with recurrent layers, alone (Mamba-2) or mixed
  with attention (Bamba, Falcon-H1, LFM2, …). Packs run in padded batches over the model's own cache;
- *again*: a model that goes on wrongly from its cache cannot be forked: it is fed from the beginning (`forks` is False,
  and the cost is the caller's to count), and goes on from its cache only while it decodes, if it does that rightly.

Which it is, is tried out when the model is opened, by its own numbers; `models/forking.py` tells plans.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from torch import Tensor, nn

from evalspec.errors import ModelError
from evalspec.execute.backends.device import device_of, dtype_of, end_tokens_of
from evalspec.execute.backends.forking import Fed, ForkedState, ForkingModel
from evalspec.execute.backends.transformers import tree
from evalspec.execute.backends.transformers.again import Again
from evalspec.execute.backends.transformers.on_cpu import kernels_by_device
from evalspec.execute.backends.transformers.rows import Rows
from evalspec.execute.backends.transformers.trial import ERRORS, Trial, steps_differ
from evalspec.execute.backends.transformers.way import Forward, Way
from evalspec.models.card import Model
from evalspec.models.tokens import Tokenizer
from evalspec.plan.forest import Tokens
from evalspec.plan.pack import Pack
from evalspec.ssm.checkpoints import UNREADABLE

LOADING_ERRORS = (
    *(*UNREADABLE, StrictDataclassError, ValueError, KeyError, TypeError),
    *(AttributeError, ImportError, ArithmeticError),
)
"""What transformers raises for directories that hold no model, half of one, or one that it does not know."""


class TransformersBackend(ForkingModel[Any, Any]):
    """A `ForkingBackend` over a transformers model."""

    name = "transformers"
    states_refer = True

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        *,
        end_tokens: frozenset[int] = frozenset(),
        batch_tokens: int | None = None,
        batch_invariant: bool = False,
    ) -> None:
        """Run a model where its parameters are. `end_tokens` end an answer; `batch_tokens` bounds a batch.

        `batch_invariant`: results do not depend on what else a batch holds. ModelError where that cannot be had.
        """
        self.model, self.batch_invariant = model, batch_invariant
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
            model.set_attn_implementation("eager")  # the others leave caps of scores out without a word (5.19)
        if batch_invariant and hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # expert by expert, each a product of its own
        self._forward = forward = Forward(model, batch_invariant=batch_invariant)
        super().__init__(
            tokenizer,
            device=forward.device,
            dtype=forward.dtype,
            vocab_size=forward.vocab_size,
            end_tokens=end_tokens,
            batch_tokens=batch_tokens,
        )
        self.version = f"{transformers.__version__} (torch {torch.__version__})"
        self.way = self._settle()
        if batch_invariant:
            self._hold_invariant()
        self.forks = self.way.forks
        # A pack's states stand in memory together, however few its tokens are.
        self.most_spans = max(1, self.batch_bytes // max(1, self.way.state_bytes(0)))

    @torch.inference_mode()
    def _settle(self) -> Way[Any, Any]:
        """The first way that gives the model's own numbers."""
        trial = Trial(self._forward)
        self.why_not_tree = "the model's cache holds more than keys and values, or it takes no positions"
        layout = trial.layout
        if layout is None:
            return Again(self._forward, None, self)
        if not layout.recurrent and self._forward.takes_positions:
            before = self.model.config._attn_implementation
            try:
                self.model.set_attn_implementation(tree.ATTENTION)
                taken = tree.Tree(self._forward, layout)
                if trial.forks(taken):
                    return taken
                self.why_not_tree = trial.why
            except ERRORS as error:
                self.why_not_tree = f"{type(error).__name__}: {error}"
            self.model.set_attn_implementation(before)
        rows = Rows(self._forward, layout, self)
        if not steps_differ(self.model) and trial.forks(rows):
            return rows
        return Again(self._forward, rows if trial.decodes(rows) else None, self)

    @torch.inference_mode()
    def _hold_invariant(self) -> None:
        """Raise ModelError if results depend on the batch all the same."""
        why = f"its attention cannot be taken over: {self.why_not_tree}"
        if isinstance(self.way, tree.Tree):
            why = tree.tokens_meet(self._forward) or ""
        if why:
            raise ModelError(
                f"`batch_invariant: true` cannot be had of {type(self.model).__name__}: {why}; leave it out, or say "
                "`dtype: float64`, whose results differ by less than is stored"
            )

    def state_bytes(self, length: int) -> int:
        """Bytes of what a sequence of `length` tokens leaves behind: keys and values, and states."""
        return self.way.state_bytes(length)

    def _feed(
        self, tokens: Tensor, pack: Pack, given: Sequence[Any], scored: Tensor, hidden: Tensor | None
    ) -> Fed[Any]:
        return self.way.feed(tokens, pack, given, scored, hidden)

    def _gather(self, states: Sequence[ForkedState[Any]], room: int) -> Any:
        return self.way.gather([state.memory for state in states], room)

    def _step(self, tokens: Tensor, batch: Any) -> tuple[Tensor, Any]:
        return self.way.step(tokens, batch)

    def _select(self, batch: Any, rows: Sequence[int]) -> Any:
        return self.way.select(batch, rows)

    def _join(self, first: Any, second: Any) -> Any:
        return self.way.join(first, second)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._forward.logits(hidden)

    @torch.inference_mode()
    def hidden_states(self, tokens: Tokens) -> NDArray[np.float32]:
        """(layers + 1, t, d): what the first block is given, and the residual stream after each block."""
        blocks = self._blocks()
        states: list[Tensor] = []

        def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0] if args else kwargs["hidden_states"])

        def gave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        hooks = [blocks[0].register_forward_pre_hook(given, with_kwargs=True)]
        hooks += [block.register_forward_hook(gave) for block in blocks]
        sequence = torch.as_tensor(np.asarray(tokens, np.int64), device=self.device)
        try:
            self.way.feed(sequence, Pack.of([len(tokens)], [-1], 1, []), [None], sequence[:0], None)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([state.float().cpu() for state in states]).numpy()

    def _blocks(self) -> nn.ModuleList:
        """The model's residual blocks: its one list of as many modules as it has layers."""
        layers = self.model.config.get_text_config().num_hidden_layers
        lists = [
            module for module in self.model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers
        ]
        if not lists:
            raise ModelError(f"{type(self.model).__name__} has no list of {layers} blocks to read hidden states from")
        return lists[0]


def open_transformers(model: Model) -> TransformersBackend:
    """Load a causal language model as its block asks, over several GPUs where it says `device_map`."""
    device = device_of(model)
    spread = {"device_map": model.block.device_map} if model.block.device_map else {}
    try:
        loaded, found = transformers.AutoModelForCausalLM.from_pretrained(
            model.directory, dtype=dtype_of(model, device), output_loading_info=True, **spread
        )
    except LOADING_ERRORS as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # A config that its class refuses says in the first line only that it does.
        first = " ".join(line.strip() for line in lines[: 2 if isinstance(error, StrictDataclassError) else 1])
        raise ModelError(f"models.{model.name}: transformers cannot load {model.directory}: {first}") from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise ModelError(
            f"models.{model.name}: {model.directory} lacks {len(missing)} of the weights that its config.json names: "
            f"{shown}; the files are incomplete, or of another model"
        )
    beyond = _further_layers(found["unexpected_keys"], loaded.state_dict())
    if beyond:  # transformers would leave them out and go on with a shorter model
        raise ModelError(
            f"models.{model.name}: {model.directory} holds more layers than its config.json names: nothing takes "
            f"{beyond[0]}{' …' if len(beyond) > 1 else ''}; its `num_hidden_layers` is too small"
        )
    if spread or device.type == "cpu":
        kernels_by_device(loaded)
    try:
        return TransformersBackend(
            loaded if spread else loaded.to(device),
            model.tokenizer,
            end_tokens=end_tokens_of(model),
            batch_tokens=model.block.batch_tokens,
            batch_invariant=model.block.batch_invariant,
        )
    except ModelError as error:
        raise ModelError(f"models.{model.name}: {error}") from error


def _further_layers(unexpected: Iterable[str], taken: Iterable[str]) -> list[str]:
    """The weights, of those that a model did not take, that are called as its own but for a layer's number."""
    known = {re.sub(r"\.\d+\.", ".N.", name) for name in taken}
    return [name for name in sorted(unexpected) if re.sub(r"\.\d+\.", ".N.", name) in known]
