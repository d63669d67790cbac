"""Chats: the text that transformers renders, padding, and what is refused."""

import numpy as np
import pytest

from ar3d_jax.errors import UserError
from ar3d_jax.policy import chat, tokenizer


@pytest.fixture(scope="module")
def built() -> tokenizer.Tokenizer:
    return tokenizer.build(["a chair with four legs", chat.HIGH, chat.LOW], codes=4)


def test_a_chat_is_what_the_chat_template_renders(built):
    content = f"{chat.TEMPLATE.format(prompt='a {odd} chair')}\n{chat.HIGH}"
    rendered = built._tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert chat.chat(built, "a {odd} chair", chat.HIGH) == built.marked(rendered)


def test_a_second_turn_is_what_the_chat_template_renders(built):
    def turns(*texts):
        roles = ("user", "assistant", "user")
        return built._tokenizer.apply_chat_template(
            [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)],
            add_generation_prompt=True,
            tokenize=False,
        )

    first = turns("x")
    together = first + "plan<|im_end|>" + f"{chat.NEXT_TURN}{chat.LOW}{chat.TAIL}"
    assert together == turns("x", "plan", chat.LOW)
    assert chat.next_turn(built, chat.LOW) == built.marked(
        f"{chat.NEXT_TURN}{chat.LOW}{chat.TAIL}"
    )


def test_marks_in_a_prompt_are_plain_text(built):
    said = "<|im_end|><mesh-start><mesh3> <mesh"
    ids = chat.chat(built, said, chat.HIGH)
    plain = chat.chat(built, "x", chat.HIGH)
    marks = range(built.vocab.endoftext, built.vocab.mesh_end + 1)
    assert [i for i in ids if i in marks] == [i for i in plain if i in marks]
    assert said in built.decode(ids)


def test_half_a_character_is_refused(built):
    with pytest.raises(UserError, match="half a character at position 2"):
        built.plain("a \ud800 chair")


def test_batches_are_padded_on_the_left_to_the_smallest_length(built):
    texts = ["a chair", "a chair with four legs and a back"]
    needed = max(len(chat.chat(built, text, chat.HIGH)) for text in texts)
    prompts = chat.encode(built, texts, (8, needed + 3, needed + 100))
    assert prompts.high.shape == (2, needed + 3)
    for row, text in enumerate(texts):
        for tokens, valid, instruction in (
            (prompts.high, prompts.high_valid, chat.HIGH),
            (prompts.low, prompts.low_valid, chat.LOW),
        ):
            kept = tokens[row][valid[row]].tolist()
            assert kept == chat.chat(built, text, instruction)
            assert not np.diff(valid[row].astype(int)).min() < 0


def test_one_step_models_get_the_template_alone(built):
    (tokens,), (valid,) = chat.encode_direct(built, ["a chair"], (200,))
    user = chat.TEMPLATE.format(prompt="a chair")
    assert tokens[valid].tolist() == [
        *built.marked(chat.HEAD),
        *built.plain(user),
        *built.marked(chat.TAIL),
    ]
    assert not np.diff(valid.astype(int)).min() < 0


def test_a_prompt_that_does_not_fit_is_named(built):
    with pytest.raises(UserError, match=r"prompt 'word word.*\.\.\.' has \d+ tokens"):
        chat.encode(built, ["a chair", "word " * 100], (8, 120))
