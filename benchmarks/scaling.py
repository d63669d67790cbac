"""How long a step of the 7B run should take on TPUs: a model, one JSON line per row.

    python -m benchmarks.scaling

Arithmetic only, from the config's sizes and `compile_check.CHIPS`; nothing is measured
here, and docs/scaling.md says so. What is counted, per chip:

* decoding: bytes of weights and cache over the memory's bandwidth, or products over the
  arithmetic rate if longer, plus LATENCY_S for each product shared by `tp`;
* weights gathered over `fsdp`: once per rollout program, and for each micro-batch, each
  of three sequences and each pass of the update; gradients scattered likewise;
* the update's products at MFU of the arithmetic rate: forward, backward, blocks
  computed again, reference;
* gradients summed over `data`, between slices at DCN.

Communication is taken to run beside the arithmetic where `overlapped`, else after it.
Not counted: drawing and scoring, which hosts do beside the refined rollout.
"""

import dataclasses
import json
import runpy

from ar3d_jax import command
from ar3d_jax.compile_check import CHIPS, TURN_TOKENS, Chip
from ar3d_jax.config import Config, PolicyConfig, from_config_dict
from ar3d_jax.policy.vocab import PUBLISHED

MFU = 0.5  # of the update's products; assumed, MaxText reports 0.5 to 0.65 at this size
LATENCY_S = 5e-6  # of one small all-reduce between neighbours; assumed
DCN = 6.25e9  # bytes per second and chip between slices; assumed, 200 Gbit/s a host
BYTES = 2  # bfloat16

# (topology, fsdp, tp, prompts): the table of docs/scaling.md.
TOPOLOGIES = (
    ("v5e:4x8", 8, 4, 16),
    ("v5e:8x8", 16, 4, 16),
    ("v5p:2x2x2", 8, 1, 16),
    ("v5p:2x2x4", 16, 1, 16),
    ("v5p:4x4x4", 16, 4, 16),
    ("v5p:4x4x4", 64, 1, 64),
    ("v6e:4x4", 8, 2, 16),
    ("v6e:8x8", 16, 4, 16),
    ("v6e:8x8", 32, 2, 32),
)


def layer_parameters(cfg: PolicyConfig) -> float:
    """Of all blocks: what every token is multiplied by, but for the head."""
    attention = cfg.width * cfg.head_size * (2 * cfg.heads + 2 * cfg.kv_heads)
    return cfg.layers * (attention + 3 * cfg.width * cfg.mlp_width)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of one step's parts, and of decoding the part that memory explains."""

    decode_s: float
    decode_memory_s: float
    gather_s: float
    update_s: float
    update_links_s: float
    between_slices_s: float

    @property
    def overlapped(self) -> float:
        """A step, with communication beside the update's arithmetic."""
        update = max(self.update_s, self.update_links_s + self.between_slices_s)
        return self.decode_s + self.gather_s + update

    @property
    def in_turn(self) -> float:
        """A step, with communication after it."""
        update = self.update_s + self.update_links_s + self.between_slices_s
        return self.decode_s + self.gather_s + update


def predict(config: Config, chip: Chip) -> Prediction:
    """One step of `config` on its mesh."""
    mesh, cfg, rollout = config.mesh, config.policy, config.rollout
    parts = mesh.data * mesh.fsdp
    rows = config.prompts_per_step * config.group_size
    weights = layer_parameters(cfg)
    prompt, plan, shape = (
        rollout.prompt_tokens[-1],
        rollout.plan_tokens,
        config.codec.tokens,
    )
    text, codes = (
        subset.size * cfg.width for subset in (PUBLISHED.text, PUBLISHED.shape)
    )

    decode = memory = 0.0
    cache = 2 * cfg.layers * cfg.kv_heads * cfg.head_size * BYTES  # per token
    shared = 2 * cfg.layers + 2 if mesh.tp > 1 else 0
    for before, tokens, head in (
        (prompt, plan, text),
        (prompt + plan, shape, codes),
        (prompt + plan + TURN_TOKENS, plan, text),
        (prompt + plan, shape, codes),
    ):
        held = rows / parts * (before + tokens / 2) * cache
        read = ((weights + head) * BYTES + held) / mesh.tp / chip.bandwidth
        products = 2 * (weights + head) * rows / parts / mesh.tp / chip.flops
        memory += tokens * read
        decode += tokens * (max(read, products) + shared * LATENCY_S)

    whole = weights * BYTES / mesh.tp * (1 - 1 / mesh.fsdp)  # through a chip's links
    lengths = (
        prompt + plan + shape,
        prompt + 2 * plan + TURN_TOKENS,
        prompt + plan + shape,
    )
    passes = 3 + (cfg.remat != "off") + (config.objective.kl_coef > 0)
    tokens = rows * sum(lengths)
    attention = 2 * cfg.layers * cfg.heads * cfg.head_size  # causal: half of 4
    flops = 2 * weights * tokens + attention * rows * sum(n * n for n in lengths)
    flops += 2 * rows * (2 * plan * text + 2 * shape * codes)
    micro_batches = rows / config.objective.micro_batch
    moved = whole * micro_batches * len(lengths)
    gradients = weights * BYTES / (mesh.fsdp * mesh.tp) * micro_batches * len(lengths)
    chips = parts * mesh.tp
    return Prediction(
        decode_s=decode,
        decode_memory_s=memory,
        gather_s=2 * whole / chip.links,
        update_s=passes * flops / (chips * chip.flops * MFU),
        update_links_s=moved * passes / chip.links,
        between_slices_s=2 * gradients / DCN if mesh.data > 1 else 0.0,
    )


def row(config: Config, topology: str, chip: Chip) -> dict[str, object]:
    """One line of the table."""
    found = predict(config, chip)
    chips = config.mesh.data * config.mesh.fsdp * config.mesh.tp
    return {
        "topology": topology,
        "chips": chips,
        "mesh": [config.mesh.data, config.mesh.fsdp, config.mesh.tp],
        "prompts": config.prompts_per_step,
        "decode_s": round(found.decode_s, 1),
        "decode_over_memory_limit": round(found.decode_memory_s / found.decode_s, 3),
        "gather_s": round(found.gather_s, 2),
        "update_s": round(found.update_s, 1),
        "links_s": round(found.update_links_s, 1),
        "between_slices_s": round(found.between_slices_s, 2),
        "step_s": round(found.overlapped, 1),
        "step_in_turn_s": round(found.in_turn, 1),
        "prompts_per_chip_hour": round(
            3600 * config.prompts_per_step / chips / found.overlapped, 1
        ),
    }


def with_mesh(paper: Config, data: int, fsdp: int, tp: int, prompts: int) -> Config:
    """The paper's run on another mesh; a micro-batch has as many rows per chip."""
    rows = prompts * paper.group_size
    objective = dataclasses.replace(paper.objective, micro_batch=rows // 8)
    mesh = dataclasses.replace(paper.mesh, data=data, fsdp=fsdp, tp=tp)
    return dataclasses.replace(
        paper, mesh=mesh, prompts_per_step=prompts, objective=objective
    )


def main(_: list[str]) -> None:
    """The command."""
    values = runpy.run_path("configs/higrpo.py")["get_config"]("7b")
    paper = from_config_dict(values, Config)
    for topology, fsdp, tp, prompts in TOPOLOGIES:
        chip = CHIPS[topology.partition(":")[0]]
        config = with_mesh(paper, 1, fsdp, tp, prompts)
        print(json.dumps(row(config, topology, chip)))
    # Weak scaling: two prompts a chip.
    for kind, tp in (("v5p", 1), ("v5e", 4), ("v6e", 2)):
        first = None
        for chips in (8, 16, 32, 64, 128, 256, 512):
            slices = max(1, chips // 64)
            fsdp = chips // slices // tp
            config = with_mesh(paper, slices, fsdp, tp, 2 * chips)
            line = row(config, f"{kind}, {slices} slices", CHIPS[kind])
            found = predict(config, CHIPS[kind])
            first = first or found
            line["efficiency"] = round(first.overlapped / found.overlapped, 3)
            line["efficiency_in_turn"] = round(first.in_turn / found.in_turn, 3)
            print(json.dumps(line))


if __name__ == "__main__":
    command.run(main)
