"""The `rewards` section: which models score what, how much it counts, where they run.

`config.py` has all other sections, and how a section is built.
"""

import dataclasses
from typing import Literal

from ar3d_jax.config_checks import choice, require

COARSE_ROLES = ("preference", "alignment", "category")
REFINED_ROLES = ("preference", "quality", "consistency", "parts")
TABLE_ROLES = ("align_lmm", "consistency_shape")  # of table 1 alone; coarse weights

# Scorer -> the roles that it can fill.
SCORERS = {
    "embedded": tuple(dict.fromkeys(COARSE_ROLES + REFINED_ROLES + TABLE_ROLES)),
    "hps_v2_1": ("preference",),
    "unified_think": ("alignment",),
    "unified_2": ("alignment", "quality"),
    "qwen_vl": ("category", "consistency", *TABLE_ROLES),
    "shapellm": ("parts",),
}
JUDGES = ("unified_think", "unified_2", "qwen_vl")  # they answer in words


@dataclasses.dataclass(frozen=True)
class ScorersConfig:
    """Which scorer fills each role; `embedded` are the shipped stand-ins."""

    preference: str = "embedded"  # paper: hps_v2_1
    alignment: str = "embedded"  # paper: unified_think
    category: str = "embedded"  # paper: qwen_vl
    quality: str = "embedded"  # paper: unified_2
    consistency: str = "embedded"  # paper: qwen_vl
    parts: str = "embedded"  # paper: shapellm
    align_lmm: str = "embedded"  # paper's table 1: qwen_vl
    consistency_shape: str = "embedded"  # paper's tables 1 and 2: qwen_vl

    def __post_init__(self) -> None:
        """Raises UserError for a scorer that does not exist or cannot fill the role."""
        for role, name in dataclasses.asdict(self).items():
            able = [scorer for scorer, roles in SCORERS.items() if role in roles]
            choice(f"rewards.scorers.{role}", name, *able)


@dataclasses.dataclass(frozen=True)
class CoarseWeights:
    """Weights in R_high, equation 7."""

    preference: float = 1.0  # paper: 1
    alignment: float = 1.0  # paper: 1
    category: float = 1.0  # paper: 1
    align_lmm: float = 0.0  # Qwen2.5-VL in place of UnifiedReward: table 1
    consistency_shape: float = 0.0  # of score / 3; "LMM 3D" of tables 1 and 2


@dataclasses.dataclass(frozen=True)
class RefinedWeights:
    """Weights in R_low, equation 8, on top of its divisors 3, 3 and 2."""

    preference: float = 1.0  # paper: 1
    quality: float = 1.0  # paper: 1, of quality / 3
    consistency: float = 1.0  # paper: 1, of consistency / 3
    parts: float = 1.0  # paper: 1, of parts / 2


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """Each score's weight per step; 0 means the scorer is not asked."""

    coarse: CoarseWeights = CoarseWeights()  # roles of equation 7
    refined: RefinedWeights = RefinedWeights()  # roles of equation 8


@dataclasses.dataclass(frozen=True)
class HpsConfig:
    """HPS v2.1, the scorer `hps_v2_1`."""

    weights: str = "xswu/HPSv2"  # published: HPS_v2.1_compressed.pt there; or a file
    device: str = "auto"  # cuda:0, cpu, ...; auto: the first GPU, else the CPU
    dtype: str = "auto"  # float16, bfloat16, float32; auto: published on GPU; CPU: 32
    batch: int = 16  # objects per call, times render.views pictures; our choice


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """A vision-language model that answers in words: Qwen2.5-VL or a fine-tune."""

    model: str = ""  # Hugging Face id, owner/name[@revision], or a folder; without the
    # revision, the name by which endpoints know it
    endpoints: tuple[
        str, ...
    ] = ()  # of backend=openai: http://host:port/v1, one or more
    server: str = "vllm"  # what they run, also SGLang: vllm; transformers: its `serve`
    in_flight: int = 32  # requests under way per endpoint; facts of others: 16 to 64
    request_s: float = 45.0  # deadline of one request; then it is sent elsewhere, for
    # which rewards.deadline_s has to leave time; facts of others: 120
    retries: int = 3  # per request, where another try may help; our choice
    device: str = "auto"  # of backend=local: cuda:0, cpu, ...; auto: the first GPU
    dtype: str = "auto"  # of backend=local; auto: bfloat16 on a GPU, else float32
    batch: int = 8  # of backend=local: requests that are answered together; our choice
    max_tokens: int = 160  # of an answer: three long decimals are 90 tokens
    temperature: float = 0.0  # paper: open; greedy, so that equal objects score equally
    top_p: float = 1.0  # sent explicitly: servers else take the checkpoint's
    top_k: int = -1  # likewise; -1: all
    repetition_penalty: float = 1.0  # likewise; checkpoints have 1.05: digits repeat
    seed: int = 0  # sent with every request


@dataclasses.dataclass(frozen=True)
class ShapeLlmConfig:
    """ShapeLLM, the scorer `shapellm`: a point encoder before Vicuna."""

    weights: str = "qizekun/ShapeLLM_7B_general_v1.0"  # published; or a folder
    encoder: str = "qizekun/ReConV2"  # zeroshot/large/best_lvis.pth there; or a file
    device: str = "auto"  # cuda:0, cpu, ...; auto: the first GPU, else the CPU
    dtype: str = "auto"  # auto: float16 on a GPU, else float32
    batch: int = 8  # questions that are answered together; our choice
    up: str = "z"  # axis of the clouds it is shown, z or y; published: not said


@dataclasses.dataclass(frozen=True)
class RemoteConfig:
    """Servers that score for this host, backend=remote: `ar3d_jax.rewards.serve`."""

    servers: tuple[str, ...] = ()  # host:port, one or more, which share the load
    secret_file: str = ""  # its text proves that we belong together; same on both sides
    connect_s: float = 10.0  # per try to reach a server; it is tried again meanwhile
    in_flight: int = 64  # objects under way per server; our choice

    def __post_init__(self) -> None:
        """Raises UserError for values that reach nobody."""
        name = "rewards.remote"
        require(self.connect_s > 0, f"{name}.connect_s", self.connect_s, "above 0")
        require(self.in_flight >= 1, f"{name}.in_flight", self.in_flight, "1 or more")


@dataclasses.dataclass(frozen=True)
class RewardsConfig:
    """The reward ensemble and the process that computes it."""

    scorers: ScorersConfig = ScorersConfig()  # scorer per role
    weights: WeightsConfig = WeightsConfig()  # weight per step and role
    normalise_scores: bool = (
        False  # each score by its group before they are added up; paper: the raw sum
    )
    ensemble: str = (
        "both"  # Hi-GRPO's; one-step GRPO: coarse or refined, rows 4 and 5 of table 6
    )
    backend: str = "local"  # local: all scorers are in this host's sidecar; openai: but
    # judges answer from their endpoints; remote: all of it is on other machines
    hps_v2_1: HpsConfig = HpsConfig()  # preference
    unified_think: JudgeConfig = JudgeConfig(
        model="CodeGoat24/UnifiedReward-Think-qwen-7b"
    )  # alignment
    unified_2: JudgeConfig = JudgeConfig(
        model="CodeGoat24/UnifiedReward-2.0-qwen-7b"
    )  # quality
    qwen_vl: JudgeConfig = JudgeConfig(
        model="Qwen/Qwen2.5-VL-7B-Instruct"
    )  # category, consistency and the roles of table 1
    shapellm: ShapeLlmConfig = ShapeLlmConfig()  # parts
    remote: RemoteConfig = RemoteConfig()  # of backend=remote
    part_lists: str = (
        ""  # file of `ar3d_jax.data.parts`; prompts without: their noun phrases
    )
    residency: str = "together"  # of models that share a GPU; turns: one after the
    # other, the rest waits in the machine's memory
    on_failure: str = "mask"  # a rollout whose score is missing is left out; stop: the
    # run ends after `stop_after` optimiser steps in a row with too many of them
    stop_after: int = 5  # steps, see on_failure. Our choice: a judge that is started
    # again is back before, and of a long run no hundredth is lost where it is not
    missing_alarm: float = 0.2  # a role's share of missing scores that is too many, and
    # said aloud: now and then a judge's answer cannot be read
    frozen_alarm: int = 5  # so many steps of one role's same score, likewise
    deadline_s: float = (
        120.0  # per step's scores; then missing. Our choice: 10x the usual
    )
    start_s: float = 300.0  # until the sidecar has loaded all its models, or it is
    # ended; first downloads take longer: configs/higrpo.py:7b has an hour
    threads: int = 1  # torch threads of the sidecar; 1 on 2 cores beside two workers
    points: int = 2048  # surface points per object for category and parts; our choice
    judge: bool = False  # load it beside the scorers; training does for `eval_every`.
    # Never a reward: it has no weight, and no role may name it as its scorer

    def __post_init__(self) -> None:
        """Raises UserError for values that do not exist or do not fit each other."""
        choice("rewards.ensemble", self.ensemble, "both", "coarse", "refined")
        choice("rewards.backend", self.backend, "local", "openai", "remote")
        choice("rewards.on_failure", self.on_failure, "mask", "stop")
        choice("rewards.residency", self.residency, "together", "turns")
        require(
            bool(self.roles("coarse") + self.roles("refined")),
            "rewards.weights",
            dataclasses.asdict(self.weights),
            "one weight or more that is not 0: nothing would be learnt",
        )
        for name in ("threads", "points", "stop_after", "frozen_alarm"):
            value = getattr(self, name)
            require(value >= 1, f"rewards.{name}", value, "1 or more")
        require(
            0 < self.missing_alarm <= 1,
            "rewards.missing_alarm",
            self.missing_alarm,
            "a share above 0, at most 1",
        )
        for name in ("deadline_s", "start_s"):
            value = getattr(self, name)
            require(value > 0, f"rewards.{name}", value, "seconds above 0")
        self._check_models()

    def _check_models(self) -> None:
        """Of every model's section."""
        for name in (*JUDGES, "hps_v2_1", "shapellm"):
            model, path = getattr(self, name), f"rewards.{name}"
            require(model.batch >= 1, f"{path}.batch", model.batch, "1 or more")
            types = ("auto", "float16", "bfloat16", "float32")
            choice(f"{path}.dtype", model.dtype, *types)
        choice("rewards.shapellm.up", self.shapellm.up, "z", "y")
        for name in JUDGES:
            judge, path = getattr(self, name), f"rewards.{name}"
            choice(f"{path}.server", judge.server, "vllm", "transformers")
            for field, least in (("in_flight", 1), ("max_tokens", 1), ("retries", 0)):
                value = getattr(judge, field)
                require(value >= least, f"{path}.{field}", value, f"{least} or more")
            request_s = judge.request_s
            require(request_s > 0, f"{path}.request_s", request_s, "seconds above 0")
            asked = self.backend == "openai" and name in self.loaded()
            require(
                not asked or request_s < self.deadline_s,
                f"{path}.request_s",
                request_s,
                f"less than rewards.deadline_s={self.deadline_s:g}, which has to leave "
                "time for another try",
            )

    def check_places(self) -> None:
        """What is asked before scorers are: that what is elsewhere has an address.

        Raises:
            UserError: it has none. A config alone may leave this open.
        """
        if self.backend == "remote":
            for field in ("servers", "secret_file"):
                value = getattr(self.remote, field)
                require(
                    bool(value),
                    f"rewards.remote.{field}",
                    value,
                    "something, as rewards.backend is remote (python -m "
                    "ar3d_jax.rewards.serve)",
                )
        if self.backend == "openai":
            for name in self.loaded():
                if name in JUDGES:
                    found = getattr(self, name).endpoints
                    require(
                        bool(found) and all("://" in url for url in found),
                        f"rewards.{name}.endpoints",
                        found,
                        "one http://host:port/v1 or more, as rewards.backend is openai "
                        "(launch/rewards_vllm.sh starts them)",
                    )

    def loaded(self) -> dict[str, tuple[str, ...]]:
        """Scorer -> its roles, of all roles that have a weight; the judge's, too.

        With backend=remote, one that has them all scored elsewhere, but for the judge.
        """
        fills: dict[str, list[str]] = {}
        for role in dict.fromkeys(self.roles("coarse") + self.roles("refined")):
            name = getattr(self.scorers, role)
            name = "remote" if self.backend == "remote" else name
            fills.setdefault(name, []).append(role)
        fills |= {role: [role] for role in self.roles("judge")}
        return {name: tuple(roles) for name, roles in fills.items()}

    def ensemble_of(self, step: str) -> Literal["coarse", "refined"]:
        """Whose roles score a generation step: its own, or of `shape` the ensemble."""
        name = self.ensemble if step == "shape" else step
        return "coarse" if name == "coarse" else "refined"

    def roles(self, step: str) -> tuple[str, ...]:
        """Roles that are scored: of "coarse" or "refined", those that have a weight.

        "judge", held-out evaluation, has the role of that name where it is loaded.
        """
        if step == "judge":
            return ("judge",) if self.judge else ()
        weights = dataclasses.asdict(getattr(self.weights, step))
        return tuple(role for role, weight in weights.items() if weight != 0)
