"""HTTP to a server that may be busy, slow, broken or gone: what to send again, when, and what to say in the end.

    answer                                   what is done
    200 with what was asked for              taken
    408, 425, 429, 5xx, cut or late          sent again, later each time: about backoff · 2ⁿ seconds, half of it by
    answers, no JSON, JSON of another        chance, so that many clients do not come back together; and not before the
    shape, no connection                     server says (`Retry-After`, RFC 9110 section 10.2.3: seconds or a date)
    400, 409, 413, 422, 501 …                this request cannot be had: `RequestFailed`
    401, 402, 403, 404, 3xx                  none can be had: `Refused`

The key goes into one header and nowhere else; what a server says is shown without it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urljoin

import httpx2

from evalspec.errors import BackendError
from evalspec.models.served import on_this_machine
from evalspec.spec.model import ServerBlock

T = TypeVar("T")
HOPELESS = frozenset({401, 402, 403, 404})
LONGEST_WAIT = 60.0
LONGEST_ASKED = 300.0
"""Most seconds that a server may ask to be left alone; beyond that the request fails with the server's words."""
CONNECT_SECONDS = 10.0


class RequestFailed(Exception):
    """One request has no answer, in a sentence. `passing`: it was sent again and again; others may fare no better."""

    def __init__(self, said: str, *, passing: bool) -> None:
        super().__init__(said)
        self.passing = passing


class CutShort(RequestFailed):
    """The server read less of a prompt than it was sent."""


class Refused(BackendError):
    """No request can be had, with the status that the server answered and what to correct."""

    def __init__(self, said: str, code: int) -> None:
        super().__init__(said)
        self.code = code


class Malformed(Exception):
    """An answer is not what its request asked for, in words that follow `the server's answer`."""


class _Passing(Exception):
    """Something that may be over soon. `after` is when the server says to come back, in seconds."""

    def __init__(self, said: str, after: float | None = None) -> None:
        super().__init__(said)
        self.after = after


class Client:
    """A connection pool to one server, for one model; to be used within one event loop."""

    def __init__(self, name: str, url: str, settings: ServerBlock) -> None:
        self.name, self.url, self.settings = name, url.rstrip("/"), settings
        try:
            httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise BackendError(f"models.{name}.url: {self.url} is no address: {error}") from None
        self.key = _key(name, settings)
        self.sent = 0
        """Requests sent so far, those sent again included."""
        most = settings.concurrency
        try:
            self._client = httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
                timeout=httpx2.Timeout(settings.timeout, connect=min(CONNECT_SECONDS, settings.timeout), pool=None),
                limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
                trust_env=not on_this_machine(self.url),
            )
        except (ImportError, ValueError, OSError) as error:
            raise BackendError(
                f"models.{name}: {self.url} cannot be reached by what the environment says of proxies and certificates "
                f"(ALL_PROXY, HTTPS_PROXY, SSL_CERT_FILE …): {_words(error).split('. ')[0]}. `NO_PROXY` names hosts "
                "that need none"
            ) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def ask(
        self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T], *, retries: int | None = None
    ) -> T:
        """Post a body to a path below the server's address (GET where there is none); what `read` makes of the answer.

        `read` raises Malformed for an answer that lacks what it looks for, and the request is sent again.
        Raises RequestFailed, or Refused where no other request can succeed either.
        """
        most = self.settings.retries if retries is None else retries
        for number in range(most + 1):
            try:
                return read(await self._once(path, body))
            except _Passing as problem:
                said, after = str(problem), problem.after
            except Malformed as problem:
                said, after = _shortened(self._safe(f"the server's answer {problem}")), None
            except (TypeError, ValueError, LookupError, AttributeError):  # whatever stands where something else should
                said, after = "the server's answer has an unknown form", None
            if after is not None and after > LONGEST_ASKED:
                raise RequestFailed(f"{said}, and asks to be left alone for {after:,.0f} s", passing=True)
            if number < most:
                wait = min(LONGEST_WAIT, self.settings.backoff * 2**number)
                # Not at once where the server says so: its clock may be late, or its seconds rounded down to none.
                await asyncio.sleep(max(wait * random.uniform(0.5, 1.0), after or 0.0))
        raise RequestFailed(said + (f" (asked {most + 1} times)" if most else ""), passing=True)

    @property
    def doubt(self) -> str:
        """What to say where what answers may be no OpenAI-compatible API: llama.cpp has one of its own beside it."""
        return "" if "/v1" in self.url else ". Is `url` right? Most end in /v1"

    async def answers(self) -> bool:
        """Whether the server answers anything at all, now."""
        found = await self._look(f"{self.url}/models")
        return found is not None and found.status_code not in (502, 503, 504)

    async def page(self, path: str) -> str | None:
        """The text at a path of the server's root, beside its API; None where it has none."""
        found = await self._look(urljoin(self.url, path))
        return found.text if found is not None and found.status_code == 200 else None

    async def _look(self, where: str) -> httpx2.Response | None:
        """One short look at an address, None if nothing comes of it."""
        try:
            async with asyncio.timeout(min(CONNECT_SECONDS, self.settings.timeout)):
                return await self._client.get(where)
        except (TimeoutError, httpx2.HTTPError):
            return None

    async def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        """One try: the JSON of a good answer."""
        where = f"{self.url}/{path}"
        self.sent += 1
        try:
            async with asyncio.timeout(self.settings.timeout):
                response = await (self._client.get(where) if body is None else self._client.post(where, json=body))
        except (TimeoutError, httpx2.TimeoutException):
            raise _Passing(f"{self.url} gave no answer within {self.settings.timeout:g} s") from None
        except (httpx2.ConnectError, httpx2.ProxyError) as error:
            raise _Passing(f"{self.url} cannot be reached: {_words(error)}") from None
        except httpx2.UnsupportedProtocol as error:
            raise BackendError(f"models.{self.name}.url: {_words(error)}") from None
        except httpx2.HTTPError as error:
            raise _Passing(f"{self.url} cut the connection: {_words(error)}") from None
        if response.status_code == 200:
            try:
                return _json(response)
            except ValueError:
                raise Malformed("is not JSON") from None
        raise self._refusal(path, response)

    def _refusal(self, path: str, response: httpx2.Response) -> Exception:
        """What an answer other than 200 means."""
        code = response.status_code
        said = _shortened(self._safe(_message(response)))
        told = f"{self.url}/{path} answered {code}" + (f": {said}" if said else "")
        if code in (408, 425, 429) or (code >= 500 and code != 501):  # gateways have their own beside 500 to 504
            return _Passing(told, retry_after(response.headers.get("retry-after"), time.time()))
        if code not in HOPELESS and not 300 <= code < 400:
            return RequestFailed(told, passing=False)
        advice = f"the server refuses the key of ${self.settings.key}"
        if self.settings.key is None:
            advice = "the server wants a key: name the environment variable that holds it by `server.key`"
        if code == 402:
            advice = "the server wants to be paid first"
        if code == 403:
            advice += ", or does not let it use this model"
        if code == 404:
            advice = "is `url` right (most end in /v1), and is `weights` what the server calls the model?"
            if path == "completions":
                advice += " One that has conversations alone wants `chat: true`"
        if code < 400:
            advice = (
                f"the server has moved to {self._safe(response.headers.get('location', 'elsewhere'))}; correct `url`"
            )
        return Refused(f"models.{self.name}: {told.rstrip('.')}. {advice[0].upper()}{advice[1:]}", code)

    def _safe(self, text: str) -> str:
        """A server's words without the key, should it repeat it."""
        return text.replace(self.key, "***") if self.key else text


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a `Retry-After` header asks to wait: a number of seconds, or an HTTP date seen from `now` (seconds
    since the epoch). None where it says neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def _key(name: str, settings: ServerBlock) -> str | None:
    """The key from the environment. Raises BackendError where its variable is not set or cannot stand in a header."""
    if settings.key is None:
        return None
    key = os.environ.get(settings.key, "").strip()
    if not key:
        raise BackendError(f"models.{name}.server.key: the environment variable {settings.key} is not set")
    if not key.isascii() or not key.isprintable():
        raise BackendError(f"models.{name}.server.key: {settings.key} holds characters that no key has")
    return key


def _message(response: httpx2.Response) -> str:
    """What the server says of an error: in its JSON, else the first line of the text."""
    try:
        return message_of(_json(response))
    except ValueError:
        return " ".join(response.text.strip().split("\n", 1)[0].split())


def message_of(answer: Any) -> str:
    """What JSON says of an error: OpenAI's `error.message` and its kin, else all of it."""
    for name in ("error", "message", "detail"):
        if isinstance(answer, dict) and answer.get(name):
            answer = answer[name]
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return " ".join(text.split())


def _json(response: httpx2.Response) -> Any:
    """An answer's JSON. Raises ValueError where it is none.

    A character outside the basic plane is two escapes in JSON. Half of it, which a server that cuts texts between the
    two leaves, is no text that could be stored, and becomes U+FFFD.
    """
    try:
        found = response.json()
        halves = re.search(r"\\u[dD][89a-fA-F]", response.text) is not None
        return _mended(found) if halves else found
    except RecursionError:  # it is nested without end
        raise ValueError from None


def _mended(found: Any) -> Any:
    if isinstance(found, str):
        return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(found, list):
        return [_mended(one) for one in found]
    return {_mended(key): _mended(one) for key, one in found.items()} if isinstance(found, dict) else found


def _shortened(text: str) -> str:
    return text if len(text) <= 400 else text[:400] + " …"


def _words(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
