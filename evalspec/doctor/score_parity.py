"""The shipped models' scores by every way that this machine has, against plain forward passes of transformers.

A few questions behind one prefix, four choices each, in float32. The forest is walked as in a run; the reference feeds
every request by itself, on the CPU, with nothing of evalspec and no GPU's kernels in it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers

from evalspec.errors import EvalspecError, in_a_line
from evalspec.execute.backends.memory import release_memory
from evalspec.execute.backends.transformers.on_cpu import kernels_by_device
from evalspec.execute.opening import close_backend, open_backend
from evalspec.execute.walk import walk
from evalspec.models.card import Model, find_model, zoo_folder
from evalspec.plan.forest import Request, build_forest
from evalspec.spec.model import ModelBlock

BOUND = 1e-3
"""Largest difference of a natural log-probability that is allowed in float32."""
MODELS = ("transformer", "mamba", "mamba2")


@dataclass(frozen=True)
class Parity:
    """What came of one model by one way. `failure` says why there are no numbers."""

    model: str
    way: str
    difference: float | None = None
    """Largest difference of a request's log-probability, nats."""
    same: int = 0
    """Questions whose best choice is the reference's."""
    questions: int = 0
    failure: str | None = None

    @property
    def right(self) -> bool:
        """Whether it is within the bound, with the same choices."""
        return self.difference is not None and self.difference <= BOUND and self.same == self.questions


def ways_on(device: torch.device, model: str) -> list[dict[str, str]]:
    """Keys of a model block: each backend and kind of kernels that could serve the model on this device."""
    if model == "transformer":
        return [{"backend": "transformers"}]
    kernels = ["torch", "auto"] if device.type == "cpu" else ["torch", "triton", "mamba_ssm"]
    return [*({"backend": "native", "kernels": name} for name in kernels), {"backend": "transformers"}]


def score_parity(device: torch.device, questions: int = 6, models: Sequence[str] = MODELS) -> Iterator[Parity]:
    """Every model by every way. What is not installed (mamba-ssm) is left out."""
    logging = transformers.utils.logging
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # that it has no kernels of its own for these models is known, and no fault
    logging.disable_progress_bar()
    try:
        yield from _score_parity(device, questions, models)
    finally:
        logging.set_verbosity(loud)


def _score_parity(device: torch.device, questions: int, models: Sequence[str]) -> Iterator[Parity]:
    for name in models:
        asked = requests_of(questions)
        try:
            expected = plain_scores(name, asked)
        except Exception as error:  # a transformers that is half installed
            yield Parity(name, "transformers, plainly", failure=in_a_line(error))
            continue
        for keys in ways_on(device, name):
            way = ", ".join(keys.values())
            try:
                model = shipped(name, device, **keys)
                found = scores(model, asked)
            except EvalspecError as error:
                if keys.get("kernels") != "mamba_ssm" or not isinstance(error.__cause__, ModuleNotFoundError):
                    yield Parity(name, way, failure=in_a_line(error))
                continue
            except Exception as error:  # a fault on this device is what is looked for: the row says it
                yield Parity(name, way, failure=in_a_line(error))
                continue
            finally:
                gc.collect()
                release_memory()
            choices = [np.reshape(of, (questions, 4)).argmax(1) for of in (found, expected)]
            yield Parity(
                name, way, float(np.abs(found - expected).max()), int((choices[0] == choices[1]).sum()), questions
            )


def shipped(name: str, device: torch.device, **keys: object) -> Model:
    """A model of the zoo in float32 on this device; `keys` are those of a model block."""
    where = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
    block = ModelBlock.model_validate({"weights": f"zoo/{name}", "dtype": "float32", "device": where, **keys})
    return find_model(name, block, zoo_folder())


def requests_of(questions: int) -> list[Request]:
    """Four choices a question behind one prefix, all drawn at random."""
    random = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return random.integers(5, 1900, count).astype(np.int32)

    prefix, found = draw(40), []
    for _ in range(questions):
        context = np.concatenate([prefix, draw(int(random.integers(6, 12)))])
        for _ in range(4):
            choice = draw(int(random.integers(1, 5)))
            found.append(Request(np.concatenate([context, choice[:-1]]), tuple(choice.tolist())))
    return found


def scores(model: Model, asked: Sequence[Request]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Each request's log-probability, by a walk over their forest."""
    backend = open_backend(model)
    found = np.full(len(asked), np.nan)
    try:
        for result in walk(build_forest(asked), backend):
            found[result.request] = sum(result.logprobs)
    finally:
        close_backend(backend)
    return found


@torch.no_grad()
def plain_scores(name: str, asked: Sequence[Request]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The same by one forward pass of transformers a request, in float32 on the CPU."""
    model = transformers.AutoModelForCausalLM.from_pretrained(zoo_folder() / name, dtype=torch.float32).eval()
    kernels_by_device(model)
    found = []
    for request in asked:
        tokens = torch.from_numpy(request.tokens.astype(np.int64))[None]
        rows = model(tokens, use_cache=False).logits[0, -len(request.targets) :].log_softmax(-1)
        found.append(float(rows.gather(1, torch.tensor(request.targets)[:, None]).double().sum()))
    return np.asarray(found)
