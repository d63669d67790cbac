"""Where weights come from, without a network."""

import pytest

from ar3d_jax.errors import UserError
from ar3d_jax.weights import EMBEDDED, resolve


def test_shipped_and_local(tmp_path):
    assert resolve("embedded", "policy.weights") == EMBEDDED / "policy"
    assert resolve(str(tmp_path), "codec.weights") == tmp_path


def test_neither_path_nor_id():
    with pytest.raises(UserError, match="no such file or folder"):
        resolve("/nowhere/at/all", "policy.weights")


def test_published_and_cached(tmp_path, monkeypatch):
    """What the hub's cache holds is found without a network."""
    asked = []

    def snapshot(repository, *, revision, allow_patterns):
        asked.append((repository, revision, tuple(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert resolve("owner/codec@v1", "codec.weights") == tmp_path
    assert asked == [("owner/codec", "v1", ("*.safetensors", "*.bin"))]


def test_published_and_not_to_be_had(monkeypatch):
    """The one line says how to get the files and what to pass then."""

    def offline(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError) as caught:
        resolve("owner/name", "policy.weights")
    message = str(caught.value)
    assert "hf download owner/name --local-dir DIR" in message
    assert "--config.policy.weights=DIR" in message
    assert "no route" in message
    assert "\n" not in message


def test_adapters_are_refused_for_every_field(tmp_path):
    """transformers would load the base that adapter_config.json names, wherever."""
    (tmp_path / "adapter_config.json").touch()
    for field in ("policy.weights", "rewards.qwen_vl.model"):
        with pytest.raises(UserError, match=f"^{field}: .*and no weights of a model"):
            resolve(str(tmp_path), field)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        UserError, match=r"adapter_config\.json, beside .* or remove it"
    ):
        resolve(str(tmp_path), "policy.weights")
