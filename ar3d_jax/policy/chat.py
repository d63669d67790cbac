"""How a prompt becomes tokens: ChatML, the template, and Hi-GRPO's two instructions.

The template is the one the published models are prompted with; bare captions make them
chat instead of writing shape tokens. The paper describes the two instructions (concise
semantic plan of the global shape; detailed local description, given prompt and plan)
but does not print them: these are ours, short because a prompt is computed for every
group. Loading a tokenizer is in `tokenizer.py`.
"""

import dataclasses
from collections.abc import Sequence as Texts
from typing import Any

import jax
import numpy as np

from ar3d_jax.errors import UserError
from ar3d_jax.policy.tokenizer import Tokenizer

TEMPLATE = "Please generate a 3D mesh based on the prompt I provided: {prompt}"
HIGH = "Plan its global shape first: kind, parts, proportions."
LOW = "Describe its details first: each part in precise geometry."

# Qwen2.5's ChatML, with the system turn it inserts when none is given.
HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
NEXT_TURN = "\n<|im_start|>user\n"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """A batch of prompts as tokens, padded on the left to one of the compiled lengths.

    Arrays are NumPy's until a jitted function takes them.

    Attributes:
        high: chat with the instruction for the global plan.
        high_valid: False for padding.
        low: chat with the instruction for the local plan.
        low_valid: False for padding.
        low_turn: that instruction as a second turn, after a global plan.
    """

    high: Any  # B T, int32
    high_valid: Any  # B T, bool
    low: Any  # B T, int32
    low_valid: Any  # B T, bool
    low_turn: Any  # T, int32


def chat(tokenizer: Tokenizer, prompt: str, instruction: str = "") -> list[int]:
    """The user's turn with a prompt, up to where the model's answer begins.

    The prompt is plain text: special tokens in it are not read as such.
    """
    content = "\n".join(filter(None, (TEMPLATE.format(prompt=prompt), instruction)))
    return [
        *tokenizer.marked(HEAD),
        *tokenizer.plain(content),
        *tokenizer.marked(TAIL),
    ]


def next_turn(tokenizer: Tokenizer, instruction: str) -> list[int]:
    """A further user turn, after the end of the model's answer."""
    return tokenizer.marked(f"{NEXT_TURN}{instruction}{TAIL}")


def encode(tokenizer: Tokenizer, texts: Texts[str], lengths: Texts[int]) -> Prompts:
    """Prompts as tokens, as long as the smallest of `lengths` that holds them all.

    Raises:
        UserError: a prompt does not fit the largest length.
    """
    high, low = (
        [chat(tokenizer, text, which) for text in texts] for which in (HIGH, LOW)
    )
    needed = [max(map(len, rows)) for rows in zip(high, low, strict=True)]
    length = _fitting(texts, needed, lengths)
    return Prompts(
        *padded(high, length),
        *padded(low, length),
        np.asarray(next_turn(tokenizer, LOW), np.int32),
    )


def encode_direct(
    tokenizer: Tokenizer, texts: Texts[str], lengths: Texts[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of one-step models, which answer with a shape: tokens and valid, [B, T].

    Raises:
        UserError: as `encode`.
    """
    rows = [chat(tokenizer, text) for text in texts]
    return padded(rows, _fitting(texts, list(map(len, rows)), lengths))


def _fitting(texts: Texts[str], needed: Texts[int], lengths: Texts[int]) -> int:
    """The smallest length that holds what all texts need."""
    longest = int(np.argmax(needed))
    if needed[longest] > lengths[-1]:
        text = texts[longest]
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise UserError(
            f"prompt {shown!r} has {needed[longest]} tokens with its instruction; "
            f"at most {lengths[-1]} fit: shorten it, or raise rollout.prompt_tokens"
        )
    return next(length for length in lengths if length >= needed[longest])


def padded(rows: Texts[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as [B, T], padded on the left, and which entries are valid."""
    tokens = np.zeros((len(rows), length), np.int32)
    valid = np.zeros((len(rows), length), bool)
    for row, ids in enumerate(rows):
        tokens[row, length - len(ids) :] = ids
        valid[row, length - len(ids) :] = True
    return tokens, valid
