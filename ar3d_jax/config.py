"""The configuration: one frozen dataclass per section, checked when it is built.

A run's values come from `configs/*.py` as an `ml_collections.ConfigDict`, overridden by
`--config.section.field=value`; `from_config_dict` turns them into a `Config`, and from
there each function receives its own section. Frozen dataclasses are hashable, so a
section can be a static argument of a jitted function.

Every field carries a comment: the paper's value (arXiv 2512.10949v1), or our choice and
the reason. A value that is not built yet is refused here.
"""

import dataclasses
import typing
from typing import Any

from ar3d_jax.config_checks import ascending, choice, require
from ar3d_jax.config_rewards import (
    RewardsConfig,
)
from ar3d_jax.errors import UserError

LEAST_BAND = 24  # recent groups before `medium` has a band: fewer say too little


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The Qwen2.5-type decoder; its sizes and those of `weights` must agree."""

    weights: str = (
        "embedded"  # a Hugging Face folder or id; embedded: the shipped tiny policy
    )
    vocab_size: int = (
        3072  # tiny: 1,000 texts + 2,048 codes + 5 marks, padded; 7B: 159,872
    )
    width: int = 192  # tiny: our choice, fits a step in seconds on 2 cores; 7B: 3,584
    layers: int = 4  # tiny: our choice; 7B: 28
    heads: int = 6  # query heads; 7B: 28
    kv_heads: int = 2  # grouped-query attention; 7B: 4
    head_size: int = 32  # 7B: 128
    mlp_width: int = 512  # SwiGLU; 7B: 18,944
    rope_theta: float = 1e6  # Qwen2.5's
    rms_eps: float = 1e-6  # Qwen2.5's
    tied: bool = False  # one matrix for embedding and head; 7B: separate
    max_positions: int = 1024  # prompt + plan + shape must fit; 7B: 128,000
    dtype: str = "float32"  # of parameters and activations; bfloat16 on accelerators
    remat: str = "off"  # what the backward pass finds of a block: off: all; attention:
    # its input and attention's result, for 1/4 more time; full: its input alone
    attention: str = "auto"  # of training: xla, splash (TPU) or cudnn (NVIDIA)
    scan_decode: bool = (
        False  # layers by lax.scan in decoding; unrolled is 2.5x faster on CPU
    )

    def __post_init__(self) -> None:
        """Raises UserError where sizes do not fit each other."""
        sizes = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_size")
        for name in (*sizes, "mlp_width", "max_positions"):
            value = getattr(self, name)
            require(value >= 1, f"policy.{name}", value, "1 or more")
        require(
            self.heads % self.kv_heads == 0,
            "policy.heads",
            self.heads,
            f"a multiple of policy.kv_heads={self.kv_heads}",
        )
        require(
            self.head_size % 2 == 0,
            "policy.head_size",
            self.head_size,
            "an even number (RoPE pairs)",
        )
        choice("policy.dtype", self.dtype, "float32", "bfloat16")
        choice("policy.remat", self.remat, "off", "attention", "full")
        choice("policy.attention", self.attention, "auto", "xla", "splash", "cudnn")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Thin trained matrices beside frozen weights; the paper trains all weights."""

    rank: int = 0  # of each weight's change; 0: off, all weights are trained
    alpha: float = 32.0  # the change counts alpha / rank; the usual
    targets: tuple[str, ...] = (
        "qkv",
        "out",
        "gate_up",
        "down",
    )  # weights of each block that change; all of them: the usual

    def __post_init__(self) -> None:
        """Raises UserError for values that do not exist."""
        require(self.rank >= 0, "lora.rank", self.rank, "0 (off) or more")
        require(self.alpha > 0, "lora.alpha", self.alpha, "a number above 0")
        known = ("qkv", "out", "gate_up", "down")
        require(
            bool(self.targets) and set(self.targets) <= set(known),
            "lora.targets",
            self.targets,
            "some of " + ", ".join(known),
        )


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """The 3D VQ-VAE: resolution**3 voxels <-> `tokens` codes."""

    weights: str = (
        "embedded"  # a file or a Hugging Face id; embedded: the shipped tiny codec
    )
    resolution: int = 32  # tiny: our choice; published: 64
    channels: tuple[int, ...] = (
        8,
        16,
        96,
    )  # fine to coarse: most per second of CPU; published: 32, 128, 512
    blocks: tuple[int, ...] = (0, 1, 1)  # residual blocks per width; published: 2, 2, 2
    middle_blocks: int = 1  # residual blocks at the coarsest grid; published: 2
    latent_channels: int = 8  # published; 4 cells along z make one 32-number code
    codes: int = 2048  # codebook; tiny: our choice; published: 8,192

    def __post_init__(self) -> None:
        """Raises UserError where sizes do not fit each other."""
        require(
            bool(self.channels) and min(self.channels) >= 1,
            "codec.channels",
            self.channels,
            "one width or more, each 1 or more",
        )
        for name in ("resolution", "latent_channels", "codes"):
            value = getattr(self, name)
            require(value >= 1, f"codec.{name}", value, "1 or more")
        factor = 2 ** (len(self.channels) - 1)
        require(
            self.resolution % (4 * factor) == 0,
            "codec.resolution",
            self.resolution,
            f"a multiple of {4 * factor} (codes cover 4 latent cells along z)",
        )
        require(
            len(self.blocks) == len(self.channels),
            "codec.blocks",
            self.blocks,
            f"{len(self.channels)} numbers, one per entry of codec.channels",
        )

    @property
    def latent_resolution(self) -> int:
        """Latent cells along one side."""
        return self.resolution // 2 ** (len(self.channels) - 1)

    @property
    def tokens(self) -> int:
        """Shape tokens per object, M: 4 latent cells along z each."""
        return self.latent_resolution**3 // 4

    @property
    def code_size(self) -> int:
        """Numbers in one code."""
        return 4 * self.latent_channels


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How the policy is sampled."""

    plans: bool = True  # the paper's method; off, with grpo: table 3's "without plan"
    refined_sees_coarse: bool = (
        False  # coarse tokens before refined ones, too; our own idea; paper: unseen
    )
    plan_tokens: int = (
        48  # most tokens of a plan, each; paper: open (30-130 words in print)
    )
    prompt_tokens: tuple[int, ...] = (
        72,
        128,
    )  # compiled lengths; tiny: 72 holds every catalog caption; longer is refused
    temperature: float = 0.8  # paper: open; tiny: fewer stray codes, docs/learning.md
    top_k: int = 0  # 0 keeps all; paper: open
    top_p: float = 1.0  # 1 keeps all; paper: open
    full_vocabulary: bool = (
        False  # shape tokens from codes only, our choice: no malformed mesh
    )
    gather: bool = True  # parameters whole on each tp group while sampling, else they
    # travel for every token; our choice, costs 1 / mesh.tp of them in memory
    stop_early: bool = True  # plans end with the longest one; off: at plan_tokens, and
    # devices need not ask each other at every token; our choice
    ahead: int = 0  # 1: the next rollout starts while scores are awaited, one update
    # stale, which the old log-probabilities correct; paper: 0. Not before a checkpoint,
    # which holds no rollouts: a run that is stopped goes on with a fresh one. Best
    # without dynamic sampling, whose further groups are scored after the next batch

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        require(
            self.temperature > 0,
            "rollout.temperature",
            self.temperature,
            "a number above 0",
        )
        require(0 < self.top_p <= 1, "rollout.top_p", self.top_p, "a number in (0, 1]")
        choice("rollout.ahead", self.ahead, 0, 1)
        require(self.top_k >= 0, "rollout.top_k", self.top_k, "0 (off) or more")
        require(
            self.plan_tokens >= 1, "rollout.plan_tokens", self.plan_tokens, "1 or more"
        )
        ascending("rollout.prompt_tokens", self.prompt_tokens)
        require(
            not self.full_vocabulary,
            "rollout.full_vocabulary",
            True,
            "False (the full vocabulary is not built yet)",
        )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Equations 9-14, and what the paper's tables compare them with."""

    lam: float = (
        1.0  # lambda of equation 9: refined reward added to the coarse; paper: 1.0
    )
    lam_end: float = 1.0  # lam moves to this in lam_steps; paper: constant
    lam_steps: int = 0  # 0: lam stays; our option, to judge coarse shapes by
    # themselves first, and later by what they lead to as well
    advantage_std: str = (
        "group"  # equation 10; batch: of all rewards; none: Dr. GRPO's, no division
    )
    clip_low: float = 0.2  # paper: open; DAPO's 0.2
    clip_high: float = 0.28  # decoupled clip, best row of table 2; DAPO's 0.28
    sequence_clip_low: float = 3e-4  # with importance=sequence; GSPO's
    sequence_clip_high: float = 4e-4  # with importance=sequence; GSPO's
    dual_clip: float = 0.0  # 0: off; above 1: bounds negative advantages; usual 3
    kl_coef: float = 0.01  # beta of equation 13; paper: 0.01; 0: no reference at all
    aggregation: str = "token"  # equation 11: tokens of one group averaged, then groups
    importance: str = (
        "token"  # ratio per token (12); sequence: GSPO's, which is GSPO together with
        # aggregation=sequence: one row of table 2
    )
    correct_mismatch: float = (
        0.0  # 0: off; C: trainer's old log-probabilities, weights up to C; usual 2
    )
    updates_per_rollout: int = 1  # optimiser steps on each batch; paper: 1
    minibatches: int = 1  # parts of a batch, by prompts, that updates take in turn
    dynamic_sampling: str = (
        "medium"  # AR3D-R1's recipe, table 2; no_spread: DAPO's; off: plain Hi-GRPO
    )
    min_spread: float = 0.0  # of rewards in a group that is kept; our choice: any
    band_low: float = 0.1  # medium: quantile of recent groups' mean rewards; our choice
    band_high: float = (
        0.9  # so a fifth of the groups is outside; the paper has no number
    )
    band_groups: int = 240  # recent groups that quantiles are of, with those that were
    # left out; our choice: some 15 steps
    max_resample: int = 2  # rounds of new prompts per step; then a batch stays as it is
    resample_prompts: int = (
        4  # prompts per round, 0: as many as prompts_per_step; tiny:
    )
    # our choice, a third: two groups of twelve are replaced, in 1.2 of the time
    micro_batch: int = (
        16  # rows in one gradient pass: memory only, the result is the same
    )

    @property
    def clip_bounds(self) -> tuple[float, float]:
        """(low, high) of the importance that is used."""
        if self.importance == "sequence":
            return self.sequence_clip_low, self.sequence_clip_high
        return self.clip_low, self.clip_high

    @property
    def final_lam(self) -> float:
        """Where lambda of equation 9 ends."""
        return self.lam_end if self.lam_steps else self.lam

    def lam_at(self, step: int) -> float:
        """Lambda of equation 9 at an optimiser step: a straight line to `lam_end`."""
        if not self.lam_steps:
            return self.lam
        share = min(step / self.lam_steps, 1.0)
        return self.lam + share * (self.lam_end - self.lam)

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        choice(
            "objective.aggregation",
            self.aggregation,
            "token",
            "token_batch",
            "sequence",
        )
        choice("objective.importance", self.importance, "token", "sequence")
        choice("objective.advantage_std", self.advantage_std, "group", "batch", "none")
        kinds = ("off", "no_spread", "medium")
        choice("objective.dynamic_sampling", self.dynamic_sampling, *kinds)
        require(
            0 <= self.band_low < self.band_high <= 1,
            "objective.band_low/band_high",
            (self.band_low, self.band_high),
            "0 <= band_low < band_high <= 1",
        )
        require(
            self.dynamic_sampling != "medium" or self.band_groups >= LEAST_BAND,
            "objective.band_groups",
            self.band_groups,
            f"{LEAST_BAND} or more: quantiles of fewer say nothing",
        )
        for name in ("max_resample", "resample_prompts", "min_spread"):
            value = getattr(self, name)
            require(value >= 0, f"objective.{name}", value, "0 or more")
        counts = ("micro_batch", "updates_per_rollout", "minibatches", "band_groups")
        for name in counts:
            value = getattr(self, name)
            require(value >= 1, f"objective.{name}", value, "1 or more")
        require(
            self.updates_per_rollout % self.minibatches == 0,
            "objective.updates_per_rollout",
            self.updates_per_rollout,
            f"a multiple of objective.minibatches={self.minibatches}: every prompt is "
            "learnt from equally often",
        )
        for name in ("", "sequence_"):
            low = getattr(self, f"{name}clip_low")
            high = getattr(self, f"{name}clip_high")
            require(
                0 < low < 1 and high > 0,
                f"objective.{name}clip_low/{name}clip_high",
                (low, high),
                f"0 < {name}clip_low < 1 and {name}clip_high > 0",
            )
        require(
            self.dual_clip == 0 or self.dual_clip > 1,
            "objective.dual_clip",
            self.dual_clip,
            "0 (off) or a number above 1",
        )
        for name in ("kl_coef", "correct_mismatch", "lam_steps"):
            value = getattr(self, name)
            require(value >= 0, f"objective.{name}", value, "0 or more")
        require(
            bool(self.lam_steps) or self.lam_end in (1.0, self.lam),
            "with objective.lam_steps=0, objective.lam_end",
            self.lam_end,
            f"objective.lam={self.lam}, which stays; or lam_steps of 1 or more",
        )


@dataclasses.dataclass(frozen=True)
class RenderConfig:
    """Cameras and the processes that draw."""

    views: int = 6  # paper: six views, for rewards and for evaluation
    size: int = 224  # pixels along one side; paper: open; the scorers' input size
    cameras: str = "ring"  # ring, hammersley (a sphere of views), or a transforms.json
    pitch_deg: float = 30.0  # elevation of the ring; paper: open
    radius: float = 2.0  # camera distance, object's longest side = 1; TRELLIS's
    fov_deg: float = 40.0  # TRELLIS's
    background: str = "white"  # or black; paper: open; judges differ, white is usual
    light: str = "shoulder"  # or camera: straight from the lens, as the paper's script
    colours: bool = False  # draw a mesh file's own colours; else light grey
    max_faces: int = 5_000_000  # a mesh file with more is refused; our choice: 10 s
    workers: int = 2  # drawing processes; one per core

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        for name in ("views", "workers", "max_faces"):
            value = getattr(self, name)
            require(value >= 1, f"render.{name}", value, "1 or more")
        require(self.size >= 16, "render.size", self.size, "16 pixels or more")
        choice("render.background", self.background, "white", "black")
        choice("render.light", self.light, "shoulder", "camera")
        require(
            self.cameras in ("ring", "hammersley") or self.cameras.endswith(".json"),
            "render.cameras",
            self.cameras,
            "ring, hammersley or the path of a transforms.json",
        )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW."""

    lr: float = (
        7e-5  # tiny: our choice, larger ones drift: docs/learning.md; paper: 1e-6 at 7B
    )
    warmup_steps: int = 5  # linear from 0; paper: open
    b1: float = 0.9  # paper: open; the usual
    b2: float = 0.95  # paper: open; the usual for RL of language models
    eps: float = 1e-8  # paper: open; the usual
    weight_decay: float = 0.01  # paper: open; small
    grad_clip: float = 1.0  # global norm; paper: open
    master_dtype: str = (
        "float32"  # of the weights that are updated: at lr 1e-6 bfloat16 would not move
    )
    moment_dtype: str = "float32"  # of AdamW's; bfloat16 halves them, fits b2 <= 0.99
    gradient_dtype: str = "float32"  # in which micro-batches add up; bfloat16 halves it

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        for name in ("master_dtype", "moment_dtype", "gradient_dtype"):
            choice(f"optim.{name}", getattr(self, name), "float32", "bfloat16")
        require(
            self.moment_dtype == "float32" or self.b2 <= 0.99,
            "optim.b2",
            self.b2,
            "0.99 or less with optim.moment_dtype=bfloat16, which has 8 bits",
        )
        for name in ("lr", "eps"):
            value = getattr(self, name)
            require(value > 0, f"optim.{name}", value, "a number above 0")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optim.{name}", value, "0 or more, below 1")
        require(
            self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more"
        )
        require(
            self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "0 or more"
        )
        require(
            self.grad_clip > 0,
            "optim.grad_clip",
            self.grad_clip,
            "a number above 0; a very large one never clips",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices: data * fsdp * tp must be their number."""

    data: int = 1  # batch split this many ways, parameters on each: slices or hosts
    fsdp: int = 1  # parameters and batch split this many ways
    tp: int = 1  # heads and MLP split this many ways; 7B's 4 KV heads allow 1, 2, 4

    def __post_init__(self) -> None:
        """Raises UserError for a mesh without devices."""
        for name in ("data", "fsdp", "tp"):
            value = getattr(self, name)
            require(value >= 1, f"mesh.{name}", value, "1 or more")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How prompts reach training."""

    shuffle: bool = True  # a new order each epoch, from the run's seed
    column: str = (
        ""  # column of a .csv/.jsonl with the text; empty: prompt, else captions
    )
    share: float = 1.0  # of the training prompts, at random; figure 3's data scaling

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        require(
            0 < self.share <= 1, "data.share", self.share, "above 0, at most 1 (all)"
        )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation during training."""

    prompts: int = (
        4  # fixed held-out prompts drawn into samples/; our choice: one screen
    )
    judged: int = 24  # fixed held-out prompts, a group of each, that the judge sees;
    # our choice: two of the tiny preset's rollouts, 7% of its time
    keep_best: bool = True  # the checkpoint that the judge likes best stays, as best/

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        for name in ("prompts", "judged"):
            value = getattr(self, name)
            require(value >= 1, f"evaluation.{name}", value, "1 or more")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What a run leaves behind."""

    keep_checkpoints: int = (
        3  # the last k stay; a truncated one falls back to the one before
    )
    samples_every: int = 10  # steps between samples/step_N; our choice
    tensorboard: bool = True  # event files beside metrics.jsonl

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        for name in ("keep_checkpoints", "samples_every"):
            value = getattr(self, name)
            require(value >= 1, f"log.{name}", value, "1 or more")


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    preset: str = "tiny"  # which preset of the config file this came from
    steps: int = 60  # batches of rollouts, and optimiser steps unless
    # objective.updates_per_rollout says more; paper: 1,200
    seed: int = 0  # of sampling and shuffling; every random number follows from it
    prompts: str = (
        "catalog"  # catalog: the embedded prompts; else a .txt, .csv or .jsonl file
    )
    prompts_per_step: int = 12  # tiny: our choice, less noise than 4; paper: 16
    group_size: int = 8  # G; paper: 8
    paradigm: str = "higrpo"  # the paper's method; grpo: one step, configs/grpo.py
    checkpoint_every: int = 10  # steps; our choice: minutes of work at risk
    eval_every: int = 20  # steps between held-out evaluations, 0: off; our choice
    policy: PolicyConfig = PolicyConfig()  # the language model
    lora: LoraConfig = LoraConfig()  # train thin matrices instead of all weights
    codec: CodecConfig = CodecConfig()  # shape tokens <-> voxels
    rollout: RolloutConfig = RolloutConfig()  # sampling
    objective: ObjectiveConfig = ObjectiveConfig()  # the loss
    rewards: RewardsConfig = RewardsConfig()  # scores
    render: RenderConfig = RenderConfig()  # pictures
    optim: OptimConfig = OptimConfig()  # AdamW
    mesh: MeshConfig = MeshConfig()  # devices
    data: DataConfig = DataConfig()  # prompts
    evaluation: EvaluationConfig = EvaluationConfig()  # held-out
    log: LogConfig = LogConfig()  # outputs

    def __post_init__(self) -> None:
        """Raises UserError where sections do not fit each other."""
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2**32 - 1")
        require(
            self.prompts_per_step >= 1,
            "prompts_per_step",
            self.prompts_per_step,
            "1 or more",
        )
        require(
            self.group_size >= 2,
            "group_size",
            self.group_size,
            "2 or more: an advantage compares a group's rollouts",
        )
        require(
            self.checkpoint_every >= 1,
            "checkpoint_every",
            self.checkpoint_every,
            "1 or more",
        )
        choice("paradigm", self.paradigm, "higrpo", "grpo")
        both = self.paradigm == "higrpo"
        choice(
            f"with paradigm={self.paradigm}, rewards.ensemble",
            self.rewards.ensemble,
            *(("both",) if both else ("coarse", "refined")),
        )
        require(
            both or not self.rollout.refined_sees_coarse,
            "rollout.refined_sees_coarse",
            True,
            "False with paradigm=grpo, which has no coarse shape",
        )
        require(
            self.rollout.plans or not both,
            "rollout.plans",
            self.rollout.plans,
            "True with paradigm=higrpo: its refined shapes follow from a plan",
        )
        require(
            any(self.rewards.roles(step) for step in self._ensembles),
            "rewards.weights." + " and rewards.weights.".join(self._ensembles),
            0.0,
            "a role with a weight: nothing is rewarded",
        )
        require(
            self.checkpoint_every > 1 or not self.rollout.ahead,
            "with rollout.ahead=1, checkpoint_every",
            self.checkpoint_every,
            "2 or more: nothing is sampled ahead of a checkpoint",
        )
        require(self.eval_every >= 0, "eval_every", self.eval_every, "0 (off) or more")
        require(
            self.prompts_per_step % self.objective.minibatches == 0,
            "objective.minibatches",
            self.objective.minibatches,
            f"a divisor of prompts_per_step={self.prompts_per_step}",
        )
        rows = self.prompts_per_step * self.group_size // self.objective.minibatches
        require(
            rows % self.objective.micro_batch == 0,
            "objective.micro_batch",
            self.objective.micro_batch,
            f"a divisor of the {rows} rows of an update",
        )
        require(
            self.objective.lam_steps <= self.steps,
            "objective.lam_steps",
            self.objective.lam_steps,
            f"at most steps={self.steps}: else lam never arrives at lam_end",
        )
        self._check_mesh()

    @property
    def step_names(self) -> tuple[str, ...]:
        """The generation steps, in their order."""
        return ("coarse", "refined") if self.paradigm == "higrpo" else ("shape",)

    @property
    def _ensembles(self) -> tuple[str, ...]:
        """Whose roles the steps are scored by."""
        return tuple(self.rewards.ensemble_of(step) for step in self.step_names)

    @property
    def used_rewards(self) -> RewardsConfig:
        """The rewards, without the weights of an ensemble that no step is scored by."""
        weights = self.rewards.weights
        for step in {"coarse", "refined"} - set(self._ensembles):
            none = dict.fromkeys(self.rewards.roles(step), 0.0)
            off = dataclasses.replace(getattr(weights, step), **none)
            weights = dataclasses.replace(weights, **{step: off})
        return dataclasses.replace(self.rewards, weights=weights)

    def _check_mesh(self) -> None:
        """Raises UserError where devices cannot share something equally."""
        mesh = self.mesh
        shared = {
            ("mesh.data*mesh.fsdp", mesh.data * mesh.fsdp): (
                ("objective.micro_batch", self.objective.micro_batch),
                ("prompts_per_step", self.prompts_per_step),
            ),
            ("mesh.fsdp", mesh.fsdp): (("policy.width", self.policy.width),),
            ("mesh.tp", mesh.tp): (
                ("policy.kv_heads", self.policy.kv_heads),
                ("policy.mlp_width", self.policy.mlp_width),
                ("policy.vocab_size", self.policy.vocab_size),
            ),
        }
        for (axis, devices), fields in shared.items():
            for field, value in fields:
                require(
                    value % devices == 0,
                    field,
                    value,
                    f"a multiple of {axis}={devices}: devices share it",
                )


@dataclasses.dataclass(frozen=True)
class FeatureWeightsConfig:
    """Where each feature set's network is: a file, a folder, or a Hugging Face id."""

    embedded: str = "embedded"  # the shipped judge: never a reward
    clip_b32: str = "openai/clip-vit-base-patch32"  # the paper's public script: B/32
    clip_l14: str = "openai/clip-vit-large-patch14"  # TRELLIS, as others rebuilt it
    dinov2_b14: str = "facebook/dinov2-base"  # the paper's public script
    dinov2_l14: str = "facebook/dinov2-large"  # dgm-eval's; TRELLIS: open
    inception: str = ""  # pt_inception-2015-12-05-6726825d.pth, of pytorch-fid


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """The networks that look at an evaluation's pictures, and their process."""

    sets: tuple[str, ...] = ("embedded",)  # what is measured; each costs its time
    weights: FeatureWeightsConfig = FeatureWeightsConfig()  # of each set
    threads: int = 2  # torch threads of the process; our choice
    device: str = "auto"  # auto: a GPU where there is one; cpu, cuda
    points: int = 16_384  # of a surface, for Chamfer and F-score: fewer limit it
    deadline_s: float = 36_000.0  # for all objects; then missing

    def __post_init__(self) -> None:
        """Raises UserError for sets that do not exist."""
        known = [field.name for field in dataclasses.fields(FeatureWeightsConfig)]
        for name in self.sets:
            choice("features.sets", name, *known)
        require(
            bool(self.sets) and len(set(self.sets)) == len(self.sets),
            "features.sets",
            self.sets,
            f"one or more different ones of {', '.join(known)}",
        )
        choice("features.device", self.device, "auto", "cpu", "cuda")
        for name in ("threads", "points"):
            value = getattr(self, name)
            require(value >= 1, f"features.{name}", value, "1 or more")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One evaluation, `evaluate.py`."""

    preset: str = "tiny"  # which preset of the config file this came from
    benchmark: str = "catalog"  # catalog, reasoning249, toys4k, mme3dr
    data: str = ""  # toys4k: its folder; mme3dr: the annotation file
    count: int = 0  # of the benchmark's objects, the first; 0: all
    protocol: str = "trellis"  # or eval_py_compat, the public script's numbers
    size: int = 224  # pixels of a picture; trellis: 512; the embedded judge sees 112
    seeds: tuple[int, ...] = (0,)  # one object per prompt and seed; paper: open
    batch: int = 16  # prompts sampled at once; our choice
    features: FeaturesConfig = FeaturesConfig()  # networks
    workers: int = 2  # drawing processes; one per core
    colours: bool = False  # draw mesh files in their own colours; else grey geometry
    up: str = "y"  # the up axis of the files in --meshes; glTF says y
    max_faces: int = 5_000_000  # a file with more is refused; our choice: 10 s
    kd_subsets: int = 100  # random subsets of the kernel distance; dgm-eval's
    kd_subset_size: int = 1000  # vectors in each, or all there are; dgm-eval's
    resamples: int = 200  # bootstrap over objects for standard errors; our choice
    shown: int = 6  # best and worst objects in the report; our choice
    mesh: MeshConfig = MeshConfig()  # devices that sample

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        names = ("catalog", "reasoning249", "toys4k", "mme3dr")
        choice("benchmark", self.benchmark, *names)
        choice("protocol", self.protocol, "trellis", "eval_py_compat")
        choice("up", self.up, "y", "z")
        require(self.count >= 0, "count", self.count, "0 (all) or more")
        require(
            bool(self.seeds) and len(set(self.seeds)) == len(self.seeds),
            "seeds",
            self.seeds,
            "one or more different numbers",
        )
        require(self.resamples >= 2, "resamples", self.resamples, "2 or more")
        require(
            self.kd_subset_size >= 2, "kd_subset_size", self.kd_subset_size, "2 or more"
        )
        for name in ("size", "batch", "workers", "max_faces", "kd_subsets", "shown"):
            value = getattr(self, name)
            require(value >= 1, name, value, "1 or more")


@dataclasses.dataclass(frozen=True)
class CodecTrainingConfig:
    """One training of the codec, `train_codec.py`."""

    codec: CodecConfig = CodecConfig()  # its sizes; weights are not read
    refine: str = ""  # a codec whose tokens stay: only its decoder is trained, further
    catalog: str = "data/catalog"  # folder with the catalog and augmented.npz
    steps: int = 2600  # of encoder, codebook and decoder; our choice: 45 minutes
    decoder_steps: int = 2400  # then of the decoder alone; our choice: 30 minutes
    batch: int = 8  # objects per step; our choice: more steps beat larger ones here
    seed: int = 0  # of weights, order and augmentation
    lr: float = 2e-3  # peak; our choice for a small network and few steps
    lr_warmup: int = 100  # steps from 0 to lr; our choice
    warmup: int = 500  # steps without quantisation; our choice: a fifth
    kmeans_batches: int = 64  # batches whose latents start the codebook; our choice
    commitment: float = 0.25  # beta of the commitment loss; published
    code_decay: float = 0.98  # moving average of the codebook; our choice: 50 steps
    average_decay: float = 0.998  # of the weights; TRELLIS 0.9999 for far more steps
    eval_every: int = 200  # steps between held-out measurements; our choice
    checkpoint_every: int = 100  # steps; our choice: two minutes of work at risk

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2**32 - 1")
        for name in ("batch", "kmeans_batches", "eval_every", "checkpoint_every"):
            value = getattr(self, name)
            require(value >= 1, name, value, "1 or more")
        least = max(self.warmup, self.lr_warmup)
        require(
            self.steps > least,
            "steps",
            self.steps,
            f"more than warmup={self.warmup} and lr_warmup={self.lr_warmup}",
        )
        require(
            self.decoder_steps >= self.lr_warmup,
            "decoder_steps",
            self.decoder_steps,
            f"lr_warmup={self.lr_warmup} or more",
        )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """One supervised training of the policy, `sft.py`."""

    policy: PolicyConfig = PolicyConfig()  # sizes; weights are not read
    codec: CodecConfig = CodecConfig()  # which codec makes the shape tokens
    mesh: MeshConfig = MeshConfig()  # devices
    catalog: str = "data/catalog"  # folder with the catalog and augmented.npz
    steps: int = 4000  # our choice: some 90 captions an object, 65 minutes on 2 cores
    batch: int = 16  # examples per step, three sequences each; our choice
    seed: int = 0  # of weights and order
    lr: float = 2e-3  # peak; our choice for a model of 2.8 M parameters
    warmup_steps: int = 200  # steps from 0 to lr; our choice
    weight_decay: float = 0.1  # our choice: the catalog is small
    plan_tokens: int = 48  # width of a plan's slot; as rollout.plan_tokens
    prompt_tokens: tuple[int, ...] = (
        72,
        128,
    )  # compiled lengths; as rollout.prompt_tokens
    eval_every: int = 200  # steps between held-out perplexities; our choice
    checkpoint_every: int = 100  # steps; our choice: two minutes of work at risk

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        require(
            self.steps > self.warmup_steps,
            "steps",
            self.steps,
            f"more than warmup_steps={self.warmup_steps}",
        )
        require(
            self.batch >= 1 and self.batch % (self.mesh.data * self.mesh.fsdp) == 0,
            "batch",
            self.batch,
            f"a multiple of mesh.data*mesh.fsdp={self.mesh.data * self.mesh.fsdp}",
        )
        require(self.lr > 0, "lr", self.lr, "a number above 0")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2**32 - 1")
        for name in ("plan_tokens", "eval_every", "checkpoint_every"):
            value = getattr(self, name)
            require(value >= 1, name, value, "1 or more")
        ascending("prompt_tokens", self.prompt_tokens)


def _is_section(kind: object) -> bool:
    return dataclasses.is_dataclass(kind)


def _check_type(field: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, or a UserError; ints pass as floats, lists as tuples."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, (list, tuple)):
            return tuple(_check_type(field, v, item) for v in value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise UserError(
        f"config field {field} is {value!r} ({type(value).__name__}); expected {name}"
    )


def _build(section: type, values: Any, path: str) -> Any:
    hints = typing.get_type_hints(section)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(
            f"unknown config field {path}{unknown[0]}; expected one of "
            + ", ".join(hints)
        )
    arguments = {}
    for name, value in values.items():
        kind = hints[name]
        nested = _is_section(kind)
        if nested and not hasattr(value, "items"):
            raise UserError(
                f"config field {path}{name} is {value!r}; expected a section with "
                "fields " + ", ".join(typing.get_type_hints(kind))
            )
        arguments[name] = (
            _build(kind, dict(value.items()), f"{path}{name}.")
            if nested
            else _check_type(path + name, value, kind)
        )
    return section(**arguments)


def from_config_dict(values: Any, section: type = Config) -> Any:
    """The frozen section built from a ConfigDict or nested dict; raises UserError."""
    return _build(section, dict(values.items()), "")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a section, as written to `workdir/config.json`."""
    return dataclasses.asdict(config)


def to_config_dict(config: Any) -> Any:
    """Locked ConfigDict with the same fields: what a config file returns."""
    import ml_collections

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return ml_collections.ConfigDict(
                {k: convert(v) for k, v in value.items()}, convert_dict=False
            )
        return value

    return convert(to_dict(config)).lock()
