"""Answers as models write them, and the numbers that a person reads there."""

import math

import pytest

from ar3d_jax.rewards.sidecar import answers
from ar3d_jax.rewards.sidecar.answers import Answer

LINES = "Alignment Score (1-5): {}\nCoherence Score (1-5): {}\nStyle Score (1-5): {}"
LONG = LINES.format("2.694700002670288", "2.371500015258789", "2.802500009536743")
LONG_SUM = 2.694700002670288 + 2.371500015258789 + 2.802500009536743


def lines(*numbers):
    return LINES.format(*numbers)


# Text -> the sum of three, or a part of the reason.
QUALITY = [
    (LONG, LONG_SUM),
    (lines(3, 4, 5), 12),
    (lines("3.5", "4.25", "1.0"), 8.75),
    (lines(1, 1, 1), 3),
    (lines(5, 5, 5), 15),
    (lines("3,5", "4,25", "1,0"), 8.75),
    (lines("2,694700002670288", 3, 3), 2.694700002670288 + 6),
    (lines("4/5", "3.5 / 5", "2/5.0"), 9.5),
    (lines("4 out of 5", 3, 2), 9),
    (lines("**4**", "`3`", "_2_"), 9),
    (lines("[4]", "(3)", '"2"'), 9),
    (lines("4.", "3.", "2."), 9),
    (lines("4 - it is a chair", "3 (one leg bent)", "2, dull"), 9),
    (lines("+4", "03", "2.50"), 9.5),
    (lines(".4e1", "3E0", "2"), 9),
    (
        "**Alignment Score (1-5):** 4\n**Coherence Score:** 3\n**Style Score**: 2",
        9,
    ),
    ("**Alignment** Score (1-5): 4\n*Coherence* score: 3\n`Style` Score: 2", 9),
    ("__Alignment__ __Score__: 4\nCoherence **Score**: 3\nStyle_Score: 2", 9),
    ("- Alignment Score: 4\n- Coherence Score: 3\n- Style Score: 2\n", 9),
    (
        "1. alignment score: 4\n2. coherence score: 3\n3. STYLE SCORE (1\u20135) : 2",
        9,
    ),
    ("Alignment Score (1-5) = 4, Coherence Score (1-5) = 3, Style Score (1-5) = 2", 9),
    ("# Alignment Score (1 - 5):\n4\n\n# Coherence Score:\n3\n\n# Style Score:\n2", 9),
    ('{"Alignment Score (1-5)": 4, "Coherence Score": 3.0, "Style Score": "2"}', 9),
    ("Style Score (1-5): 2\nAlignment Score (1-5): 4\nCoherence Score (1-5): 3", 9),
    (
        "A fine chair.\n\n"
        + lines(4, 3, 2)
        + "\n\nThe chair has four legs and 1 seat.",
        9,
    ),
    (lines("X", "Y", "Z") + "\n" + lines(4, 3, 2), 9),  # the prompt again, then it
    (lines(1, 1, 1) + "\nOn second thoughts:\n" + lines(4, 3, 2), 9),
    ("<think>" + lines(1, 1, 1) + "</think>" + lines(4, 3, 2), 9),
    (
        "Alignment Score (1-5):\t4\r\nCoherence Score (1-5):3\r\nStyle Score (1-5):  2",
        9,
    ),
    (lines("5.000000238418579", 5, 5), 15),  # rounding
    (lines("0.9999", 1, 1), 3),
    (lines("5.1", 5, 5), "the alignment score is 5.1, not 1 to 5"),
    (lines(3, 0, 3), "the coherence score is 0, not 1 to 5"),
    (lines(3, 3, 6), "the style score is 6, not 1 to 5"),
    (lines(3, -3, 3), "the coherence score is -3, not 1 to 5"),
    (lines("1e9", 3, 3), "not 1 to 5"),
    (lines("nan", 3, 3), "the alignment score is not finite"),
    (lines(3, "NaN", 3), "the coherence score is not finite"),
    (lines(3, 3, "inf"), "the style score is not finite"),
    (lines("1e999", 3, 3), "not finite"),
    (lines("X", "Y", "Z"), "the alignment score is no number"),
    (lines("four", 3, 2), "the alignment score is no number"),
    (lines("N/A", 3, 2), "no number"),
    (lines("4/10", 3, 2), "no number"),
    (lines("8 out of 10", 3, 2), "no number"),
    (lines("3-4", 3, 2), "no number"),
    (lines("3.5 \u2013 4", 3, 2), "no number"),
    (lines("3.4.5", 3, 2), "no number"),
    (lines("3.5 to 4", 3, 2), "the alignment score is no number"),
    (lines(3, "3 or 4", 2), "the coherence score is no number"),
    (lines(3, 3, "**2** or **3**"), "the style score is no number"),
    (lines("4%", 3, 2), "the alignment score is no number"),
    (lines("4.5 %", 3, 2), "no number"),
    (lines("3 -4", 3, 2), "no number"),
    (lines("4 / 10", 3, 2), "no number"),
    (lines("4 to my taste", "3 or so", "2 (90% sure)"), 9),
    (lines("4/50", 3, 2), "no number"),
    (lines(4, 3, 2) + "\n" + lines("X", 3, 2), "no number"),  # the last one counts
    ("Alignment Score (1-5): 4\nCoherence Score (1-5): 3", "there is no style score"),
    ("Misalignment Score: 4\nCoherence Score: 3\nStyle Score: 2", "no alignment score"),
    ("The alignment score is good: 4", "there is no alignment score"),
    ("Final Score: 4", "there is no alignment score"),
    ("I'm sorry, but I can't help with that.", "there is no alignment score"),
    ("", "there is no alignment score"),
    ("!" * 30_000, "there is no alignment score"),
    ("<think>It has legs. " + lines(4, 3, 2), "the reasoning has no end"),
]


def check(verdict, expected):
    value, reason = verdict
    if isinstance(expected, str):
        assert math.isnan(value)
        assert expected in reason
        assert len(reason) < 300
        assert "\n" not in reason
    else:
        assert (reason, value) == (None, pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize(("text", "expected"), QUALITY)
def test_three_lines(text, expected):
    check(answers.quality(Answer(text)), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Long decimals that go on and on are known well enough.
        (lines("2.75", "3.25", "3.333333333333"), 2.75 + 3.25 + 3.333333333333),
        (lines(4, 3, 2) + "\nThe", 9),
        (lines(4, 3, 2), "cut off: the style score is no number, see max_tokens; it"),
        (lines(4, 3, "2."), "cut off: the style score is no number"),
        (lines(4, 3, "2.8"), "cut off: the style score is no number"),
        (lines(4, 3, "2 to 3"), "cut off: the style score is no number"),
        (lines(4, 3, "2.333 or"), "cut off: the style score is no number"),
        (lines(4, 3, "2 / 1"), "cut off: the style score is no number"),
        (lines(4, 3, ""), "cut off: the style score is no number"),
        ("Alignment Score (1-5): 4\nCoher", "cut off: there is no coherence score"),
        ("<think>Let me see", "cut off: the reasoning has no end"),
        (lines(4, 9, 2) + "\nThe", "out of range: the coherence score is 9"),
    ],
)
def test_three_lines_that_were_cut_off(text, expected):
    check(answers.quality(Answer(text, cut=True)), expected)


@pytest.mark.parametrize(
    ("text", "plain", "think"),
    [
        (LONG, 2.694700002670288, 2.694700002670288),
        ("Alignment Score (1-5): 4", 4, 4),
        (lines(4, "X", "nan"), 4, 4),  # the others play no part
        ("chair (object): 1\nFinal Score: 3.5", "no alignment score", 3.5),
        ("**Final Score (1-5):** 3.5", "no alignment score", 3.5),
        ("Final Score: 2\nAlignment Score (1-5): 4", 4, 4),
        ("<think>Final Score: 2</think>\nFinal Score: 4", "no alignment score", 4),
        ("<think>Final Score: 2", "has no end", "has no end"),
        ("Final Score: 7", "no alignment score", "there is no alignment score"),
        ("<answer>Image 1 is better</answer>", "no alignment", "no alignment score"),
        (lines(6, 4, 4), "is 6, not 1 to 5", "is 6, not 1 to 5"),
    ],
)
def test_alignment_alone(text, plain, think):
    check(answers.alignment(Answer(text)), plain)
    check(answers.alignment_of_think(Answer(text)), think)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"match": 1}', 1),
        ('{"match": 0}', 0),
        ('{"match": 1.0}', 1),
        ('{"match": true}', 1),
        ('{"match": false}', 0),
        ('{"match": "1"}', 1),
        ('{"Match": 1, "reason": "it has {four} legs"}', 1),
        ('```json\n{"match": 1}\n```', 1),
        ('Here you are:\n\n{\n  "match" : 1\n}\n\nHope that helps!', 1),
        ('{"answer": {"match": 1}}', 1),
        ('{"match": 0} No, wait. {"match": 1}', 1),
        ('{"match": 1} and {"color": 0}', 1),
        ('{ {"match": 1}', 1),
        ('<think>{"match": 0}</think>{"match": 1}', 1),
        ('{"match": 2}', "match is 2, not 0 to 1"),
        ('{"match": -1}', "match is -1, not 0 to 1"),
        ('{"match": 0.5}', "match is 0.5, neither 0 nor 1"),
        ('{"match": NaN}', "match is not finite"),
        ('{"match": null}', "match is no number"),
        ('{"match": "yes"}', "match is no number"),
        ('{"match": [1]}', "match is no number"),
        ('{"match": ' + "9" * 400 + "}", "match is no number"),
        ('{"match": 1', "no JSON object with match"),
        ("{'match': 1}", "no JSON object with match"),
        ("match: 1", "no JSON object with match"),
        ("[1]", "no JSON object with match"),
        ("Yes.", "no JSON object with match"),
        ('{"a":' * 3000, "no JSON object with match"),
        ("", "no JSON object with match"),
    ],
)
def test_category(text, expected):
    check(answers.category(Answer(text)), expected)


def test_json_that_was_cut_off():
    reason = "cut off: there is no JSON object with match, see max_tokens; it answered"
    check(answers.category(Answer('{"match"', cut=True)), reason)
    check(answers.category(Answer('{"match": 1} The', cut=True)), 1)
    reason = "unreadable: match is no number; it"
    check(answers.category(Answer('{"match": "yes"} The', cut=True)), reason)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.8, 0.64, 0.5), 1.94),  # the paper's figure 7
        ((0, 0, 0), 0),
        ((1, 1, 1), 3),
        (('"0.5"', '"0,25"', 1), 1.75),
        ((1.0005, -0.0005, 0), 1),
        ((1.2, 0.5, 0.5), "{} is 1.2, not 0 to 1"),
        ((-0.5, 0.5, 0.5), "{} is -0.5, not 0 to 1"),
        ((80, 60, 50), "{} is 80, not 0 to 1"),
        (("true", 0.5, 0.5), "{} is no number"),
        (("Infinity", 0.5, 0.5), "{} is not finite"),
    ],
)
@pytest.mark.parametrize(
    ("read", "keys"),
    [
        (answers.consistency, ("color", "material", "texture")),
        (answers.consistency_shape, ("outline", "appearance", "parts")),
    ],
)
def test_three_fields(read, keys, values, expected):
    fields = zip(keys, values, strict=True)
    text = "{" + ", ".join(f'"{key}": {value}' for key, value in fields) + "}"
    wanted = expected.format(keys[0]) if isinstance(expected, str) else expected
    check(read(Answer(text)), wanted)
    missing = "there is no JSON object with " + ", ".join(keys)
    check(read(Answer(f'{{"{keys[0]}": 1, "{keys[1]}": 1}}')), missing)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"alignment": 4.5}', 4.5),
        ('{"alignment": 1}', 1),
        ('{"alignment": "4,5"}', 4.5),
        ('{"alignment": 0}', "alignment is 0, not 1 to 5"),
        ('{"alignment": 6}', "alignment is 6, not 1 to 5"),
        ("Alignment: 4", "no JSON object with alignment"),
    ],
)
def test_align_lmm(text, expected):
    check(answers.align_lmm(Answer(text)), expected)


def test_why_there_was_no_answer_stays_the_reason():
    lost = Answer(kind="timeout", detail="http://a: no answer in 120 s")
    readers = (answers.quality, answers.alignment_of_think, answers.consistency)
    for read in readers:
        assert read(lost)[1] == "timeout: http://a: no answer in 120 s"


def test_a_reason_quotes_the_answer():
    _, reason = answers.category(Answer("It is\n a chair."))
    assert reason == (
        "unreadable: there is no JSON object with match; it answered 'It is a chair.'"
    )


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("unreadable", answers.quality(Answer("A chair: fine."))),
        ("unreadable", answers.quality(Answer(lines("X", "Y", "Z")))),
        ("unreadable", answers.category(Answer('{"match": null}'))),
        ("unreadable", answers.parts(Answer('{"parts": ["leg"]}'))),
        ("out of range", answers.alignment(Answer(lines(6, 3, 3)))),
        ("out of range", answers.alignment(Answer(lines("nan", 3, 3)))),
        ("out of range", answers.category(Answer('{"match": 0.5}'))),
        (
            "out of range",
            answers.consistency_shape(
                Answer('{"outline": 2, "appearance": 0, "parts": 0}')
            ),
        ),
        ("out of range", answers.parts(Answer('{"parts": []}'))),
        ("cut off", answers.align_lmm(Answer('{"align', cut=True))),
        ("status 429", answers.align_lmm(Answer(kind="status 429", detail="a: b"))),
    ],
)
def test_reasons_are_counted_by_what_is_before_the_colon(kind, verdict):
    assert verdict[1].partition(": ")[0] == kind
