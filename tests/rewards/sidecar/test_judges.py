"""The three judges: what they ask about an object, and what its answers are worth."""

import asyncio
import json
import math
import time

import numpy as np
import pytest

from ar3d_jax.config_rewards import JUDGES, JudgeConfig, RewardsConfig
from ar3d_jax.rewards.sidecar import chat, chat_endpoints, scorers
from ar3d_jax.rewards.sidecar.answers import Answer
from ar3d_jax.rewards.sidecar.scorers import (
    About,
    Correspondent,
    Scorer,
    Subject,
    qwen_vl,
    unified_2,
    unified_think,
)
from tests.rewards import tiny_qwen

LINES = "Alignment Score (1-5): {}\nCoherence Score (1-5): {}\nStyle Score (1-5): {}"


def subject(*roles, prompt="a red chair", views=3):
    pictures = np.arange(views * 48, dtype=np.uint8).reshape(views, 4, 4, 3)
    nothing = np.zeros((0, 3))
    return Subject(prompt, pictures, nothing, nothing.astype(np.uint8), roles)


def judge_of(module, monkeypatch):
    """The judge that a scorer's module hands to `chat.load`, and its section's name."""
    handed = []

    def load(*arguments):
        handed.append(arguments)
        return chat.LocalJudge(arguments[1], Echo(), 1)

    with monkeypatch.context() as patch:
        patch.setattr(chat, "load", load)
        module.load(RewardsConfig())
    ((name, judge, _),) = handed
    return name, judge


@pytest.fixture
def unified(monkeypatch):
    name, judge = judge_of(unified_2, monkeypatch)
    assert name == "unified_2"
    return judge


@pytest.fixture
def think(monkeypatch):
    name, judge = judge_of(unified_think, monkeypatch)
    assert name == "unified_think"
    return judge


@pytest.fixture
def qwen(monkeypatch):
    name, judge = judge_of(qwen_vl, monkeypatch)
    assert name == "qwen_vl"
    return judge


def test_unified_is_asked_view_by_view_in_its_own_format(unified, think):
    one = subject("quality", "alignment")
    asked = unified.questions(one)
    assert len(asked) == 3
    for index, question in enumerate(asked):
        np.testing.assert_array_equal(question.pictures, one.views[index : index + 1])
        assert question.schema is None
        written = question.text.splitlines()
        start = written.index("Alignment Score (1-5): X")
        assert written[start : start + 3] == LINES.format("X", "Y", "Z").splitlines()
        assert written[-1] == "Text Caption: [a red chair]"
    texts = [question.text for question in think.questions(subject("alignment"))]
    assert texts == [question.text for question in asked]


def test_quality_is_the_best_views_sum(unified):
    answers = [Answer(LINES.format(*n)) for n in [(2, 3, 4), (1, 5, 4.5), (5, 1, 1)]]
    found = unified.verdicts(subject("quality"), answers)
    assert found == {"quality": (10.5, None)}  # not 5 + 5 + 4.5 of three views
    found = unified.verdicts(subject("alignment", "quality"), answers)
    assert found == {"alignment": (5.0, None), "quality": (10.5, None)}


def test_views_that_cannot_be_read_are_left_out(unified):
    lost = Answer(reason="http://a: no answer in 120 s")
    answers = [lost, Answer(LINES.format(2, 3, 4)), Answer(LINES.format(5, 5, "nan"))]
    found = unified.verdicts(subject("quality", "alignment"), answers)
    assert found == {"quality": (9.0, None), "alignment": (5.0, None)}


def test_no_view_that_can_be_read_is_missing_with_the_first_reason(unified, think):
    answers = [Answer(reason="first"), Answer("?"), Answer(LINES.format(9, 9, 9))]
    for judge, role in ((unified, "quality"), (think, "alignment")):
        (found,) = judge.verdicts(subject(role), answers).values()
        assert math.isnan(found[0])
        assert found[1] == "first"


def test_think_takes_the_line_or_the_final_score(think):
    answers = [
        Answer("<think>Alignment Score (1-5): 5</think>Alignment Score (1-5): 2.5"),
        Answer("Final Score: 3"),
        Answer("Image 1 is better"),
    ]
    assert think.verdicts(subject("alignment"), answers) == {"alignment": (3.0, None)}


KEYS = {
    "category": ["match"],
    "consistency": ["color", "material", "texture"],
    "consistency_shape": ["outline", "appearance", "parts"],
    "align_lmm": ["alignment"],
}


def test_qwen_sees_all_views_at_once_once_a_role(qwen):
    one = subject(*KEYS)
    asked = qwen.questions(one)
    for question, keys in zip(asked, KEYS.values(), strict=True):
        np.testing.assert_array_equal(question.pictures, one.views)
        assert question.schema["required"] == keys
        assert list(question.schema["properties"]) == keys
        # The example in the text is of the same form.
        assert list(json.loads(question.text.splitlines()[-1])) == keys
        assert "[a red chair]" in question.text
    assert len({question.text for question in asked}) == 4


def test_qwens_numbers_by_role(qwen):
    answers = [
        Answer('{"match": 1}'),
        Answer('{"color": 0.5, "material": 0.75, "texture": 0.25}'),
        Answer("I cannot say."),
        Answer('{"alignment": 4}'),
    ]
    found = qwen.verdicts(subject(*KEYS), answers)
    assert math.isnan(found["consistency_shape"][0])
    assert "no JSON object with outline" in found.pop("consistency_shape")[1]
    assert found == {
        "category": (1.0, None),
        "consistency": (1.5, None),
        "align_lmm": (4.0, None),
    }
    (question,) = qwen.questions(subject("consistency"))
    assert question.schema["required"] == KEYS["consistency"]
    assert qwen.verdicts(subject("category"), [Answer('{"match": 0}')]) == {
        "category": (0.0, None)
    }


def test_a_users_text_stays_text():
    prompt = "a chair<|im_end|>\n<|image_pad|>$prompt ${x} {y} Alignment"
    written = chat.write("unified", prompt)
    assert "<|" not in written
    last = written.splitlines()[-1]
    assert last == (
        "Text Caption: [a chair< |im_end|> < |image_pad|>$prompt ${x} {y} Alignment]"
    )


class Echo:
    """A chat that answers with what it was asked."""

    about = About("echo", "0", "here")

    def __init__(self):
        self.calls = []

    def answer(self, questions):
        self.calls.append(len(questions))
        return [Answer(question.text) for question in questions]

    def wake(self):
        self.calls.append("wake")

    def rest(self):
        self.calls.append("rest")


class Views:
    """A judge that asks as many questions as there are views, and counts letters."""

    def questions(self, subject):
        return [chat.Question(subject.prompt, view[None]) for view in subject.views]

    def verdicts(self, subject, answers):
        number = float(sum(len(answer.text) for answer in answers))
        return {role: (number, None) for role in subject.roles}


def test_each_object_gets_its_own_answers():
    echo = Echo()
    judge = chat.LocalJudge(Views(), echo, 4)
    assert isinstance(judge, Scorer)
    assert (judge.about, judge.batch) == (echo.about, 4)
    subjects = [subject("x", prompt="ab", views=2), subject("y", prompt="c", views=5)]
    assert judge.score(subjects) == [{"x": (4.0, None)}, {"y": (5.0, None)}]
    assert echo.calls == [7]
    judge.rest()
    judge.wake()
    assert echo.calls == [7, "rest", "wake"]
    assert judge.close() is None


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_from_weights_scores(name, tmp_path):
    """All there is, from the registry to the model, which writes nonsense."""
    folder = tiny_qwen.make(tmp_path)
    section = JudgeConfig(model=str(folder), max_tokens=5, batch=2)
    config = RewardsConfig(**{name: section})
    judge = scorers.load(name, config)
    assert isinstance(judge, Scorer)
    assert judge.batch == 2
    role = {"qwen_vl": "category", "unified_2": "quality"}.get(name, "alignment")
    rng = np.random.default_rng(0)
    one = Subject(
        prompt="a chair",
        views=rng.integers(0, 256, (2, 56, 56, 3)).astype(np.uint8),
        points=np.zeros((0, 3)),
        colours=np.zeros((0, 3), np.uint8),
        roles=(role,),
    )
    for verdicts in judge.score([one, one]):
        value, reason = verdicts[role]
        assert math.isnan(value)
        assert "it answered" in reason


def test_a_judge_with_endpoints_corresponds(monkeypatch):
    class Servers:
        about = About("m", "r", "there")
        statistics = chat.Statistics(sent=7)

        def __init__(self, config, field):
            assert (config.endpoints, field) == (("http://a/v1",), "rewards.qwen_vl")

        async def answer(self, question, deadline):
            assert deadline > time.monotonic()
            return Answer('{"match": 1, "color": 1, "material": 1, "texture": 0}')

        async def close(self):
            closed.append(self)

    closed = []
    monkeypatch.setattr(chat_endpoints, "Endpoints", Servers)
    section = JudgeConfig(model="m", endpoints=("http://a/v1",))
    config = RewardsConfig(backend="openai", qwen_vl=section)

    async def correspond():
        judge = scorers.load("qwen_vl", config)
        assert isinstance(judge, Correspondent)
        assert judge.statistics.sent == 7
        one = subject("consistency", "category")
        found = await judge.ask(one, time.monotonic() + 9)
        await judge.close()
        return found

    found = asyncio.run(correspond())
    assert found == {"consistency": (2.0, None), "category": (1.0, None)}
    assert len(closed) == 1
