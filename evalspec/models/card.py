"""What a model is before it runs: where its files are, what it is made of, what may run it, and what its weights are.

Nothing here needs torch; weights are hashed as bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from evalspec.errors import BackendError, ModelError, suggest
from evalspec.models.cost import Cost, cost_of
from evalspec.models.engines import why_not_vllm
from evalspec.models.forking import why_fed_again
from evalspec.models.kernels import why_not
from evalspec.models.original_format import HYBRID, ORIGINAL, is_original, translated
from evalspec.models.served import needs_tokenizer, served_as
from evalspec.models.tokens import Tokenizer
from evalspec.paths import is_file, is_folder, path_from
from evalspec.spec.model import ModelBlock

RECURRENT_TYPES = ("mamba", "mamba2")
NATIVE_TYPES = (*RECURRENT_TYPES, HYBRID)
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


@dataclass(frozen=True, eq=False)
class Model:
    """A model that a spec names. `directory` holds its files; those of its tokenizer where a server runs it."""

    name: str
    block: ModelBlock
    directory: Path
    config: Mapping[str, Any]
    backend: str
    tokenizer_source: str | None = None
    """A directory or hub id of a tokenizer from elsewhere; None: the one beside the weights."""

    @property
    def type(self) -> str:
        """`model_type` of its config: llama, mamba, mamba2, gpt_neox …; `mamba_ssm` for that package's hybrids."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def served(self) -> bool:
        """Whether a server runs it, so that its weights, its cost and its memory are not known."""
        return self.backend == "server"

    @property
    def recurrent(self) -> bool:
        """Whether its state has a fixed size (no KV cache)."""
        return self.type in RECURRENT_TYPES

    @property
    def trained_length(self) -> int | None:
        """Tokens it was trained on at a time, where known."""
        stated = self.block.trained_length or self.config.get("trained_length")
        return int(stated) if stated else (None if self.recurrent else self.max_length)

    @property
    def max_length(self) -> int | None:
        """Most tokens that it can be given; None when nothing limits them (a recurrent model)."""
        if self.block.max_length:
            return self.block.max_length
        for key in LENGTHS:
            if self.config.get(key):
                return int(self.config[key])
        return None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, loaded on first use."""
        if self.tokenizer_source is None:
            return Tokenizer(str(self.directory), self.block.revision)
        return Tokenizer(self.tokenizer_source)  # `revision` names a commit of the weights' repository, not of this

    @cached_property
    def cost(self) -> Cost | None:
        """Formulas of its cost, where its architecture is known."""
        return None if self.served else cost_of(self.config)

    @property
    def fed_again(self) -> str | None:
        """Why its backend cannot fork it, so that each request is fed from its beginning; None if it is forked."""
        return why_fed_again(self.config) if self.backend == "transformers" else None

    @cached_property
    def weights_hash(self) -> str:
        """sha256 of its weight files and configs: what answered, whatever the directory is called. For a server's model
        `server:URL:NAME`, all that is known of what answered."""
        if self.served:
            return served_as(self.block)
        weights = [
            p for suffix in ("*.safetensors", "*.bin") for p in sorted(self.directory.glob(suffix)) if p.is_file()
        ]
        if not weights:
            raise ModelError(f"{self.block.weights}: {self.directory} holds no weights (*.safetensors or *.bin)")
        digest = hashlib.sha256(json.dumps(dict(self.config), sort_keys=True).encode())
        generation = self.directory / "generation_config.json"  # names tokens that end an answer
        for path in [*weights, *([generation] if generation.is_file() else [])]:
            digest.update(path.name.encode() + _file_hash(path))
        return digest.hexdigest()


def _file_hash(path: Path) -> bytes:
    """sha256 of a file, remembered by path, size and time of change: large weights are read once."""
    real = path.resolve()
    stat = real.stat()
    name = hashlib.sha256(f"{real}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    known = cache_folder() / "weights" / name
    if stat.st_size > 2**26 and known.is_file() and len(known.read_bytes()) == 32:
        return known.read_bytes()
    with real.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").digest()
    if stat.st_size > 2**26:
        known.parent.mkdir(parents=True, exist_ok=True)
        aside = known.with_suffix(f".{os.getpid()}")
        aside.write_bytes(digest)
        aside.replace(known)
    return digest


def cache_folder() -> Path:
    """Where indices and hashes are kept between runs: $EVALSPEC_CACHE, else ~/.cache/evalspec."""
    return Path(os.environ.get("EVALSPEC_CACHE") or Path.home() / ".cache" / "evalspec")


def zoo_folder() -> Path:
    """Where the shipped models are."""
    return Path(str(files("evalspec.zoo")))


def find_model(name: str, block: ModelBlock, root: Path) -> Model:
    """The model of a block: resolves `weights`, reads its config, and settles which backend runs it.

    Raises ModelError when it isn't a model directory, BackendError when the chosen backend cannot run it.
    """
    if block.backend == "server":
        return _find_served(name, block, root)
    directory = _resolve(block, root)
    config = _config(name, block, directory)
    backend = _backend(name, block, config)
    return Model(name, block, directory, config, backend, _tokenizer_source(block, root))


def _find_served(name: str, block: ModelBlock, root: Path) -> Model:
    """The model of a block that a server runs: a tokenizer, and the config beside it where it is the model's own."""
    reason = why_not(block, "server", {})
    if reason is not None:
        raise BackendError(f"models.{name}: {reason}")
    source = _tokenizer_source(block, root)
    if source is not None:
        return Model(name, block, Path(source), {}, "server", source)
    if "/" not in block.weights and not is_folder(path_from(root, block.weights)):
        raise needs_tokenizer(name, block)  # and the hub is not asked for a model of that name
    try:
        directory = _resolve(block, root, weights=False)
    except ModelError as error:
        raise ModelError(f"{needs_tokenizer(name, block)}. Of itself: {error}") from None
    config = _config(name, block, directory) if (directory / "config.json").is_file() else {}
    return Model(name, block, directory, config, "server")


def _config(name: str, block: ModelBlock, directory: Path) -> dict[str, Any]:
    """A model directory's config.json. Raises ModelError where it is none of a language model."""
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(f"models.{name}.weights: {block.weights} is not a model directory: it has no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"models.{name}.weights: {path} is not JSON: {error}") from None
    if isinstance(config, dict) and is_original(config):
        config = translated(config, f"models.{name}.weights: {path}")
        _require_tokenizer(name, block, directory)
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ModelError(f"models.{name}.weights: {path} names no `model_type`; this is not a language model's config")
    for key in (*LENGTHS, "trained_length"):
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ModelError(f"models.{name}.weights: `{key}` in {path} is {json.dumps(value)}, not a whole number")
    return config


def _require_tokenizer(name: str, block: ModelBlock, directory: Path) -> None:
    """The original `state-spaces/*` repositories ship weights alone; a tokenizer that was put beside them serves."""
    if not block.tokenizer and not any(directory.glob("tokenizer*")) and not (directory / "vocab.json").is_file():
        raise ModelError(
            f"models.{name}.weights: {block.weights} ships no tokenizer; say `tokenizer: EleutherAI/gpt-neox-20b` "
            "(what the state-spaces models were trained with), or a directory that has its files"
        )


def _tokenizer_source(block: ModelBlock, root: Path) -> str | None:
    """Where a tokenizer from elsewhere is, found as weights are: shipped, a directory under the root, or a hub id."""
    if not block.tokenizer:
        return None
    if block.tokenizer.startswith("zoo/"):
        return str(zoo_folder() / block.tokenizer.removeprefix("zoo/"))
    local = path_from(root, block.tokenizer)
    return str(local) if is_folder(local) else block.tokenizer


def _resolve(block: ModelBlock, root: Path, *, weights: bool = True) -> Path:
    """The directory of a block's model; from the hub, with its weights or without them."""
    return _directory(block.weights, root) or _from_hub(block, weights)


def _directory(weights: str, root: Path) -> Path | None:
    if weights.startswith("zoo/"):
        known = sorted(f"zoo/{p.parent.name}" for p in zoo_folder().glob("*/config.json"))
        if weights not in known:
            hint = suggest(weights, known)
            raise ModelError(f"there is no shipped model `{weights}`.{hint} Known: {', '.join(known)}")
        return zoo_folder() / weights.removeprefix("zoo/")
    local = path_from(root, weights)
    if is_folder(local):
        return local
    if weights.startswith((".", "/", "~")) or weights.count("/") != 1 or is_file(local):
        raise ModelError(f"`weights: {weights}`: there is no directory {local}")
    return None


def _from_hub(block: ModelBlock, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = ["*.json", "tokenizer*", "*.model", "merges.txt", "vocab*", "*.jinja"]
    wanted += ["*.safetensors", "*.bin"] if weights else []
    try:
        return Path(snapshot_download(block.weights, revision=block.revision, allow_patterns=wanted))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise ModelError(
            f"`weights: {block.weights}` is no directory here, and the hub cannot be reached "
            f"({type(error).__name__}). Go online once, or point `weights` at a local copy"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"`weights: {block.weights}` is no directory here, and the hub refused it: {first}") from None


def _backend(name: str, block: ModelBlock, config: Mapping[str, Any]) -> str:
    model_type = str(config.get("model_type"))
    backend = block.backend
    if backend == "auto":
        backend = "native" if model_type in NATIVE_TYPES else "transformers"
    if backend == "native" and model_type not in NATIVE_TYPES:
        raise BackendError(
            f"models.{name}: backend `native` runs {', '.join(NATIVE_TYPES)}, and {block.weights} is a "
            f"`{model_type}`; backends that could: transformers"
        )
    if config.get(ORIGINAL) and backend in ("transformers", "vllm"):
        raise BackendError(
            f"models.{name}: {block.weights} is in mamba_ssm's own format, which {backend} does not read; "
            "backends that could: native (or name a converted copy, `-hf` on the hub, where there is one)"
        )
    reason = why_not(block, backend, config)
    if reason is None and backend == "vllm":
        reason = why_not_vllm(block, config)
    if reason is not None:
        raise BackendError(f"models.{name}: {reason}")
    if backend == "native" and block.device_map:
        raise BackendError(f"models.{name}: `device_map` needs `backend: transformers`; native runs on one device")
    return backend
