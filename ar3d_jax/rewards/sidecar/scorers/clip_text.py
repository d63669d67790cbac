"""CLIP's tokens of a prompt, from the vocabulary that is shipped.

A checkpoint in open_clip's layout comes without tokenizer files. The byte pair file is
OpenAI's, `assets/clip`; the splitting is that of transformers' `CLIPTokenizer`. What
open_clip does to a text first is `clean`.
"""

import gzip
import html
import unicodedata
from pathlib import Path

import transformers
from tokenizers import pre_tokenizers

MERGES = Path(__file__).parents[3] / "assets/clip/bpe_simple_vocab_16e6.txt.gz"
START, END = 49406, 49407  # the last ids
LONGEST = 77  # tokens, both ends included

_QUOTES = str.maketrans(
    "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", "''''\"\"\"\""
)


def clean(text: str) -> str:
    """The text as open_clip's tokenizer cleans it: repaired, unescaped, lower case.

    open_clip repairs with ftfy. Here is what that does to a text that nobody broke:
    straight quotes and NFC; our choice because a score must not depend on what else is
    installed. ASCII comes out equal, control characters aside; mojibake, ligatures and
    full-width letters stay as they are.
    """
    text = unicodedata.normalize("NFC", text.translate(_QUOTES))
    text = html.unescape(html.unescape(text))  # twice: "&amp;amp;" is common on the web
    return " ".join(text.split()).lower()


class ClipTokenizer:
    """OpenAI's 49,408 tokens."""

    def __init__(self) -> None:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = [*letters, *(f"{letter}</w>" for letter in letters)]
        with gzip.open(MERGES, "rt", encoding="utf-8") as file:
            next(file)  # a title
            # The file has five times as many: CLIP uses those that fit.
            pairs = [tuple(next(file).split()) for _ in range(START - len(words))]
        words += ["".join(pair) for pair in pairs]
        words += ["<|startoftext|>", "<|endoftext|>"]
        vocabulary = {word: index for index, word in enumerate(words)}
        self._tokenizer = transformers.CLIPTokenizer(vocabulary, pairs)  # pyright: ignore

    def __call__(self, text: str) -> list[int]:
        """Ids from START to END, without padding.

        Of a longer text the first 76 are kept and END, as open_clip does.
        """
        ids = self._tokenizer(clean(text), verbose=False)["input_ids"]
        return ids if len(ids) <= LONGEST else [*ids[: LONGEST - 1], END]
