"""Objects per second of an evaluation: drawing, and each feature set at full size.

    python -m benchmarks.evaluation --sets=clip_b32,dinov2_b14,inception

Mesh files of about 10,000 triangles go the way of `evaluate.py`: two render workers, 8
views of 512 px, then the networks' process, one set after the other. Networks have the
published layout and sizes and random weights (`write_weights`), which take the same
time and memory as real ones; `embedded` is the shipped judge. By set:

- `objects_per_s`: the networks' process alone, pictures resized and vectors written;
- `together_per_s`: from `submit` to `collect`, drawing beside it;
- `share`: the set's seconds among them and the workers' together;
- `peak_mib` of that process, and `gpu_mib` where there is a GPU;
- `library_per_s`, the peer in the same run: transformers' own processor and model, one
  view after the other, from the same files (Inception: no library has it);
- `limit_per_s`: the network's multiplications at the speed of one large float32 matrix
  product on the same device with as many threads.

Prints one JSON line.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from ar3d_jax import weights
from ar3d_jax.codec.surface import extract, to_glb
from ar3d_jax.config import FeaturesConfig, FeatureWeightsConfig, RenderConfig
from ar3d_jax.rewards.feature_sets import FEATURE_SETS
from ar3d_jax.rewards.measuring import Measuring
from ar3d_jax.rewards.sidecar.features import networks
from ar3d_jax.rewards.sidecar.features.inception import FidInception
from ar3d_jax.rewards.sidecar.features.pictures import Pictures
from benchmarks.render import objects

CAPTION = "a wooden chair with four legs and a curved back"
MATRIX = 2048  # large enough for full speed, small enough for any device
CLIP_SIZES = {  # width, layers and heads of text and pictures
    "clip_b32": ((512, 12, 8), (768, 12, 12)),
    "clip_l14": ((768, 12, 12), (1024, 24, 16)),
}
DINO_LAYERS = {"dinov2_b14": 12, "dinov2_l14": 24}


def write_weights(name: str, folder: Path) -> Path:
    """A random network of the set `name` in the published layout; its path."""
    kind = FEATURE_SETS[name]
    if name == "embedded":
        return weights.resolve("embedded", "features.weights.embedded")
    if name == "inception":
        state = FidInception().state_dict()
        state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
        torch.save(state, folder / "inception.pth")
        return folder / "inception.pth"
    if name in DINO_LAYERS:
        config = transformers.Dinov2Config(
            hidden_size=kind.dim,
            num_hidden_layers=DINO_LAYERS[name],
            num_attention_heads=kind.dim // 64,
            image_size=518,
            patch_size=kind.patch,
        )
        transformers.Dinov2Model(config).save_pretrained(folder)
        return folder
    text, pictures = (
        {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "projection_dim": kind.dim,
        }
        for width, layers, heads in CLIP_SIZES[name]
    )
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config=pictures | {"patch_size": kind.patch},
        projection_dim=kind.dim,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    transformers.CLIPTokenizer(vocabulary, []).save_pretrained(folder)
    return folder


def library_s(name: str, path: Path, views: np.ndarray, device: str) -> float | None:
    """Seconds per object of transformers itself, view by view; None: has none."""
    if name.startswith("clip"):
        model = transformers.CLIPModel.from_pretrained(path).to(device)
        processor = transformers.CLIPImageProcessorPil()
        look = model.get_image_features
    elif name.startswith("dinov2"):
        model = transformers.Dinov2Model.from_pretrained(path).to(device)
        processor = transformers.BitImageProcessorPil(
            size={"height": 224, "width": 224}, do_center_crop=False
        )
        look = model
    else:
        return None
    seconds = []
    with torch.inference_mode():
        for _ in range(2):  # the first is warming up
            started = time.perf_counter()
            for view in views:
                look(**processor(view, return_tensors="pt").to(device))[0].cpu()
            seconds.append(time.perf_counter() - started)
    return seconds[-1]


def limit_s(name: str, path: Path, views: np.ndarray, device: str) -> float:
    """Seconds per object that its multiplications take at a matrix product's speed."""
    network = networks.load(name, str(path), device)
    with FlopCounterMode(display=False) as counter:
        network.embed_views(Pictures(views))
    factors = torch.randn(2, MATRIX, MATRIX, device=device)
    best = np.inf
    for _ in range(5):
        started = time.perf_counter()
        (factors[0] @ factors[1])[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return counter.get_total_flops() * best / (2 * MATRIX**3)


def gpu_mib(pid: int) -> int | None:
    """Memory that the process holds on the GPU; torch keeps what it once took."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory"]
    try:
        lines = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    used = dict(line.split(", ") for line in lines)
    return int(used[str(pid)]) if str(pid) in used else None


def peak_mib(pid: int) -> int:
    """The largest memory of a process so far."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM:")) // 1024


def per_s(seconds: float | None) -> float | None:
    """Objects per second, to three digits."""
    return None if seconds is None else float(f"{1 / seconds:.3g}")


def measure(
    name: str,
    meshes: list[Path],
    folder: Path,
    render: RenderConfig,
    options: argparse.Namespace,
) -> tuple[dict[str, float | int | None], float]:
    """The row of a set, and drawing's seconds per object and worker."""
    path = write_weights(name, folder)
    features = FeaturesConfig(
        sets=(name,),
        weights=FeatureWeightsConfig(**{name: str(path)}),
        threads=options.threads,
        device=options.device,
    )
    slots, count = 4 * render.workers, len(meshes)
    with Measuring(render, features, {name: str(path)}, slots, folder) as measuring:
        few = measuring.submit(meshes[:2], [CAPTION] * 2, keep_views=True)
        views = measuring.collect(few)[0].views  # and warm
        assert views is not None
        started = time.perf_counter()
        ticket = measuring.submit(meshes, [CAPTION] * count)
        found = measuring.collect(ticket)
        together = (time.perf_counter() - started) / count
        problems = {one.failure or one.reasons.get(name) for one in found} - {None}
        assert not problems, problems
        pid = measuring.processes["sidecar"]["pid"]
        memory, on_gpu = peak_mib(pid), gpu_mib(pid)
    torch.set_num_threads(options.threads)
    there = torch.cuda.is_available() and options.device != "cpu"
    device = "cuda" if there else "cpu"
    seconds = ticket.answer_s / count
    row = {
        "objects_per_s": per_s(seconds),
        "together_per_s": per_s(together),
        "share": round(ticket.answer_s / (ticket.answer_s + ticket.draw_s), 3),
        "peak_mib": memory,
        "gpu_mib": on_gpu,
        "library_per_s": per_s(library_s(name, path, views, device)),
        "limit_per_s": per_s(limit_s(name, path, views, device)),
    }
    return row, ticket.draw_s / count


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(FEATURE_SETS), help="a,b,c")
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--size", type=int, default=512, help="pixels of a view")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    load = os.getloadavg()[0]
    render = RenderConfig(
        views=options.views, size=options.size, workers=options.workers
    )
    rows, drawing = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        meshes = [folder / f"{index}.glb" for index in range(options.objects)]
        for path, logits in zip(meshes, objects(options.objects), strict=True):
            to_glb(extract(logits), path)
        for each in options.sets.split(","):
            with tempfile.TemporaryDirectory() as own:
                row, seconds = measure(each, meshes, Path(own), render, options)
            rows[each] = row
            drawing.append(seconds)
    result = {
        "benchmark": "evaluation",
        "drawn_per_s": per_s(float(np.median(drawing)) / options.workers),
        "sets": rows,
        **{k: v for k, v in vars(options).items() if k != "sets"},
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_before": round(load, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
