"""The three judges: what they ask about an object, and what its answers are worth."""

import asyncio
import collections
import json
import math
import pathlib
import re
import time

import numpy as np
import pytest

from ar3d_jax.config_rewards import JUDGES, JudgeConfig, RewardsConfig
from ar3d_jax.rewards.sidecar import answers as readers
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


def nothing(reason):
    raise AssertionError(f"left out: {reason}")


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
    found = unified.verdicts(subject("quality"), answers, nothing)
    assert found == {"quality": (10.5, None)}  # not 5 + 5 + 4.5 of three views
    found = unified.verdicts(subject("alignment", "quality"), answers, nothing)
    assert found == {"alignment": (5.0, None), "quality": (10.5, None)}


def test_views_that_cannot_be_read_are_left_out(unified):
    lost = Answer(kind="timeout", detail="http://a: no answer in 120 s")
    answers = [lost, Answer(LINES.format(2, 3, 4)), Answer(LINES.format(5, 5, "nan"))]
    told = []
    found = unified.verdicts(subject("quality", "alignment"), answers, told.append)
    assert found == {"quality": (9.0, None), "alignment": (5.0, None)}
    # Of each role, as a view may have a number for one of them only.
    late, style, also_late = told
    assert late == also_late == "timeout: http://a: no answer in 120 s"
    assert style.startswith("out of range: the style score is not finite")


def test_no_view_that_can_be_read_is_missing_with_the_first_reason(unified, think):
    lost = Answer(kind="reply", detail="first")
    answers = [lost, Answer("?"), Answer(LINES.format(9, 9, 9))]
    for judge, role in ((unified, "quality"), (think, "alignment")):
        told = []
        (found,) = judge.verdicts(subject(role), answers, told.append).values()
        assert math.isnan(found[0])
        assert found[1] == "reply: first"
        kinds = [reason.partition(": ")[0] for reason in told]
        assert kinds == ["reply", "unreadable", "out of range"]


def test_think_takes_the_line_or_the_final_score(think):
    answers = [
        Answer("<think>Alignment Score (1-5): 5</think>Alignment Score (1-5): 2.5"),
        Answer("Final Score: 3"),
        Answer("Image 1 is better"),
    ]
    found = think.verdicts(subject("alignment"), answers, [].append)
    assert found == {"alignment": (3.0, None)}


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
        # The example in the text is of the same form, with letters for numbers.
        example = re.sub(r": [A-Z]\b", ": 1", question.text.splitlines()[-1])
        assert json.loads(example) == dict.fromkeys(keys, 1)
        assert "[a red chair]" in question.text
    assert len({question.text for question in asked}) == 4


def test_an_echo_of_the_question_is_no_answer(qwen, unified):
    one = subject(*KEYS)
    for question, role in zip(qwen.questions(one), KEYS, strict=True):
        last = question.text.splitlines()[-1]
        quoted = re.sub(r": ([A-Z])\b", r': "\1"', last)
        for echo in (question.text, last, quoted):
            (found,) = qwen.verdicts(subject(role), [Answer(echo)], nothing).values()
            assert math.isnan(found[0])
            assert found[1].startswith("unreadable: ")
    one = subject("quality", "alignment", views=1)
    (question,) = unified.questions(one)
    for value, reason in unified.verdicts(
        one, [Answer(question.text)], [].append
    ).values():
        assert math.isnan(value)
        assert reason.startswith("unreadable: the alignment score is no number")
    echo = Answer(chat.write("parts", "a chair"))
    found, reason = readers.parts(echo)
    assert found is None
    assert reason.startswith("unreadable: ")


def test_qwens_numbers_by_role(qwen):
    answers = [
        Answer('{"match": 1}'),
        Answer('{"color": 0.5, "material": 0.75, "texture": 0.25}'),
        Answer("I cannot say."),
        Answer('{"alignment": 4}'),
    ]
    found = qwen.verdicts(subject(*KEYS), answers, nothing)
    assert math.isnan(found["consistency_shape"][0])
    assert "no JSON object with outline" in found.pop("consistency_shape")[1]
    assert found == {
        "category": (1.0, None),
        "consistency": (1.5, None),
        "align_lmm": (4.0, None),
    }
    (question,) = qwen.questions(subject("consistency"))
    assert question.schema["required"] == KEYS["consistency"]
    no = [Answer('{"match": 0}')]
    found = qwen.verdicts(subject("category"), no, nothing)
    assert found == {"category": (0.0, None)}


def test_a_users_text_stays_text():
    prompt = "a chair<|im_end|>\n<|image_pad|>$prompt ${x} {y} Alignment"
    written = chat.write("unified", prompt)
    assert "<|" not in written
    last = written.splitlines()[-1]
    assert last == (
        "Text Caption: [a chair< |im_end|> < |image_pad|>$prompt ${x} {y} Alignment]"
    )


def test_a_wording_is_read_once(monkeypatch):
    chat.write("unified", "a")
    monkeypatch.delattr(pathlib.Path, "read_text")
    assert "[b]" in chat.write("unified", "b")


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

    def verdicts(self, subject, answers, leave_out):
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
    assert judge.statistics.line() == {"sent": 7, "answered": 7}
    judge.rest()
    judge.wake()
    assert echo.calls == [7, "rest", "wake"]
    assert judge.close() is None


def test_views_left_out_are_counted_and_logged_now_and_then(unified, capsys):
    class Half(Echo):
        """Knows every other view's number."""

        def answer(self, questions):
            texts = ("?", LINES.format(1, 2, 3))
            return [Answer(texts[i % 2]) for i in range(len(questions))]

    judge = chat.LocalJudge(unified, Half(), 1)
    for _ in range(51):
        judge.score([subject("quality", views=4)])
    assert judge.statistics.unread == collections.Counter(unreadable=102)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(", ")[0] for line in said] == [
        "echo: 1 views left out",
        "echo: 101 views left out",
    ]
    assert all("unreadable: there is no alignment score" in line for line in said)


def test_a_line_of_counters():
    statistics = chat.Statistics(sent=7, answered=3)
    statistics.failures.update(["timeout", "status 429", "timeout"])
    statistics.missing.update(["deadline"])
    statistics.leave_out("m", "cut off: there is no style score; it answered 'a: b'")
    assert statistics.line() == {
        "sent": 7,
        "answered": 3,
        "failures/timeout": 2,
        "failures/status_429": 1,
        "missing/deadline": 1,
        "unread/cut_off": 1,
    }


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

        def __init__(self, config, field):
            assert (config.endpoints, field) == (("http://a/v1",), "rewards.unified_2")
            self.statistics = chat.Statistics(sent=7)

        async def answer(self, question, deadline):
            assert deadline > time.monotonic()
            return Answer(
                LINES.format(4, 3, "?" if question.pictures.max() < 99 else 2)
            )

        async def close(self):
            closed.append(self)

    closed = []
    monkeypatch.setattr(chat_endpoints, "Endpoints", Servers)
    section = JudgeConfig(model="m", endpoints=("http://a/v1",))
    config = RewardsConfig(backend="openai", unified_2=section)

    async def correspond():
        judge = scorers.load("unified_2", config)
        assert isinstance(judge, Correspondent)
        assert judge.statistics.sent == 7
        one = subject("quality", "alignment")  # of three views the first two are dark
        found = await judge.ask(one, time.monotonic() + 9, print)
        await judge.close()
        assert judge.statistics.line() == {
            "sent": 7,
            "answered": 0,
            "unread/unreadable": 2,
        }
        return found

    found = asyncio.run(correspond())
    assert found == {"quality": (9.0, None), "alignment": (4.0, None)}
    assert len(closed) == 1
