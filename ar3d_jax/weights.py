"""Where weights are: in the package, at a path, or published on Hugging Face.

For the last, huggingface_hub does the work, with its own settings: HF_HOME for the
cache, HF_TOKEN for what is not public, HF_HUB_OFFLINE=1 for no network.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from ar3d_jax.errors import UserError

EMBEDDED = Path(__file__).parent / "assets" / "tiny"

# By config field: what `embedded` means, and which files of a repository are wanted.
_ENCODER = ["model.safetensors", "*.json", "*.txt"]
_DECODER = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
_SHIPPED = {
    "policy.weights": EMBEDDED / "policy",
    "codec.weights": EMBEDDED / "codec.safetensors",
    "features.weights.embedded": EMBEDDED / "judge.safetensors",
}
_WANTED = {
    "policy.weights": _DECODER,
    "codec.weights": ["*.safetensors", "*.bin"],
    # The one encoder whose repository has no safetensors.
    "features.weights.clip_b32": [*_ENCODER, "pytorch_model.bin"],
    "features.weights.clip_l14": _ENCODER,
    "features.weights.dinov2_b14": _ENCODER,
    "features.weights.dinov2_l14": _ENCODER,
    "rewards.hps_v2_1.weights": ["HPS_v2.1_compressed.pt"],
    "rewards.shapellm.weights": ["*.json", "pytorch_model-*.bin", "tokenizer.model"],
    "rewards.shapellm.encoder": ["zeroshot/large/best_lvis.pth"],
    "rewards.unified_think.model": _DECODER,
    "rewards.unified_2.model": _DECODER,
    "rewards.qwen_vl.model": _DECODER,
}
_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def resolve(source: str, field: str) -> Path:
    """The file or folder that a config field names, downloaded where it is not here.

    Args:
        source: `embedded`, a path, `owner/name` or `owner/name@revision`.
        field: which one; see `_WANTED`.

    Raises:
        UserError: there is no such path, and it cannot be had from Hugging Face; or it
            is an adapter.
    """
    shipped = source == "embedded" and field in _SHIPPED
    path = _SHIPPED[field] if shipped else Path(source)
    if path.exists():
        refuse_adapter(path, f"{field}: ")
        return path
    if field not in _WANTED or not _ID.fullmatch(source):
        wanted = "a path" + " or a Hugging Face id, owner/name" * (field in _WANTED)
        raise UserError(
            f"{field} is {source!r}: there is no such file or folder; expected {wanted}"
        )
    from huggingface_hub import snapshot_download

    repository, _, revision = source.partition("@")
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=_WANTED[field]
        )
    except Exception as error:  # of the hub's, of HTTP's, of the disk: many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"{field} is {source!r}: not a path here, and Hugging Face does not give "
            f"it ({reason}); where there is a network, run `hf download {repository} "
            f"--local-dir DIR`, then pass --config.{field}=DIR"
        ) from error
    refuse_adapter(Path(folder), f"{field}: ")
    return Path(folder)


def commit_of(source: str) -> str:
    """The commit of a Hugging Face id that was fetched; "" of anything else."""
    if Path(source).exists() or not _ID.fullmatch(source):
        return ""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository, _, revision = source.partition("@")
    folder = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    branch = folder / "refs" / (revision or "main")  # of a commit there is none
    return branch.read_text().strip() if branch.is_file() else ""


def refuse_adapter(folder: Path, where: str = "") -> None:
    """Refuses a folder with an adapter (PEFT's): nobody here would apply it.

    Args:
        folder: of weights; a file passes.
        where: what the message begins with.

    Raises:
        UserError: it has one, alone or beside a model.
    """
    adapter = next(folder.glob("adapter_*"), None) if folder.is_dir() else None
    if adapter is None:
        return
    files = [file for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind)]
    alone = all(file.name.startswith("adapter_") for file in files)
    beside = "and no weights of a model" if alone else "beside the weights of a model"
    remedy = "" if alone else ", or remove it if the model is meant without"
    raise UserError(
        f"{where}{folder} has an adapter, {adapter.name}, {beside}; expected whole "
        f"weights: merge it into its base first (PEFT's merge_and_unload){remedy}"
    )


def resolve_all(sources: Mapping[str, str]) -> list[Path]:
    """As `resolve`, of sources by field; what is missing is said all at once.

    Raises:
        UserError: some cannot be had.
    """
    places, problems = [], []
    for field, source in sources.items():
        try:
            places.append(resolve(source, field))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; and ".join(problems))
    return places
