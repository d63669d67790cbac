import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax.errors import UserError
from ar3d_jax.policy.vocab import IMPOSSIBLE, Subset, Vocab


class Ids(dict):
    def get_vocab(self):
        return self


def published(codes: int = 8192) -> Ids:
    """The ids of ShapeLLM-Omni's tokenizer that matter."""
    ids = Ids({"a": 0, "<|endoftext|>": 151643, "<|im_start|>": 151644})
    ids["<|im_end|>"] = 151645
    ids |= {f"<mesh{k}>": 151665 + k for k in range(codes)}
    return Ids(ids | {"<mesh-start>": 159857, "<mesh-end>": 159858})


def test_published_ids():
    vocab = Vocab.from_tokenizer(published())
    assert (vocab.codes_start, vocab.codes) == (151665, 8192)
    assert (vocab.mesh_start, vocab.mesh_end) == (159857, 159858)
    assert (vocab.shape.start, vocab.shape.size) == (151665, 8192)
    assert vocab.text.size == 151680  # a multiple of 128, less than its 159,872 rows
    assert vocab.text.banned == (151643, 151644)


def test_text_keeps_words_and_the_end_of_turn():
    vocab = Vocab(3, 4, 5, 10, 8, 18, 19)
    logits = vocab.text.masked(jnp.zeros((1, 128)))[0]
    assert np.flatnonzero(logits == 0).tolist() == [0, 1, 2, 5]


def test_columns_are_those_of_the_ids():
    head = jnp.arange(2 * 300.0).reshape(2, 300)
    subset = Subset(250, 290)
    columns = subset.columns(head)
    assert columns.shape == (2, 128)
    np.testing.assert_array_equal(columns[:, :40], head[:, 250:290])
    masked = subset.masked(columns)
    assert (masked[:, 40:] == IMPOSSIBLE).all()
    assert Subset(0, 300).size == 384


def test_missing_and_scattered_tokens_are_refused():
    ids = published(8)
    del ids["<mesh-end>"]
    with pytest.raises(UserError, match="lacks <mesh-end>"):
        Vocab.from_tokenizer(ids)
    ids = published(8)
    ids["<mesh5>"] = 7
    with pytest.raises(UserError, match="<mesh5> of the tokenizer has id 7"):
        Vocab.from_tokenizer(ids)
