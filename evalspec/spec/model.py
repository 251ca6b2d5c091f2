"""The model block: where weights are, what runs them, in which precision."""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, model_validator

from evalspec.spec.base import NAME, Block, Misfit, misfits


class VllmBlock(Block):
    """Settings of a vLLM engine, for a model with `backend: vllm`."""

    tensor_parallel: int = Field(default=1, ge=1)
    """Over how many GPUs each layer is spread."""
    memory_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of a GPU's memory that the engine takes for weights and states; by default vLLM's own (0.9)."""
    max_sequences: int | None = Field(default=None, ge=1)
    """Most sequences at a time; by default vLLM's own."""
    eager: bool | None = None
    """Run layer by layer, without compiling or capturing graphs: starts sooner, decodes slower. By default on a CPU,
    where compiling needs a C++ compiler."""
    prefix_caching: bool = True
    """Keep the states of prefixes for requests that begin alike. vLLM's CPU build cannot keep those of recurrent
    models, and feeds each request from its beginning."""


ASKED: Final[dict[str, str]] = {
    "model": "say `weights`",
    "prompt": "say `prompt.template`",
    "messages": "say `prompt.template`",
    "max_tokens": "say `decode.max_tokens`",
    "stop": "say `decode.stop`",
    "n": "say `decode.repeats`",
    **dict.fromkeys(("stream", "stream_options", "best_of", "echo"), "it reads one whole answer"),
    **dict.fromkeys(("logprobs", "top_logprobs"), "it asks for them where it scores"),
}
"""Parameters of a request that are no one else's to set, and what sets them."""


class ServerBlock(Block):
    """How an OpenAI-compatible server is asked, for a model with `backend: server`."""

    key: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key, where the server wants one: `OPENAI_API_KEY`, say. The key itself is
    never stored or shown, and none is sent where no variable is named."""
    concurrency: int = Field(default=16, ge=1)
    """Most requests under way at a time."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds that an answer may take."""
    retries: int = Field(default=6, ge=0)
    """How often a request is sent again after an answer that may pass (429, 500, a cut connection), each time later."""
    backoff: float = Field(default=0.5, gt=0)
    """Seconds before the first of them; each later wait is about twice as long, at most a minute, and none ends before
    the time that the server says (`Retry-After`)."""
    prompts: Literal["tokens", "text"] = "tokens"
    """What a prompt is sent as. `text` is for servers that take no token ids (TGI, for one): they can generate, not
    score, and a prompt whose text has other tokens is that sample's error."""
    scoring: Literal["auto", "named", "forced", "echo"] = "auto"
    """How a continuation is scored. `named`: the log-probabilities of some named tokens (`logprob_token_ids`, vLLM).
    `forced`: each token forced by `logit_bias` (llama.cpp, older vLLM). Both keep the server's prefix cache. `echo`:
    the log-probabilities of the whole prompt. `auto`: the first that a short trial shows to be right, and `echo`
    where a continuation is long."""
    names: dict[Literal["max_tokens", "temperature", "top_p", "top_k", "seed", "stop"], str] | None = None
    """What the server calls a parameter, where it is not the name that is usual: `{max_tokens: max_completion_tokens}`
    for OpenAI's reasoning models, `{seed: random_seed}` for Mistral's service."""
    extra: dict[str, Any] | None = None
    """What a request for an answer holds beside: `{chat_template_kwargs: {enable_thinking: false}}`, say, or
    `{reasoning_effort: low}`. A parameter that is sent anyway takes this value, and is left out where it is null:
    `{temperature: null}`."""

    @model_validator(mode="after")
    def _extra_leaves_the_question_alone(self) -> ServerBlock:
        taken = [key for key in self.extra or {} if key in ASKED]
        if taken:
            raise misfits([(("extra", key), f"is evalspec's own to send: {ASKED[key]}") for key in taken])
        return self


HOW_ONLY: Final[dict[str, set[str] | bool]] = {
    "server": {"key", "concurrency", "timeout", "retries", "backoff"},
    "seed_of": True,
}
"""Keys that change how answers are fetched or compared and never what they are: they are no part of what a cell is."""


class ModelBlock(Block):
    """A model: where its weights are, what runs it, in which precision."""

    extends: str | None = None
    """Name of another model whose keys this one starts from."""
    weights: str
    """`zoo/NAME` (shipped with evalspec), a directory, or a Hugging Face hub id; the model's name at a server."""
    seed_of: str | None = Field(default=None, pattern=NAME)
    """The architecture that this model is one training seed of, a name of your choice: `mamba`. Models that say the
    same are compared as that architecture by hypotheses that name an `architecture`, and by `evalspec compare`."""
    backend: Literal["auto", "native", "transformers", "vllm", "server"] = "auto"
    """What runs it. `auto`: native for Mamba, Mamba-2 and the original `state-spaces/*` checkpoints (which ship no
    tokenizer: name one), transformers for everything else. `vllm`: vLLM's engine, started for the run
    (extra `vllm`). `server`: an OpenAI-compatible server at `url`."""
    url: str | None = Field(default=None, pattern=r"^https?://[^/]+")
    """Address of the server's API, `http://localhost:8000/v1` for example. It is stored with the results, so it may
    hold no password and no query."""
    vllm: VllmBlock | None = None
    """Settings of the vLLM engine."""
    server: ServerBlock | None = None
    """How the server is asked."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Precision of weights and activations. `auto`: float32 on a CPU, bfloat16 on a GPU. `float64`, to tell
    what rounding does, is the transformers backend's alone."""
    batch_invariant: bool = False
    """Results do not depend on what else is in a batch: not on its size, nor on how a run is cut over workers. Products
    with weights get one shape, attention is computed in float64, Mamba-2's recurrence goes token after token, which all
    takes longer. For Transformers on the transformers backend, Mamba and Mamba-2 on the native one; whether it holds
    for the model and the machine is tried out when the model is opened."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1` … (ROCm devices are called `cuda` too)."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """Spread the layers over several GPUs (transformers backend only)."""
    kernels: Literal["auto", "torch", "triton", "mamba_ssm"] = "auto"
    """What convolutions and recurrences run on in the native backend. `triton`: our own kernels for GPUs. `mamba_ssm`:
    those of the packages mamba-ssm and causal-conv1d, for GPUs too. `torch`: plain forms, for comparison. `auto`:
    `triton` on a GPU, compiled loops on a CPU."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the native backend keeps state-space states between batches of tokens and while it decodes
    (what is computed is float32). `bfloat16` halves their memory and rounds them, so that results depend a little on
    where batches begin."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    tokenizer: str | None = None
    """A tokenizer from elsewhere (`zoo/NAME`, directory or hub id); by default the one beside the weights. A server's
    model needs it to be planned, unless `weights` is a directory or hub id."""
    max_length: int | None = Field(default=None, gt=0)
    """Longest sequence the model is given, in tokens; by default what its config allows."""
    trained_length: int | None = Field(default=None, gt=0)
    """Length the model was trained at, in tokens; by default what its config says."""
    chat: bool = False
    """Render each prompt through the tokenizer's chat template."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Most tokens in one batch; by default chosen from the device, and halved when memory runs out."""

    @model_validator(mode="after")
    def _settings_belong_to_the_backend(self) -> ModelBlock:
        found: list[Misfit] = []
        if self.backend == "server" and self.url is None:
            found.append(((), "needs `url`: where the server is, `http://localhost:8000/v1` for example"))
        for key, backend in (("url", "server"), ("server", "server"), ("vllm", "vllm")):
            if key in self.model_fields_set and self.backend != backend and getattr(self, key) is not None:
                found.append(((key,), f"belongs to `backend: {backend}`; this model's is `{self.backend}`"))
        if self.backend == "server":
            for key in ("device", "device_map", "dtype", "batch_tokens"):
                if getattr(self, key) not in (None, "auto"):
                    found.append(((key,), "is the server's own to choose; leave it out"))
            address = _address(self.url or "")
            if address is None:
                found.append((("url",), "is no address: `http://HOST:PORT/v1`, the port at most 65535"))
            elif "@" in address.netloc:
                found.append((("url",), "holds a user or a password, and would be stored; name the environment "
                              "variable of a key by `server.key`"))  # fmt: skip
            elif address.query or address.fragment:
                found.append((("url",), "holds a query (`?…`), and would be stored; end it before that"))
        if found:
            raise misfits(found)
        return self


def _address(url: str) -> SplitResult | None:
    """The parts of an address, None where its host or port is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # read on demand: a word or a number too large shows here
    except ValueError:
        return None
    return parts if parts.hostname and parts.netloc.isprintable() and " " not in parts.netloc else None
