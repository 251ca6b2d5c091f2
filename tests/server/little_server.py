"""A real HTTP server on loopback in front of a real model of the zoo, in the dialects of several servers, and with
faults on purpose: what it answers wrongly is decided by the test, everything else is computed.

    dialect     token ids   echo   logprob_token_ids   logprobs with logit_bias    form of log-probabilities
    vllm        yes         yes    yes                 before the bias             token_id:42
    sglang      yes         yes    ignored             after the bias              texts, prompt_token_ids beside
    llamacpp    yes         no     ignored             before the bias             content: [{id, …}]
    biased      yes         no     ignored             after the bias              token_id:42
    logits      yes         yes    yes                 none: they are logits       token_id:42
    shifted     yes         yes, one position late     no                          token_id:42
    tgi         no (422)    no     –                   –                           texts
    openai      yes         no     –                   –                           none; other names (400)
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from evalspec.models.card import zoo_folder
from evalspec.models.tokens import Tokenizer

NAME = "zoo-transformer"
Fault = Callable[["_Handler"], None]
"""Answers a request wrongly, or not at all."""


COMPUTING = threading.Lock()


@cache
def _loaded() -> tuple[Any, Tokenizer]:
    folder = zoo_folder() / "transformer"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), Tokenizer(str(folder))


class LittleServer:
    """The zoo's Transformer at `url`. `faults` are used up one an answer (trials, of one token, are spared);
    `always` holds for all."""

    def __init__(self, dialect: str = "vllm", *, key: str | None = None) -> None:
        self.dialect, self.key = dialect, key
        self.model, self.tokenizer = _loaded()
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.listed = True  # whether there is a list of models
        self.most: int | None = None  # tokens of a prompt that are read; what is in front of them is dropped
        self.when: Callable[[dict[str, Any]], Fault | None] = lambda body: None
        self.seen: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen; on the same port as before, if it did."""
        handler = type("Handler", (_Handler,), {"serving": self})
        self.http = _Http(("127.0.0.1", self.port), handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Be gone: connections are refused, those that are open are cut at their next request."""
        self.always = cut
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def block(self, **settings: Any) -> dict[str, Any]:
        """A model block that asks this server, quick to try again."""
        server = {"backoff": 0.001, "timeout": 20.0, "retries": 3, "concurrency": 4, **settings.pop("server", {})}
        known = {"weights": NAME, "backend": "server", "url": self.url, "tokenizer": "zoo/transformer"}
        return {**known, "server": server, **settings}

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """(t, v) float32."""
        with COMPUTING:
            logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0].float()
        return logits

    def complete(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        """One answer, as the dialect has it."""
        ids = ids[-self.most :] if self.most else ids
        rows = self.logits(ids)
        new: list[int] = []
        told: list[
            tuple[int, torch.Tensor]
        ] = []  # each new token, the log-probabilities that are reported of its place
        bias = {int(token): value for token, value in (body.get("logit_bias") or {}).items()}
        text, reason = "", "length"
        while len(new) < body.get("max_tokens", 16):
            raw = (rows if not new else self.logits([*ids, *new]))[-1]
            biased = raw.clone()
            for token, value in bias.items():
                biased[token] += value
            token = int(biased.argmax())
            if body.get("temperature", 1.0) > 0:
                chance = torch.Generator().manual_seed(body["seed"] + len(new))
                token = int(torch.multinomial((biased / body["temperature"]).softmax(-1), 1, generator=chance))
            new.append(token)
            told.append((token, self._numbers(biased if self.dialect in ("sglang", "biased") else raw)))
            if token == self.model.config.eos_token_id:
                reason = "stop"
                break
            text = self.tokenizer.decode(new)
            found = [text.find(stop) for stop in body.get("stop", []) if stop in text]
            if found:
                text, reason = text if self.dialect == "tgi" else text[: min(found)], "stop"
                break
        before: list[tuple[int, torch.Tensor | None]] = []
        if body.get("echo"):
            numbers = self._numbers(rows)
            late = 1 if self.dialect == "shifted" else 0
            before = [(token, numbers[max(0, at - 1 - late)] if at else None) for at, token in enumerate(ids)]
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new), "total_tokens": len(ids) + len(new)}
        usage["prompt_tokens_details"] = {"cached_tokens": len(ids) // 16 * 16}
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason}
        if body.get("logprobs") is not None:
            choice["logprobs"] = self._reported(body, [*before, *told])
        if body.get("return_token_ids"):
            choice |= {"prompt_token_ids": ids, "token_ids": new}
        return {"object": "text_completion", "choices": [choice], "usage": usage}

    def _numbers(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.dialect == "logits" else logits.log_softmax(-1)

    def _reported(self, body: dict[str, Any], told: list[tuple[int, torch.Tensor | None]]) -> dict[str, Any]:
        count, names = body["logprobs"], body.get("logprob_token_ids") if self.dialect in ("vllm", "logits") else None

        def tops(token: int, numbers: torch.Tensor | None) -> dict[int, float]:
            if numbers is None:
                return {}
            listed = names or numbers.topk(count).indices.tolist()
            own = [] if self.dialect in ("sglang", "llamacpp") else [token]
            return {one: float(numbers[one]) for one in [*own, *listed]}

        pairs = [(token, None if numbers is None else float(numbers[token])) for token, numbers in told]
        listed = [tops(token, numbers) for token, numbers in told]
        if self.dialect == "llamacpp":
            content = []
            for (token, number), top in zip(pairs, listed, strict=True):
                others = [{"id": i, "token": self._name(i), "logprob": q} for i, q in top.items()]
                content.append({"id": token, "token": self._name(token), "logprob": number, "top_logprobs": others})
            return {"content": content}
        return {
            "tokens": [self._name(token) for token, _ in pairs],
            "token_logprobs": [p for _, p in pairs],
            "top_logprobs": [{self._name(i): q for i, q in top.items()} or None for top in listed],
        }

    def _name(self, token: int) -> str:
        texts = self.dialect in ("sglang", "llamacpp", "tgi")
        return str(self.tokenizer.inner.decode([token])) if texts else f"token_id:{token}"


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are gone are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    serving: LittleServer

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def say(self, code: int, body: Any, **headers: str) -> None:
        """An answer in JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        if self.serving.always is cut:
            return cut(self)
        if not self._let_in():
            return None
        if self.path == "/v1/models" and self.serving.listed:
            owner = self.serving.dialect if self.serving.dialect in ("sglang", "llamacpp", "tgi") else "vllm"
            owner = NAME if owner == "tgi" else owner
            return self.say(200, {"data": [{"id": NAME, "owned_by": owner, "max_model_len": 8192}]})
        return self.say(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        serving = self.serving
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with serving.lock:
            serving.seen.append(body)
            serving.paths.append(self.path)
            serving.under_way += 1
            serving.most_under_way = max(serving.most_under_way, serving.under_way)
        try:
            fault = serving.always or serving.when(body)
            if fault is None and serving.faults and body["max_tokens"] > 1:
                fault = serving.faults.popleft()
            if not self._let_in():
                return None
            if fault is not None:
                return fault(self)
            return self._answer(body)
        finally:
            with serving.lock:
                serving.under_way -= 1

    def _let_in(self) -> bool:
        key = self.serving.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self.say(401, {"error": {"message": f"Incorrect API key provided: {self.headers.get('Authorization')}"}})
        return False

    def _answer(self, body: dict[str, Any]) -> None:
        serving = self.serving
        if not self.path.startswith("/v1/"):
            return self.say(404, {"error": {"message": "no such page"}})
        if body.get("model") != NAME:
            return self.say(404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}})
        if self.path == "/v1/chat/completions":
            ids = serving.tokenizer.encode(["".join(f"{m['role']}: {m['content']}\n" for m in body["messages"])])[0]
            answer = serving.complete(body, ids)
            choice = answer["choices"][0]
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
            return self.say(200, answer)
        if body.get("echo") and serving.dialect in ("llamacpp", "biased"):
            return self.say(400, {"error": {"message": "Only no echo is supported"}})
        prompt = body["prompt"]
        if serving.dialect == "openai":
            advices = {"max_tokens": "Use 'max_completion_tokens' instead", "temperature": "Leave it out"}
            for name in filter(body.__contains__, advices):
                said = f"Unsupported parameter: '{name}' is not supported with this model. {advices[name]}."
                return self.say(400, {"error": {"message": said, "code": "unsupported_parameter"}})
            body = {**body, "max_tokens": body["max_completion_tokens"], "temperature": 0.0}
        if serving.dialect == "tgi":
            if not isinstance(prompt, str):
                return self.say(422, {"error": "prompt: data did not match any variant of untagged enum Prompt"})
            if not 0 < body.get("top_p", 0.5) < 1:
                return self.say(422, {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0"})
            prompt = serving.tokenizer.encode([prompt])[0]
        return self.say(200, serving.complete(body, prompt))


# What is asked ----------------------------------------------------------------------------------------------------

WORLD = {"generate": "world.labels", "count": 48, "seed": 3}
LABELS = {"template": "prompts/labels.jinja", "target": "{{ label }}", "choices": "{{ options }}", "shots": 5}
QUESTIONS = {"generate": "world.questions", "count": 12, "seed": 3}


def make_spec(models: dict[str, Any], *tasks: str) -> dict[str, Any]:
    known: dict[str, Any] = {
        "choose": {"data": WORLD, "prompt": LABELS, "metrics": ["accuracy"]},
        "ask": {
            "data": QUESTIONS,
            "prompt": {"template": "Q: {{ question }}\nA:", "target": "{{ answer }}"},
            "decode": {"max_tokens": 6, "stop": ["\n"]},
            "metrics": ["exact_match"],
        },
        "read": {
            "data": QUESTIONS,
            "prompt": {"template": "Q: {{ question }}\nA:", "target": "{{ answer }}, says {{ question }}"},
            "metrics": ["greedy", "target_perplexity"],
        },
    }
    return {"name": "served", "models": models, "tasks": {name: known[name] for name in tasks or known}}


# Faults ------------------------------------------------------------------------------------------------------------


def status(code: int, message: str = "for the test", **headers: str) -> Fault:
    """An error in OpenAI's form."""
    return lambda handler: handler.say(code, {"error": {"message": message, "code": code}}, **headers)


def answer(usage: Any = None, **choice: Any) -> Fault:
    """A completion that says this."""
    whole = {"index": 0, "text": " x", "finish_reason": "stop", **choice}
    return lambda handler: handler.say(200, {"choices": [whole], "usage": usage})


def cut(handler: _Handler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


def cut_in_the_middle(handler: _Handler) -> None:
    """Promise a body, send half of it, close."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    cut(handler)


def hang(seconds: float) -> Fault:
    """Say nothing for a while, then nothing more."""

    def fault(handler: _Handler) -> None:
        time.sleep(seconds)
        cut(handler)

    return fault


def no_json(handler: _Handler) -> None:
    """A page where JSON was asked for."""
    handler.say(200, b"<html>gateway</html>")


def no_choices(handler: _Handler) -> None:
    """JSON without an answer."""
    handler.say(200, {"choices": [], "usage": {"prompt_tokens": 1}})
