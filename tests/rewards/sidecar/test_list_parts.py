"""What a judge is asked about a prompt's parts, and what its answers are worth."""

import asyncio
from typing import Any

import pytest
import torch
import transformers

from ar3d_jax.config_rewards import JudgeConfig, RewardsConfig
from ar3d_jax.data import part_lists, parts
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import answers, list_parts
from ar3d_jax.rewards.sidecar.answers import Answer
from ar3d_jax.rewards.sidecar.chat_local import LocalChat
from tests.rewards import tiny_qwen
from tests.rewards.sidecar.test_chat_local import QUESTIONS, inputs_of_transformers
from tests.rewards.stand_in_endpoint import Endpoint, completion

LEGS = '{"parts": [{"name": "leg", "count": 4}]}'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (LEGS, (("leg", 4),)),
        (f"Sure:\n```json\n{LEGS}\n```", (("leg", 4),)),
        (f'<think>{{"parts": []}}</think> {LEGS}', (("leg", 4),)),
        (
            '{"parts": [{"name": " lamp  shade", "count": 1, "why": "said"},'
            ' {"name": "leg", "count": 3}, {"name": "leg", "count": 2}]}',
            (("lamp shade", 1), ("leg", 3)),
        ),
    ],
)
def test_a_list_is_read(text, found):
    assert answers.parts(Answer(text)) == (found, None)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer("four legs"), "there is no JSON object with parts; it answered 'four"),
        (
            Answer(LEGS[:-3], cut=True),
            "cut off: there is no JSON object with parts, se",
        ),
        (Answer(LEGS.replace("4", "0")), "a part is 'leg', 0 times; it answered"),
        (Answer(LEGS.replace("4", '"4"')), 'count is "4"'),
        (Answer(LEGS.replace("4", "4.5")), "count is 4.5"),
        (Answer(LEGS.replace("leg", " ")), "a part is '', 4 times"),
        (Answer('{"parts": ["leg"]}'), "name is null"),
        (Answer('{"parts": {"leg": 4}}'), 'parts is {"leg": 4}'),
        (Answer('{"parts": []}'), "there are 0 parts, not 1 to 12"),
        (
            Answer('{"parts": [' + ", ".join([LEGS[11:-2]] * 13) + "]}"),
            "there are 13 parts, not 1 to 12",
        ),
        (Answer(f"<think>{LEGS}"), "the reasoning has no end"),
        (Answer(kind="transport", detail="nobody there"), "transport: nobody there"),
    ],
)
def test_anything_else_is_no_list_and_says_why(answer, why):
    found, reason = answers.parts(answer)
    assert found is None
    assert why in (reason or "")
    assert "\n" not in (reason or "")


def test_the_question_is_text_and_quotes_the_prompt_once():
    one = list_parts.question("a <|im_end|>\nchair")
    assert len(one.pictures) == 0
    assert one.text.count("[a < |im_end|> chair]") == 1
    last = one.text.splitlines()[-1]
    found, reason = answers.parts(Answer(last))
    assert found is None  # the wording's own example is no answer
    assert reason is not None
    filled = last.replace("NAME", '"leg"', 1).replace("NAME", '"seat"')
    found = answers.parts(Answer(filled.replace("N}", "2}")))
    assert found == ((("leg", 2), ("seat", 2)), None)  # but has its form


# --- Text alone, to the model in this process -----------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen.make(tmp_path_factory.mktemp("qwen"))


def test_text_alone_is_answered_as_the_library_would(folder):
    config = JudgeConfig(model=str(folder), max_tokens=8, batch=4)
    chat = LocalChat(config, "rewards.qwen_vl", 1)
    asked = [list_parts.question(text) for text in ("a chair", "a tall lamp", "b")]
    found = chat.prepare(asked[:1])
    wanted: Any = inputs_of_transformers(folder, asked[0])
    assert set(found) == set(wanted) >= {"input_ids", "attention_mask"}
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].to(tensor.dtype), tensor, rtol=0, atol=0)
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    with torch.inference_mode():
        likeliest = int(model(**wanted).logits[0, -1].argmax())
    words = transformers.AutoTokenizer.from_pretrained(folder)
    alone = [chat.answer([one])[0] for one in asked]
    assert alone[0].text.startswith(words.decode([likeliest]))
    assert chat.answer(asked) == alone
    mixed = [QUESTIONS[0], *asked]
    assert chat.answer(mixed) == [chat.answer(QUESTIONS[:1])[0], *alone]


# --- Endpoints ------------------------------------------------------------------------


def write(tmp_path, prompts, *script, **fields):
    """Runs against an endpoint with the script; the lists and what was asked."""
    path = tmp_path / "parts.jsonl"

    async def run():
        async with Endpoint(*script) as endpoint:
            judge = JudgeConfig(model="judge", endpoints=(endpoint.url,), **fields)
            rewards = RewardsConfig(qwen_vl=judge)
            task = parts.Task(tuple(prompts), path, rewards, "openai")
            with parts.open_list(path) as lists:
                # It has a loop of its own, and the endpoint is in this one.
                await asyncio.to_thread(list_parts.write_answers, task, lists)
            return endpoint

    return asyncio.run(run()), part_lists.read(path)


def test_many_at_a_time_each_with_its_own_answer(tmp_path):
    prompts = [f"thing {i}" for i in range(30)]
    slow = [0.3] * 3  # so that they overlap; their answer is no list
    script = [*slow, (200, {}, completion(LEGS))]
    endpoint, lists = write(tmp_path, prompts, *script, in_flight=4, max_tokens=50)
    by_words = [p for p in prompts if lists[p] == part_lists.noun_phrases(p)]
    assert len(by_words) == 3  # whichever came first
    rest = dict.fromkeys(set(prompts) - set(by_words), (("leg", 4),))
    assert lists == {p: part_lists.noun_phrases(p) for p in by_words} | rest
    assert 1 < endpoint.most <= 4
    assert len(endpoint.bodies) == 30
    for body in endpoint.bodies:
        (content,) = body["messages"][0]["content"]
        assert content["type"] == "text"
        assert body["max_tokens"] == list_parts.TOKENS
        assert body["response_format"]["json_schema"]["schema"] == list_parts.SCHEMA


def test_endpoints_that_are_down_end_it(tmp_path):
    prompts = [f"thing {i}" for i in range(30)]
    good, bad = (200, {}, completion(LEGS)), (422, {}, {"error": "no"})
    silent = list_parts.SILENT
    script = [good, *[bad] * (silent - 1), good, bad]
    with pytest.raises(
        UserError,
        match=rf"^{2 * silent - 1} prompts without an answer \(status 422: http",
    ):
        write(tmp_path, prompts, *script, in_flight=1, retries=0)
    found = part_lists.read(tmp_path / "parts.jsonl")
    assert list(found) == ["thing 0", f"thing {silent}"]


def test_another_model_is_one_line(tmp_path):
    async def run():
        async with Endpoint(model="other") as endpoint:
            judge = JudgeConfig(model="judge", endpoints=(endpoint.url,))
            rewards = RewardsConfig(qwen_vl=judge)
            told = []
            await asyncio.to_thread(
                list_parts.ask, ["a"], rewards, "openai", lambda *of: told.append(of)
            )

    with pytest.raises(UserError, match=r"serves other; expected judge"):
        asyncio.run(run())
