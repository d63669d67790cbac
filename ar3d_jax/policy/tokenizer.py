"""Text <-> ids: a tokenizer from a folder, and the command that builds the small one.

    python -m ar3d_jax.policy.tokenizer --texts=FILE --codes=1024 --out=DIR

`FILE` has one text per line: captions and plans. The result is a byte-level BPE with
Qwen2.5's marks and ShapeLLM-Omni's mesh tokens in the published order (codes, then
start, then end), in the files that transformers loads, like the published one. How a
prompt is put into a chat is in `chat.py`, what the ids mean in `vocab.py`.

This is the one place where the trainer imports transformers, which must not pull torch
in. Its AutoTokenizer does (transformers 5.23, through model configs), so the class of
all fast tokenizers is used directly: it needs nothing but tokenizer.json.
"""

import functools
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags

from ar3d_jax.command import run
from ar3d_jax.errors import UserError, writing
from ar3d_jax.policy.vocab import Vocab

os.environ.setdefault("USE_TORCH", "0")  # what older versions of transformers heed

TEXT_TOKENS = 1000  # bytes and merges; our choice: with 1,024 codes 2,029 ids in all
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2.5's split before BPE: contractions, words with a leading character, single
# digits, punctuation, line ends, spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Tokenizer:
    """A transformers tokenizer with the ids that this project needs.

    Attributes:
        vocab: ids of marks and codes.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.vocab = Vocab.from_tokenizer(tokenizer)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer in a Hugging Face folder.

        Raises:
            UserError: there is none, it cannot be read, or mesh tokens are missing.
        """
        from transformers import PreTrainedTokenizerFast

        if not (Path(folder) / "tokenizer.json").is_file():
            raise UserError(
                f"no tokenizer in {str(folder)!r}; expected a folder with "
                "tokenizer.json"
            )
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                str(folder), local_files_only=True
            )
        except Exception as error:  # transformers and tokenizers raise many kinds
            raise UserError(
                f"the tokenizer in {str(folder)!r} cannot be read: {error}; "
                "expected the files of a fast Hugging Face tokenizer"
            ) from error
        return cls(tokenizer)

    def plain(self, text: str) -> list[int]:
        """Ids of text in which marks and mesh tokens have no meaning.

        Raises:
            UserError: it has characters that are not Unicode's.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"text {text[:60]!r} has half a character at position {error.start}; "
                "expected Unicode text"
            ) from None
        # Mesh tokens are added tokens but not special ones: only a cut keeps their
        # written form from being read as one.
        pieces = re.split(r"(?<=<)(?=mesh)", text)
        ids = (self._ids(piece, split_special_tokens=True) for piece in pieces)
        return list(itertools.chain.from_iterable(ids))

    @functools.cache  # noqa: B019  the few fixed strings of chat.py
    def marked(self, text: str) -> list[int]:
        """Ids of text in which marks such as `<|im_end|>` are tokens."""
        return self._ids(text, split_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without marks."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files into a folder."""
        with writing(Path(folder)):
            self._tokenizer.save_pretrained(str(folder))

    def _ids(self, text: str, *, split_special_tokens: bool) -> list[int]:
        return self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=split_special_tokens
        )["input_ids"]


def build(texts: Iterable[str], *, codes: int) -> Tokenizer:
    """A byte-level BPE trained on `texts`, with marks and `codes` mesh tokens."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    fast = tokenizers.Tokenizer(models.BPE())
    fast.normalizer = tokenizers.normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    fast.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    mesh = [*(f"<mesh{code}>" for code in range(codes)), "<mesh-start>", "<mesh-end>"]
    # As published: added tokens, but not special ones.
    fast.add_tokens([AddedToken(token, special=False) for token in mesh])
    return Tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=fast,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            chat_template=_CHAT_TEMPLATE,
            clean_up_tokenization_spaces=False,
        )
    )


def _define_flags() -> None:
    flags.DEFINE_string("texts", None, "file with one text per line", required=True)
    flags.DEFINE_integer("codes", 1024, "mesh tokens: the codec's codebook", 1)
    flags.DEFINE_string("out", None, "folder to write", required=True)


def main(_: list[str]) -> None:
    """Builds the small tokenizer from a file of texts."""
    path = Path(flags.FLAGS.texts)
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}: {error}; expected UTF-8, one text per line"
        ) from error
    tokenizer = build(texts, codes=flags.FLAGS.codes)
    tokenizer.save(flags.FLAGS.out)
    print(f"{flags.FLAGS.out}: {tokenizer.vocab}")


if __name__ == "__main__":
    _define_flags()
    run(main)
