"""Every type of number, by hand."""

import pytest
import torch

from ar3d_jax.rewards.sidecar import wrong_tensors

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_one_number_decides(dtype, monkeypatch):
    monkeypatch.setattr(wrong_tensors, "PIECE", 5)  # the number is in the second piece
    limits = torch.finfo(dtype)
    for value, problem in (
        (torch.nan, "with numbers that are not finite"),
        (-torch.inf, "with numbers that are not finite"),
        (-0.0, "that is all zeros"),
        (limits.smallest_normal, ""),
        (-limits.smallest_normal, ""),
        (limits.max, ""),
        (limits.min, ""),
    ):
        tensor = torch.zeros(4, 3, dtype=dtype)
        tensor[2, 1] = value
        for some in (tensor, tensor.T):
            found = wrong_tensors.problem_of("x", some)
            assert found == (problem and f"has a tensor x {problem}")


def test_what_may_be_zeros():
    for tensor in (torch.zeros(4), torch.zeros(1, 1, 4), torch.zeros(3, 4, dtype=int)):
        assert not wrong_tensors.problem_of("x", tensor)
    assert not wrong_tensors.problem_of("x", torch.zeros(0, 4))
    assert wrong_tensors.problem_of("x", torch.tensor(torch.nan))
