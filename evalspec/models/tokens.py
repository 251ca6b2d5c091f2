"""A model's tokenizer: texts to ids, its end tokens, its chat template, and a hash of what it does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from evalspec.errors import ModelError
from evalspec.paths import is_file, is_folder


class Tokenizer:
    """The tokenizer of one model, loaded through transformers on first use (slow or fast, whatever the model has)."""

    def __init__(self, source: str, revision: str | None = None) -> None:
        self.source, self.revision = source, revision
        self._known: dict[str, list[int]] = {}

    @cached_property
    def inner(self) -> Any:
        """transformers' own tokenizer."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        try:
            loaded = self._loader().from_pretrained(self.source, revision=self.revision)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{self.source}: its tokenizer cannot be loaded: {first}") from None
        if set(loaded.get_vocab()) <= set(loaded.all_special_tokens):  # what transformers makes of files that lack
            raise ModelError(
                f"{self.source}: its tokenizer knows no text: its files (tokenizer.json, vocab.json, …) "
                "are missing; copy them there, or name another directory with `tokenizer`"
            )
        return loaded

    def _loader(self) -> Any:
        """The class that loads it: transformers' generic one at once where the files name it (what AutoTokenizer would
        come to after importing every model, in a fifth of the time), else AutoTokenizer."""
        path = Path(self.source) / "tokenizer_config.json"
        named = json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class") if is_file(path) else None
        if named in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast
        from transformers import AutoTokenizer

        return AutoTokenizer

    @property
    def start(self) -> int:
        """The token that an empty context becomes: BOS, else EOS."""
        for token in (self.inner.bos_token_id, self.inner.eos_token_id):
            if token is not None:
                return int(token)
        raise ModelError(f"{self.source}: the tokenizer has no BOS and no EOS token to stand for an empty context")

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Token ids of each text; `special` adds what the tokenizer puts in front by itself (BOS, say), but not in
        front of a text that begins with the start token already, as what a chat template wrote does."""
        mark = "\x01" if special else "\x00"
        new = list(dict.fromkeys(text for text in texts if mark + text not in self._known))
        started = [text for text in new if special and self._start_text and text.startswith(self._start_text)]
        for some, add in ((started, False), ([text for text in new if text not in set(started)], special)):
            if some:
                encoded = self.inner(some, add_special_tokens=add, return_attention_mask=False)["input_ids"]
                self._known.update((mark + text, ids) for text, ids in zip(some, encoded, strict=True))
        return [self._known[mark + text] for text in texts]

    @cached_property
    def _start_text(self) -> str:
        """The start token as text; empty where there is none."""
        tokens = (self.inner.bos_token_id, self.inner.eos_token_id)
        start = next((token for token in tokens if token is not None), None)
        return "" if start is None else str(self.inner.decode([start]))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, special ones left out."""
        return str(self.inner.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Messages through the model's own chat template, ending where the assistant begins."""
        if not self.inner.chat_template:
            raise ModelError(f"{self.source}: `chat: true`, but its tokenizer has no chat template; drop `chat`")
        return str(self.inner.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokenizer's files: the same prompt gives the same ids where this is the same."""
        digest = hashlib.sha256()
        if is_folder(Path(self.source)):
            names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
            for name in (*names, "tokenizer.model", "chat_template.jinja"):
                path = Path(self.source) / name
                if path.is_file():
                    digest.update(name.encode() + b"\0" + path.read_bytes())
        else:
            digest.update(repr(sorted(self.inner.get_vocab().items())).encode())
            digest.update(str(self.inner.chat_template).encode())
        return digest.hexdigest()
