"""Judges that answer in words: what is asked, and who carries it there and back.

A `Judge` knows the questions that an object and its roles give, and what the answers
mean. `load` has it answered by a model in this process (`chat_local.py`) or by servers
(`chat_endpoints.py`); the judge does not know which. Reading answers is `answers.py`,
the judges are in `scorers/`.
"""

import asyncio
import collections
import dataclasses
import functools
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from ar3d_jax.config import RewardsConfig
from ar3d_jax.config_rewards import JudgeConfig
from ar3d_jax.rewards.sidecar.answers import Answer
from ar3d_jax.rewards.sidecar.scorers import (
    About,
    Correspondent,
    Scorer,
    Subject,
    Tell,
    Verdicts,
)

PROMPTS = Path(__file__).parent / "prompts"
# A picture of more pixels is made smaller: 448 x 448, 256 tokens. Six and the text fit
# into the 4096 tokens that launch/rewards_vllm.sh gives a request.
PIXELS = 448 * 448
EVERY = 100  # of a kind of view without a number, the first of so many is logged

LeaveOut = Callable[[str], None]  # is told the reason why a view does not count


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """One user turn: pictures in this order, then the text.

    Attributes:
        text: What is asked.
        pictures: What it is asked about; there may be none.
        schema: JSON schema of the answer, for servers that can hold a model to it.
    """

    text: str
    pictures: UInt8[np.ndarray, "n H W 3"]
    schema: Mapping[str, Any] | None = None


@runtime_checkable  # test runs check annotations
class Judge(Protocol):
    """Turns an object into questions, and answers into verdicts."""

    def questions(self, subject: Subject) -> list[Question]:
        """All that has to be asked for the subject's roles."""
        ...

    def verdicts(
        self, subject: Subject, answers: Sequence[Answer], leave_out: LeaveOut
    ) -> Verdicts:
        """Of each of the subject's roles, from one answer to each question.

        `leave_out` is told of each view without a number, which no verdict may say.
        """
        ...


@runtime_checkable
class Chat(Protocol):
    """A model in this process."""

    about: About

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer to each."""
        ...

    def wake(self) -> None:
        """See `Scorer`."""
        ...

    def rest(self) -> None:
        """See `Scorer`."""
        ...


@dataclasses.dataclass
class Statistics:
    """What happened so far; kinds are `transport`, `timeout`, `status 429`, `reply`.

    Attributes:
        sent: Requests, each try counted.
        answered: Questions that were.
        failures: Tries that failed, by kind.
        missing: Questions without an answer, by the kind of their last failure, or
            `deadline`.
        unread: Views without a number, once a role, by the kinds above and those of
            `answers.py`; of the others the best one counts.
    """

    sent: int = 0
    answered: int = 0
    failures: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    missing: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    unread: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )

    def leave_out(self, model: str, reason: str) -> None:
        """Counts a view of the judge `model`; logs a kind's first, 101st and so on."""
        kind = reason.partition(": ")[0]
        self.unread[kind] += 1
        count = self.unread[kind]
        if count % EVERY == 1:
            print(f"{model}: {count} views left out, {reason}", file=sys.stderr)

    def line(self) -> dict[str, float]:
        """The counters: `sent`, `answered`, and by kind `unread/cut_off` and so on."""
        counters = {
            "failures": self.failures,
            "missing": self.missing,
            "unread": self.unread,
        }
        counts = {
            f"{name}/{kind.replace(' ', '_')}": float(count)
            for name, counter in counters.items()
            # A copy, as another thread may count meanwhile.
            for kind, count in dict(counter).items()
        }
        return {"sent": float(self.sent), "answered": float(self.answered), **counts}


@runtime_checkable
class Post(Protocol):
    """Servers elsewhere."""

    about: About
    statistics: Statistics

    async def answer(self, question: Question, deadline: float) -> Answer:
        """The answer, or why there is none, by `deadline` in `time.monotonic`."""
        ...

    async def close(self) -> None:
        """Hangs up."""
        ...


class LocalJudge:
    """A `Scorer`.

    Attributes:
        statistics: What happened so far; a question is sent once.
    """

    def __init__(self, judge: Judge, chat: Chat, batch: int) -> None:
        """`batch`: how many objects to take at a time."""
        self.about, self.batch, self.statistics = chat.about, batch, Statistics()
        self._judge, self._chat = judge, chat
        self._leave_out = functools.partial(self.statistics.leave_out, self.about.model)

    def score(self, subjects: Sequence[Subject]) -> list[Verdicts]:
        """See `Scorer`."""
        asked = [self._judge.questions(subject) for subject in subjects]
        together = [one for some in asked for one in some]
        self.statistics.sent += len(together)
        answers = iter(self._chat.answer(together))
        self.statistics.answered += len(together)
        return [
            self._judge.verdicts(
                subject, [next(answers) for _ in some], self._leave_out
            )
            for subject, some in zip(subjects, asked, strict=True)
        ]

    def wake(self) -> None:
        """Brings the model to its device."""
        self._chat.wake()

    def rest(self) -> None:
        """Gives the device's memory back."""
        self._chat.rest()

    def close(self) -> None:
        """Nothing to give back."""


class DistantJudge:
    """A `Correspondent`.

    Attributes:
        statistics: What happened so far.
    """

    def __init__(self, judge: Judge, post: Post) -> None:
        self.about, self.statistics = post.about, post.statistics
        self._judge, self._post = judge, post
        self._leave_out = functools.partial(self.statistics.leave_out, self.about.model)

    async def ask(self, subject: Subject, deadline: float, tell: Tell) -> Verdicts:
        """See `Correspondent`; all questions are under way at once."""
        asked = self._judge.questions(subject)
        answers = await asyncio.gather(
            *(self._post.answer(one, deadline) for one in asked)
        )
        return self._judge.verdicts(subject, answers, self._leave_out)

    async def close(self) -> None:
        """Hangs up."""
        await self._post.close()


def load(name: str, judge: Judge, config: RewardsConfig) -> Scorer | Correspondent:
    """The judge with the model or the servers of the section `rewards.<name>`.

    Raises:
        UserError: the weights are missing or do not fit; the servers do not answer.
    """
    section, field = getattr(config, name), f"rewards.{name}"
    if config.backend == "openai":
        from ar3d_jax.rewards.sidecar import chat_endpoints

        return DistantJudge(judge, chat_endpoints.Endpoints(section, field))
    from ar3d_jax.rewards.sidecar import chat_local  # torch, which endpoints don't need

    chat = chat_local.LocalChat(section, field, config.threads)
    return LocalJudge(judge, chat, section.batch)


def write(name: str, prompt: str) -> str:
    """The text of `prompts/<name>.txt` about an object that should be `prompt`.

    The user's text stays text: it is one line, and its <|special tokens|> are broken.
    """
    line = " ".join(prompt.split()).replace("<|", "< |")
    return _template(name).substitute(prompt=line)


@functools.cache
def _template(name: str) -> string.Template:
    return string.Template((PROMPTS / f"{name}.txt").read_text("utf-8").strip())


def generation_fields(config: JudgeConfig) -> dict[str, Any]:
    """How answers are sampled, in transformers' names, where 0 means no `top_k`."""
    return {
        "max_new_tokens": config.max_tokens,
        "do_sample": config.temperature > 0,
        "temperature": config.temperature or 1.0,  # unused then, and 0 is refused
        "top_p": config.top_p,
        "top_k": max(config.top_k, 0),
        "repetition_penalty": config.repetition_penalty,
        "num_beams": 1,
    }
