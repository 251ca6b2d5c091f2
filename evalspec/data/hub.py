"""Rows from the Hugging Face hub, through `datasets` (extra `hub`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evalspec.data.values import plain
from evalspec.errors import DataError


def read_hub(name: str, subset: str | None, split: str | None, revision: str | None) -> list[dict[str, Any]]:
    """Rows of one split of a data set, downloaded once and kept in the cache of `datasets`.

    Without `split` the data set must have only one. Raises DataError when `datasets` is not installed, when the hub
    cannot be reached and the data set is not in the cache, and when it does not exist.
    """
    source = f"hub {name}"
    with explained(source):
        import datasets

        loaded = datasets.load_dataset(name, subset, split=split, revision=revision)
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) != 1:
            raise DataError(f"{source} has the splits {', '.join(loaded)}; choose one with `split:`")
        loaded = next(iter(loaded.values()))
    return [{column: plain(value, column, source) for column, value in row.items()} for row in loaded]


IN_A_SPEC = "Connect to the network once (and unset HF_HUB_OFFLINE), or download the data set and name it by `file:`"


@contextmanager
def explained(source: str, unreachable: str = IN_A_SPEC) -> Iterator[None]:
    """What `datasets` raises while it loads `source` is a DataError that says what to do; `unreachable` is what to do
    where the hub is out of reach."""
    try:
        import datasets
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    except ImportError as error:
        raise DataError(
            f"{source} needs the package `datasets`, which is not installed: pip install 'evalspec[hub]'"
        ) from error
    try:
        yield
    except (ConnectionError, OfflineModeIsEnabled) as error:
        raise DataError(
            f"{source} is not in the cache and the hub cannot be reached: {_first_line(error)}. {unreachable}"
        ) from error
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, HfHubHTTPError) as error:
        raise DataError(f"{source} cannot be found on the hub: {_first_line(error)}") from error
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        # `datasets` says in a ValueError which configurations and splits there are, in a RuntimeError that a data set
        # comes as a script, which is code and which it no longer runs.
        raise DataError(f"{source} cannot be loaded: {error}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
