"""Which paths belong to a run, on one host and several."""

import dataclasses

import pytest

from ar3d_jax import contents, hosts, same_run
from ar3d_jax.config import CodecConfig, Config, PolicyConfig, RenderConfig, to_dict
from ar3d_jax.errors import UserError


def test_every_path_is_compared_as_a_text_too():
    kept = same_run.settings(Config())
    assert set(same_run.PATHS) <= set(kept)
    assert not {name for name in kept if name in same_run.FREE}


def test_every_path_that_is_there_is_held(tmp_path, monkeypatch):
    files = {name: tmp_path / f"{name}.json" for name in same_run.PATHS}
    for name, file in files.items():
        file.write_text(name)
    values = same_run._flat(to_dict(Config())) | {n: str(f) for n, f in files.items()}
    monkeypatch.setattr(same_run, "_flat", lambda _: values)
    assert same_run.held(Config()) == {
        name: (str(file), contents.digest(file)) for name, file in files.items()
    }


def test_what_the_package_ships_is_not_held(tmp_path, monkeypatch):
    """Even where a folder has its name."""
    monkeypatch.chdir(tmp_path)
    for name in ("catalog", "embedded"):
        (tmp_path / name).mkdir()
    assert same_run.held(Config()) == {}


def test_of_an_id_the_commit_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, commit in (("owner--policy", "abc123"), ("owner--codec", "def456")):
        refs = tmp_path / f"models--{name}" / "refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text(commit)
        (refs / "dev").write_text("fed789\n")
    config = dataclasses.replace(
        Config(),
        policy=PolicyConfig(weights="owner/policy@dev"),
        codec=CodecConfig(weights="owner/codec"),
        render=RenderConfig(),
    )
    assert same_run.held(config) == {
        "policy.weights": ("owner/policy@dev", "fed789"),
        "codec.weights": ("owner/codec", "def456"),
    }
    absent = PolicyConfig(weights="owner/policy@0123abc")  # a commit needs no digest
    assert same_run.held(dataclasses.replace(Config(), policy=absent)) == {}


def test_hosts_that_hold_different_things_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "p.txt"
    file.write_text("a chair")
    config = dataclasses.replace(Config(), prompts=str(file))
    asked = []
    monkeypatch.setattr(hosts, "agree", lambda number: asked.append(number) or True)
    same_run.held(config)
    assert asked[0] == int(contents.digest(file)[:6], 16)
    assert asked[1:] == [0] * (len(same_run.PATHS) - 1)
    monkeypatch.setattr(hosts, "agree", lambda number: number == 0)
    with pytest.raises(UserError, match=f"prompts={file} holds something else on anot"):
        same_run.held(config)
