"""The names of weights: commits of Hugging Face's cache, checksums elsewhere."""

import hashlib

import pytest

from ar3d_jax.rewards.sidecar.revisions import KINDS, revision_of

COMMIT = "0a" * 20


def sha256(*contents):
    return hashlib.sha256(b"".join(contents))


@pytest.fixture
def cached(tmp_path):
    """A snapshot as huggingface_hub makes it: links to files named by content."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "deep" / "er").mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name in ("model.safetensors", "deep/er/best.pth"):
        blob = repository / "blobs" / sha256(name.encode()).hexdigest()
        blob.write_bytes(name.encode())
        (snapshot / name).symlink_to(blob)
    return snapshot


@pytest.mark.parametrize("name", ["", "model.safetensors", "deep/er/best.pth", "deep"])
def test_in_the_cache_it_is_the_commit(cached, name):
    assert revision_of(cached / name) == COMMIT


def test_a_link_to_the_cache_and_a_path_from_here(cached, tmp_path, monkeypatch):
    (tmp_path / "weights").symlink_to(cached)
    assert revision_of(tmp_path / "weights") == COMMIT
    assert revision_of(tmp_path / "weights" / "model.safetensors") == COMMIT
    monkeypatch.chdir(cached)
    (here,) = cached.glob("*.safetensors")
    assert revision_of(here.relative_to(cached)) == COMMIT


def test_a_folder_of_that_name_is_no_cache(tmp_path):
    folder = tmp_path / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "a.pt").write_bytes(b"a")
    assert revision_of(folder) == f"sha256:{sha256(b'a').hexdigest()[:12]}"


def test_of_a_file_it_is_the_start_of_what_sha256sum_prints(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"abc")
    assert revision_of(path) == "sha256:ba7816bf8f01"  # FIPS 180-2's example
    # A folder of this file is the same weights.
    (tmp_path / "config.json").write_text("{}")
    assert revision_of(tmp_path) == "sha256:ba7816bf8f01"


def test_of_several_files_it_is_of_their_digests(tmp_path):
    for kind, name in zip(KINDS, "dacb", strict=True):
        (tmp_path / f"{name}{kind}").write_bytes(name.encode())
    (tmp_path / "tokenizer.json").write_text("plays no part")
    (tmp_path / "folder").mkdir()
    found = revision_of(tmp_path)
    digests = [sha256(name.encode()).digest() for name in "abcd"]
    assert found == f"sha256:{sha256(*digests).hexdigest()[:12]}"
    (tmp_path / f"d{KINDS[0]}").write_bytes(b"other")
    assert revision_of(tmp_path) != found
