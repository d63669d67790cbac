"""Questions to OpenAI-compatible servers: vLLM, SGLang, `transformers serve`.

Each question goes to the endpoint with the fewest requests under way. What can help is
tried again, elsewhere where there is another place: no connection, no answer in time,
status 408, 429 (after `Retry-After`) and 5xx; and once only a 200 that is no answer, as
that may be a proxy's. Other statuses mean that the request is wrong, and text that
cannot be read means that the model is: asking again would give the same, greedily. An
endpoint that fails again and again rests, for longer each time, and comes back with one
request. Nothing lasts longer than the caller's deadline.

The client is httpx2, which huggingface_hub brings along. The `openai` package on top of
it would add retries of its own, which know one endpoint and no deadline.
"""

import asyncio
import base64
import contextlib
import email.utils
import io
import ipaddress
import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2
from PIL import Image

from ar3d_jax.config_rewards import JudgeConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar.answers import Answer
from ar3d_jax.rewards.sidecar.chat import Question, Statistics, generation_fields
from ar3d_jax.rewards.sidecar.scorers import About

# Our choices, in seconds.
CONNECT_S = 10.0
KEEP_S = 4.0  # servers hang up on an idle connection after 5
PAUSE_S, LONGEST_PAUSE_S = 0.25, 4.0  # between tries, doubled each time
REST_S, LONGEST_REST_S = 1.0, 60.0  # of an endpoint, likewise
FAILURES = 3  # in a row, then it rests
LOOK_S = 1.0  # a waiting request looks at all endpoints so often, whatever happens


class _Failure(Exception):
    """A try without an answer.

    Attributes:
        kind: As in `Statistics`.
        again: How many more times at most the question may be asked because of this.
        after_s: How long the endpoint asks to be left alone.
        sick: Whether the endpoint is to blame.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        again: int | None = None,
        after_s: float = 0.0,
        sick: bool = False,
    ) -> None:
        super().__init__(detail)
        self.kind, self.again, self.after_s, self.sick = kind, again, after_s, sick


class _Endpoint:
    """One server, and how it fares."""

    def __init__(self, url: str, in_flight: int) -> None:
        self.url, self.most = url.rstrip("/"), in_flight
        self.in_flight = self.sent = self.failures = 0
        self.rests_until = 0.0
        limits = httpx2.Limits(
            max_connections=in_flight,
            max_keepalive_connections=in_flight,
            keepalive_expiry=KEEP_S,
        )
        self.client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            limits=limits,
            trust_env=not _is_here(url),
        )

    def is_ready(self, now: float) -> bool:
        """Whether it may have another request; after a rest, a single one."""
        most = self.most if self.failures < FAILURES else 1
        return self.in_flight < most and now >= self.rests_until

    def failed(self, failure: _Failure) -> None:
        """Takes note of what it did."""
        now = time.monotonic()
        if failure.sick and now >= self.rests_until:  # else: from before the rest
            self.failures += 1
            if self.failures >= FAILURES:
                doubled = REST_S * 2 ** min(self.failures - FAILURES, 10)
                self.rests_until = now + min(doubled, LONGEST_REST_S)
        if failure.after_s:
            wanted = now + min(failure.after_s, LONGEST_REST_S)
            self.rests_until = max(self.rests_until, wanted)


class Endpoints:
    """A `Post`: the servers of one model, which share the load.

    Attributes:
        about: What they serve.
        statistics: What happened so far.
    """

    def __init__(self, config: JudgeConfig, field: str) -> None:
        """Looks whether the endpoints have the model; `field` is the config's section.

        Raises:
            UserError: none answers, or one serves another model.
        """
        self._config = config
        model, _, revision = config.model.partition("@")
        self._model, self.statistics = model, Statistics()
        self._endpoints = [_Endpoint(url, config.in_flight) for url in config.endpoints]
        silent = []
        for endpoint in self._endpoints:
            problem = _check(endpoint.url, model, config.server, field)
            if problem:
                silent.append(problem)
                endpoint.failures = FAILURES  # it may come back: one request, then
        if len(silent) == len(config.endpoints):
            raise UserError(_refusal("; ".join(silent), model, field))
        for problem in silent:
            print(f"{field}.endpoints: {problem}; going on without", file=sys.stderr)
        self._changed = asyncio.Condition()
        # No such server says which revision it has.
        served = f"as configured: {revision}" if revision else "as served"
        self.about = About(model, served, " ".join(config.endpoints))

    async def answer(self, question: Question, deadline: float) -> Answer:
        """See `Post`."""
        failure = None
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                left, last = self._config.retries, None
                for pause in _pauses():
                    try:
                        last = await self._free(last, deadline)
                        return await self._ask(last, question)
                    except _Failure as error:
                        failure = error
                    if failure.again is not None:
                        left = min(left, failure.again)
                    if not left:
                        break
                    left -= 1
                    await asyncio.sleep(pause)
        except TimeoutError:
            before = f"; before that, {failure.kind}: {failure}" if failure else ""
            failure = _Failure("deadline", f"no answer by the deadline{before}")
        assert failure is not None
        self.statistics.missing[failure.kind] += 1
        return Answer(kind=failure.kind, detail=str(failure))

    async def close(self) -> None:
        """Hangs up."""
        for endpoint in self._endpoints:
            await endpoint.client.aclose()

    async def _free(self, last: _Endpoint | None, deadline: float) -> _Endpoint:
        """Waits for an endpoint that may have a request; rather not the `last` one.

        Raises:
            TimeoutError: there will be none before the deadline.
        """
        async with self._changed:
            while True:
                now = time.monotonic()
                ready = [one for one in self._endpoints if one.is_ready(now)]
                if ready:
                    chosen = min(
                        ready, key=lambda one: (one is last, one.in_flight, one.sent)
                    )
                    chosen.in_flight += 1
                    chosen.sent += 1
                    return chosen
                wakes = min(one.rests_until for one in self._endpoints)
                if wakes >= deadline:
                    raise TimeoutError
                wait = min(wakes - now, LOOK_S) if wakes > now else LOOK_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()

    async def _ask(self, endpoint: _Endpoint, question: Question) -> Answer:
        """One try; the endpoint's place was taken by `_free`, and is given back."""
        try:
            # Only now, as what waits for a place would fill the memory with pictures.
            body = await asyncio.to_thread(self._write, question)
            self.statistics.sent += 1
            answer = await self._send(endpoint, body)
        except _Failure as failure:
            self.statistics.failures[failure.kind] += 1
            endpoint.failed(failure)
            raise
        else:
            endpoint.failures = 0
            self.statistics.answered += 1
            return answer
        finally:
            endpoint.in_flight -= 1
            async with self._changed:
                self._changed.notify(max(endpoint.most - endpoint.in_flight, 0))

    async def _send(self, endpoint: _Endpoint, body: bytes) -> Answer:
        limit = self._config.request_s
        try:
            async with asyncio.timeout(limit):
                reply = await endpoint.client.post(
                    f"{endpoint.url}/chat/completions",
                    content=body,
                    headers={"content-type": "application/json"},
                )
        except TimeoutError as error:
            detail = f"{endpoint.url}: no answer in {limit:g} s"
            raise _Failure("timeout", detail, sick=True) from error
        except httpx2.HTTPError as error:
            detail = f"{endpoint.url}: {type(error).__name__}: {error}"[:300]
            raise _Failure("transport", detail, sick=True) from error
        return _read(reply, endpoint.url)

    def _write(self, question: Question) -> bytes:
        """The request. Every sampling field is in it: servers have other defaults."""
        config = self._config
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _png(view)}}
            for view in question.pictures
        ]
        content.append({"type": "text", "text": question.text})
        fields: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": config.seed,
            "max_tokens": config.max_tokens,
            "stream": False,
        }
        if config.server == "transformers":  # it refuses all fields it doesn't know
            fields["generation_config"] = json.dumps(generation_fields(config))
            return json.dumps(fields).encode()
        fields["n"] = 1
        fields["top_k"] = config.top_k
        fields["repetition_penalty"] = config.repetition_penalty
        if question.schema is not None:
            schema = {"name": "answer", "schema": question.schema, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return json.dumps(fields).encode()


def _pauses() -> Iterator[float]:
    """Between tries, in seconds; random, so that requests do not come back together."""
    pause = PAUSE_S
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _read(reply: httpx2.Response, url: str) -> Answer:
    """The answer in a reply; raises _Failure where it is none."""
    status = reply.status_code
    try:
        found: Any = reply.json()
    except (ValueError, RecursionError):
        found = None
    said = " ".join(_stated(found, reply.text).split())[:200]
    if status != 200:
        again = status in (408, 429) or status >= 500
        raise _Failure(
            f"status {status}",
            f"{url}: {said}",
            again=None if again else 0,
            after_s=_retry_after(reply) if again else 0.0,
            sick=status == 408 or status >= 500,
        )
    try:
        if found["choices"][1:] or found.get("error"):
            raise ValueError
        text = found["choices"][0]["message"]["content"]
        finish = found["choices"][0]["finish_reason"]
        if not text.strip() or finish not in ("stop", "length"):
            raise ValueError
    except (TypeError, LookupError, AttributeError, ValueError):
        detail = f"{url}: expected one choice with text, got {said!r}"
        raise _Failure("reply", detail, again=1) from None
    return Answer(text, cut=finish == "length")


def _stated(found: Any, text: str) -> str:
    """The error that a reply states; else its text."""
    stated = found.get("error") or found.get("detail") if isinstance(found, dict) else 0
    try:
        return str(stated or text)
    except RecursionError:
        return text


def _retry_after(reply: httpx2.Response) -> float:
    """Seconds; the header has them, or a date."""
    stated = reply.headers.get("retry-after", "")
    try:
        return max(0.0, float(stated))
    except ValueError:
        pass
    try:
        return max(
            email.utils.parsedate_to_datetime(stated).timestamp() - time.time(), 0
        )
    except (ValueError, OverflowError, LookupError, TypeError):
        return 0.0


def _png(view: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(view).save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _is_here(url: str) -> bool:
    """Whether the URL is this machine: then no proxy of the environment is used."""
    host = httpx2.URL(url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(url: str, model: str, server: str, field: str) -> str | None:
    """Asks for the models; why there was no answer, or None where the model is served.

    `transformers serve` does not list the model that it was given.

    Raises:
        UserError: it answers, and serves another model.
    """
    lists = server != "transformers"
    place = f"{url}/models" if lists else f"{url.removesuffix('/v1')}/health"
    try:
        reply = httpx2.get(place, timeout=CONNECT_S, trust_env=not _is_here(url))
        reply.raise_for_status()
        served = [model]
        if lists:
            served = [str(one["id"]) for one in reply.json()["data"]]
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        said = " ".join(str(error).split())[:200]
        return f"{place} does not answer ({type(error).__name__}: {said})"
    except (ValueError, LookupError, TypeError, RecursionError):
        problem = f"{place} answers with something else than a list of models"
    else:
        if model in served:
            return None
        names = " ".join(", ".join(served).split())[:200]
        problem = f"{url} serves {names or 'nothing'}"
    raise UserError(_refusal(problem, model, field))


def _refusal(problem: str, model: str, field: str) -> str:
    return (
        f"{field}.endpoints: {problem}; expected {model}: "
        "start it there (launch/rewards_vllm.sh), or pass other "
        f"--config.{field}.endpoints"
    )
