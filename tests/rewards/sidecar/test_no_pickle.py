"""Nothing that a file holds is run: what the source never calls, and what files try."""

import ast
import contextlib
import pathlib
import pickle

import pytest
import torch

from ar3d_jax.config import RewardsConfig
from ar3d_jax.config_rewards import HpsConfig, JudgeConfig, ShapeLlmConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.feature_sets import FEATURE_SETS
from ar3d_jax.rewards.sidecar import unpickle
from ar3d_jax.rewards.sidecar.chat_local import LocalChat
from ar3d_jax.rewards.sidecar.features import networks
from ar3d_jax.rewards.sidecar.scorers import hps_v2_1, recon, shapellm
from tests.rewards import tiny_qwen
from tests.rewards.sidecar import published_shapellm
from tests.rewards.sidecar.features import published

PACKAGE = pathlib.Path(__file__).parents[3] / "ar3d_jax"
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
PICKLES |= {"marshal", "pickletools", "jsonpickle"}
# The last two make torch.load's weights_only call what they name.
NEVER = {"trust_remote_code", "eval", "exec", "add_safe_globals", "safe_globals"}


def faults(source):
    """What a source must not do, as (line, what)."""
    return [
        (node.lineno, what)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt | ast.expr)
        for what in _faults_of(node)
    ]


def _faults_of(node):
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Call):
        yield from _faults_of_call(node)
    elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
        yield "trust_remote_code"
    for name in names:
        if name.split(".")[0] in PICKLES or name in ("torch.load", "numpy.load"):
            yield f"import {name}"


def _faults_of_call(call):
    """The names that a call has, and the two functions that may read pickles."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    options = {word.arg: ast.unparse(word.value) for word in call.keywords}
    called = {name} if not owner or name.endswith("globals") else set()
    yield from sorted((called | options.keys() - {None}) & NEVER)
    if name == "load" and owner.split(".")[-1] == "torch":
        if options.get("weights_only") != "True":
            yield "torch.load"
    elif options.get("allow_pickle", "False") != "False":
        yield "allow_pickle"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", "import pickle"),
        ("import pickle as p\np.load(f)", "import pickle"),
        ("from pickle import loads", "import pickle.loads"),
        ("from joblib import load", "import joblib.load"),
        ("from torch import load", "import torch.load"),
        ("torch.load(f)", "torch.load"),
        ("torch.load(f, weights_only=False)", "torch.load"),
        ("torch.load(f, weights_only=wanted)", "torch.load"),
        ("torch.load(f, **options)", "torch.load"),
        ("torch.serialization.add_safe_globals([f])", "add_safe_globals"),
        ("np.load(f, allow_pickle=True)", "allow_pickle"),
        ("numpy.load(f, allow_pickle=wanted)", "allow_pickle"),
        ("m.from_pretrained(f, trust_remote_code=False)", "trust_remote_code"),
        ("options = {'trust_remote_code': True}", "trust_remote_code"),
        ("eval('1')", "eval"),
        ("exec('1')", "exec"),
    ],
)
def test_the_search_finds(source, what):
    assert what in [each for _, each in faults(f"\n{source}")]


def test_the_search_lets_pass():
    source = """
import torch
model.eval()
torch.load(f, weights_only=True)
np.load(f)
np.load(f, allow_pickle=False)
json.load(f)
"""
    assert faults(source) == []


def test_the_package_reads_no_pickles_and_runs_no_text():
    sources = sorted(PACKAGE.rglob("*.py"))
    assert len(sources) > 100
    found = {str(p): faults(p.read_text("utf-8")) for p in sources}
    assert {path: what for path, what in found.items() if what} == {}


class Malicious:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self.mark,)


def _hps(folder):
    path = folder / hps_v2_1.FILE
    config = RewardsConfig(hps_v2_1=HpsConfig(weights=str(folder)))
    return path, lambda: hps_v2_1.load(config)


def _shapellm(shard):
    def make(folder):
        published_shapellm.folder(folder / "llm")
        published_shapellm.encoder(folder / recon.PUBLISHED)
        own = ShapeLlmConfig(weights=str(folder / "llm"), encoder=str(folder))
        path = folder / "llm" / f"pytorch_model-0000{shard}-of-00002.bin"
        return path, lambda: shapellm.load(RewardsConfig(shapellm=own))

    return make


def _recon(folder):
    published_shapellm.folder(folder / "llm")
    path = folder / recon.PUBLISHED
    path.parent.mkdir(parents=True)
    own = ShapeLlmConfig(weights=str(folder / "llm"), encoder=str(folder))
    return path, lambda: shapellm.load(RewardsConfig(shapellm=own))


def _judge(folder):
    """Judges read safetensors only."""
    tiny_qwen.make(folder)
    (folder / "model.safetensors").unlink()
    config = JudgeConfig(model=str(folder))
    return folder / "pytorch_model.bin", lambda: LocalChat(config, "rewards.qwen_vl", 1)


def _network(name, file):
    def make(folder):
        if name.startswith("clip"):
            published.clip(folder, dim=FEATURE_SETS[name].dim)
        if name.startswith("dinov2"):
            published.dinov2(folder)
        (folder / "model.safetensors").unlink(missing_ok=True)
        place = folder if file == "pytorch_model.bin" else folder / file
        return folder / file, lambda: networks.load(name, str(place), "cpu")

    return make


def _codec(folder):
    """Of `ar3d_jax/codec/`, which starts this as a process."""
    path = folder / "3DVQVAE.bin"

    def load():
        status = unpickle.main(str(path), str(folder / "codec.safetensors"))
        assert status == 2
        assert not (folder / "codec.safetensors").exists()

    return path, load


READERS = {
    "HPS v2.1": _hps,
    "ShapeLLM's first": _shapellm(1),
    "ShapeLLM's second": _shapellm(2),
    "ReCon++": _recon,
    "a judge": _judge,
    "clip_b32": _network("clip_b32", "pytorch_model.bin"),
    "dinov2_b14": _network("dinov2_b14", "pytorch_model.bin"),
    "dinov2_l14 of torch.hub": _network("dinov2_l14", "dinov2_vitl14_pretrain.pth"),
    "inception": _network("inception", "pt_inception.pth"),
    "codec": _codec,
}
FORMATS = {
    "zip": torch.save,
    "2019": lambda content, path: torch.save(
        content, path, _use_new_zipfile_serialization=False
    ),
    "plain": lambda content, path: path.write_bytes(pickle.dumps(content)),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_would_run_something_is_refused(reader, tmp_path, capsys):
    mark = tmp_path / "mark"
    folder = tmp_path / "published"
    folder.mkdir()
    path, load = READERS[reader](folder)
    harm, fine = Malicious(mark), torch.zeros(1)
    # Everywhere, as a tensor, and where no reader looks.
    contents = [harm, {"a": harm}, {"a": fine, "epoch": harm}]
    contents += [{k: {"a": fine, "b": harm}} for k in ("state_dict", "base_model")]
    for write in FORMATS.values():
        for content in contents:
            write(content, path)
            line = _refusal(load, capsys)
            assert not mark.exists()
            assert "\n" not in line
            said = {"a judge": "cannot be loaded (OSError", "codec": " "}
            assert said.get(reader, f"{path} cannot be read (") in line
            # It was what it should be; a plain pickle is found out too late.
            with contextlib.suppress(RuntimeError):
                torch.load(path, weights_only=False)
            mark.unlink()


def _refusal(load, capsys):
    """The line that a user sees."""
    try:
        load()
    except UserError as error:
        return str(error)
    return capsys.readouterr().err.removesuffix("\n")
