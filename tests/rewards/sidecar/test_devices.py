"""Where models compute: each line that refuses a device, and what `auto` means."""

import os

import pytest
import torch

from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import devices

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(params=[0, 2])
def gpus(request, monkeypatch):
    """How many there are, as PyTorch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


def test_auto_is_the_first_gpu_or_the_cpu(gpus):
    assert devices.device_of("auto", "f") == (GPU if gpus else CPU)


def test_a_device_that_is_there(gpus):
    assert devices.device_of("cpu", "f") == CPU
    for name in ("cuda", "cuda:0", "cuda:1")[: 3 * bool(gpus)]:
        assert devices.device_of(name, "f") == torch.device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:first", "cuda:-1", "mps", "meta"])
def test_what_is_no_device_is_one_line(gpus, name):
    with pytest.raises(UserError) as caught:
        devices.device_of(name, "rewards.x.device")
    assert str(caught.value) == (
        f"config field rewards.x.device is {name!r}; expected auto, cpu or cuda:0"
    )


@pytest.mark.parametrize(
    ("name", "enough"), [("cuda", 1), ("cuda:0", 1), ("cuda:2", 3)]
)
def test_a_gpu_that_is_not_there_is_one_line(gpus, name, enough):
    if gpus >= enough:
        assert devices.device_of(name, "f").type == "cuda"
        return
    with pytest.raises(UserError) as caught:
        devices.device_of(name, "rewards.x.device")
    assert str(caught.value) == (
        f"config field rewards.x.device is {name!r}, and PyTorch sees {gpus} GPUs; "
        "expected auto, cpu or one that is there"
    )


@pytest.mark.parametrize(
    ("name", "on_cpu", "on_gpu"),
    [
        ("auto", torch.float32, torch.bfloat16),
        ("float16", torch.float16, torch.float16),
        ("bfloat16", torch.bfloat16, torch.bfloat16),
        ("float32", torch.float32, torch.float32),
    ],
)
def test_auto_is_the_published_type_on_a_gpu_only(name, on_cpu, on_gpu):
    assert devices.dtype_of(name, CPU, torch.bfloat16) == on_cpu
    assert devices.dtype_of(name, GPU, torch.bfloat16) == on_gpu


def test_memory_is_given_back_where_there_is_a_gpu(gpus, monkeypatch):
    given = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(1))
    devices.empty()
    assert len(given) == bool(gpus)


def test_a_start_makes_numbers_repeat(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(False)
    devices.start(2)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # as deterministic
    devices.start(1)
    assert torch.get_num_threads() == 1
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
