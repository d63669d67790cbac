"""Short texts that say the same: equal up to word order, articles, plural or spelling.

Two texts are near-duplicates if the sets of three-letter pieces of their words overlap
by `THRESHOLD` or more (Jaccard: shared over all). `NearDuplicates` finds them exactly:
an inverted index gives the texts that share a piece, and numpy counts how many they
share; texts without a common piece cost nothing, and no pair is compared in Python.
Who must not resemble whom is decided in `build_prompts.py` and in the tests of the
shipped sets.
"""

import array
import collections
import functools
import re
from collections.abc import Iterable

import numpy as np

THRESHOLD = 0.7  # our choice: one word of eight may differ, one of four may not
# Words that tell no two objects apart.
_EMPTY = {"a", "an", "the", "of", "with", "and", "in", "on", "at", "to", "by", "as"}
_EMPTY |= {"is", "are", "it", "its", "this", "that"}


@functools.lru_cache(1 << 16)
def _word_pieces(word: str) -> frozenset[str]:
    """Of "legs": "^le", "leg", "eg$". Without a plural s, with both ends marked."""
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    marked = f"^{word}$"
    return frozenset(marked[i : i + 3] for i in range(len(marked) - 2))


def pieces(text: str) -> frozenset[str]:
    """The three-letter pieces of a text's words; case and punctuation do not count."""
    words = re.findall(r"\w+", text.casefold())
    kept = [word for word in words if word not in _EMPTY] or words
    return frozenset[str]().union(*map(_word_pieces, kept))


def similarity(a: str, b: str) -> float:
    """Shared pieces over all pieces, 0 to 1; 0 for a text without a word."""
    first, second = pieces(a), pieces(b)
    return len(first & second) / (len(first | second) or 1)


class NearDuplicates:
    """Texts to compare with; `find` names the one that another text resembles.

    Attributes:
        texts: All texts so far, in the order they were added.
    """

    def __init__(self, texts: Iterable[str] = (), threshold: float = THRESHOLD):
        """Indexes `texts`; `add` adds more.

        Args:
            texts: to compare with.
            threshold: the share of pieces, above 0 and up to 1.
        """
        self.texts: list[str] = []
        self._threshold = threshold
        self._sizes = array.array("i")  # pieces of each text
        self._index = collections.defaultdict(lambda: array.array("i"))
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Adds one text to compare with."""
        found = pieces(text)
        for piece in found:
            self._index[piece].append(len(self.texts))
        self.texts.append(text)
        self._sizes.append(len(found))

    def find(self, text: str) -> int | None:
        """The index in `texts` of the most similar one, if it reaches the threshold.

        The first of several equally similar ones.
        """
        found = pieces(text)
        lists = [
            np.frombuffer(self._index[piece], np.int32)
            for piece in found
            if piece in self._index
        ]
        if not lists:
            return None
        shared = np.bincount(np.concatenate(lists), minlength=len(self.texts))
        sizes = np.frombuffer(self._sizes, np.int32)
        share = shared / (sizes + len(found) - shared)
        best = int(share.argmax())
        return best if share[best] >= self._threshold else None
