"""The judge's side of `data/parts.py`: which parts has an object of each prompt?

`python -m ar3d_jax.data.parts` becomes this process where a judge is asked, as only the
sidecar may load torch. The question is `prompts/parts.txt`, ours: the paper does not
say how it finds parts. What a line of the file is, is there.
"""

import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from ar3d_jax.config import RewardsConfig
from ar3d_jax.data import parts
from ar3d_jax.errors import UserError, exit_on_user_error
from ar3d_jax.rewards.sidecar import answers, chat
from ar3d_jax.rewards.sidecar.answers import Answer

TOKENS = 400  # of an answer, at least: twelve parts are 250
# So many questions in a row without an answer, each tried again as the config says:
# then the endpoints are down. Our choice.
SILENT = 10
SCHEMA = {
    "type": "object",
    "properties": {
        "parts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "count": {"type": "integer"},
                },
                "required": ["name", "count"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["parts"],
    "additionalProperties": False,
}

Tell = Callable[[str, Answer], None]


def question(prompt: str) -> chat.Question:
    """What is asked about a prompt: text alone."""
    nothing = np.zeros((0, 1, 1, 3), np.uint8)
    return chat.Question(chat.write("parts", prompt), nothing, SCHEMA)


def ask(
    prompts: Sequence[str], rewards: RewardsConfig, backend: str, tell: Tell
) -> None:
    """Has all prompts answered; `tell` gets each answer when it comes, in any order.

    Raises:
        UserError: the judge's weights are missing or do not fit; no endpoint answers.
    """
    own = rewards.qwen_vl
    judge = dataclasses.replace(own, max_tokens=max(own.max_tokens, TOKENS))
    if backend == "openai":
        asyncio.run(_ask_endpoints(prompts, judge, rewards.deadline_s, tell))
        return
    # torch reads this once, when it is imported.
    os.environ["OMP_NUM_THREADS"] = str(rewards.threads)
    from ar3d_jax.rewards.sidecar import chat_local

    model = chat_local.LocalChat(judge, "rewards.qwen_vl", rewards.threads)
    for start in range(0, len(prompts), judge.batch):
        some = prompts[start : start + judge.batch]
        found = model.answer([question(prompt) for prompt in some])
        for prompt, answer in zip(some, found, strict=True):
            tell(prompt, answer)


async def _ask_endpoints(
    prompts: Sequence[str], judge: chat.JudgeConfig, deadline_s: float, tell: Tell
) -> None:
    """As many at a time as the endpoints take; a deadline is one question's."""
    from ar3d_jax.rewards.sidecar import chat_endpoints

    post = chat_endpoints.Endpoints(judge, "rewards.qwen_vl")
    waiting = iter(prompts)

    async def work() -> None:
        for prompt in waiting:
            deadline = time.monotonic() + deadline_s
            tell(prompt, await post.answer(question(prompt), deadline))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(judge.in_flight * len(judge.endpoints)):
                group.create_task(work())
    except ExceptionGroup as errors:  # one, as the first cancels the others
        raise errors.exceptions[0] from None
    finally:
        await post.close()


def write_answers(task: parts.Task, lists: parts.ListFile) -> None:
    """Appends a line for every prompt that has none yet, and says what went wrong.

    Raises:
        UserError: as `ask`; or questions have no answer at all: their prompts get no
            line, so that the same command asks again.
    """
    todo = [prompt for prompt in task.prompts if prompt not in lists.there]
    unanswered = silent = 0
    why = ""
    with tqdm(total=len(todo), desc="parts", unit="prompt") as bar:

        def tell(prompt: str, answer: Answer) -> None:
            nonlocal unanswered, silent, why
            if answer.reason is not None:
                unanswered, silent, why = unanswered + 1, silent + 1, answer.reason
                if silent == SILENT:
                    raise UserError(_refusal(task, unanswered, why))
                return
            silent = 0
            found, problem = answers.parts(answer)
            if found:
                lists.by_judge(prompt, found)
            else:
                lists.by_words(prompt, problem or "")
            bar.update()

        if todo:
            ask(todo, task.rewards, task.backend, tell)
    if unanswered:
        raise UserError(_refusal(task, unanswered, why))


def _refusal(task: parts.Task, unanswered: int, why: str) -> str:
    return (
        f"{unanswered} prompts without an answer ({why}); the other lists are in "
        f"{task.out}, and the same command asks for what is missing"
    )


def main() -> None:
    """The command, from `data/parts.py`'s own command line."""
    with exit_on_user_error():
        task = parts.read_command(sys.argv)
        with parts.open_list(task.out) as lists:
            write_answers(task, lists)
        print(parts.summary(task, lists))


if __name__ == "__main__":
    main()
