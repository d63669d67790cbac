"""Config dataclasses, config files and presets."""

import ast
import dataclasses
import io
import runpy
import tokenize
from pathlib import Path

import pytest

from ar3d_jax import command
from ar3d_jax.config import (
    Config,
    OptimConfig,
    RewardsConfig,
    from_config_dict,
    to_config_dict,
    to_dict,
)
from ar3d_jax.config_rewards import ScorersConfig
from ar3d_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def config_classes(path):
    """Every dataclass of config.py, and every *Config elsewhere."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and (
            path.name == "config.py" or node.name.endswith("Config")
        ):
            yield node


def test_every_field_has_its_reason():
    """A comment on the field's line(s), or on the line above it."""
    bare = []
    for path in sorted((ROOT / "ar3d_jax").rglob("*.py")):
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        comments = {
            token.start[0] for token in tokens if token.type == tokenize.COMMENT
        }
        for section in config_classes(path):
            previous = section.lineno
            for field in section.body:
                if isinstance(field, ast.AnnAssign):
                    own = set(range(field.lineno, field.end_lineno + 1))
                    above = {field.lineno - 1} - {previous}
                    if not comments & (own | above):
                        bare.append(f"{section.name}.{field.target.id}")
                previous = field.end_lineno
    assert not bare


def test_round_trip():
    config = Config(steps=7, optim=OptimConfig(lr=3e-5))
    assert from_config_dict(to_config_dict(config)) == config
    assert from_config_dict(to_dict(config)) == config
    assert hash(from_config_dict(to_dict(config))) == hash(config)


def test_config_dict_is_locked():
    config = to_config_dict(Config())
    with pytest.raises(AttributeError):
        config.stepz = 3
    with pytest.raises(AttributeError):
        config.policy.widht = 3


def test_numbers_and_lists_convert():
    config = from_config_dict(
        {"optim": {"lr": 1}, "rollout": {"prompt_tokens": [32, 64]}}
    )
    assert config.optim.lr == 1.0
    assert isinstance(config.optim.lr, float)
    assert config.rollout.prompt_tokens == (32, 64)


ONE_STEP = {"paradigm": "grpo", "rewards": {"ensemble": "refined"}}
ZERO = {"coarse": {"preference": 0.0, "alignment": 0.0, "category": 0.0}}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"stepz": 1}, "stepz"),
        ({"policy": {"widht": 1}}, "policy.widht"),
        ({"policy": 3}, "policy"),
        ({"steps": "60"}, "steps"),
        ({"steps": 1.0}, "steps"),
        ({"steps": True}, "steps"),
        ({"optim": {"lr": "1e-4"}}, "optim.lr"),
        ({"log": {"tensorboard": 1}}, "log.tensorboard"),
        ({"rollout": {"prompt_tokens": [64, "128"]}}, "rollout.prompt_tokens"),
        ({"rollout": {"prompt_tokens": 64}}, "rollout.prompt_tokens"),
        ({"prompts": None}, "prompts"),
    ],
)
def test_unknown_fields_and_wrong_types_are_named(values, named):
    with pytest.raises(UserError, match=rf"{named}\b") as error:
        from_config_dict(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"group_size": 1}, "group_size"),
        ({"paradigm": "ppo"}, "paradigm"),
        ({"policy": {"heads": 5}}, "policy.heads"),  # no multiple of 2 kv_heads
        ({"policy": {"dtype": "float16"}}, "policy.dtype"),
        ({"codec": {"blocks": [1, 1]}}, "codec.blocks"),  # three channels
        ({"codec": {"resolution": 24}}, "codec.resolution"),  # 6 cells along z
        ({"rollout": {"prompt_tokens": [128, 64]}}, "rollout.prompt_tokens"),
        ({"rollout": {"temperature": 0.0}}, "rollout.temperature"),
        ({"objective": {"aggregation": "mean"}}, "objective.aggregation"),
        ({"objective": {"micro_batch": 40}}, "objective.micro_batch"),  # of 96 rows
        (
            {"objective": {"lam_end": 0.5}},
            "with objective.lam_steps=0, objective.lam_e",
        ),
        ({"objective": {"lam_steps": 61}}, "objective.lam_steps is 61"),  # of 60 steps
        ({"objective": {"clip_high": 0.0}}, "objective.clip_low/clip_high"),
        ({"optim": {"b1": 1.0}}, "optim.b1"),
        ({"optim": {"b2": 1.0}}, "optim.b2"),
        ({"optim": {"eps": 0.0}}, "optim.eps"),
        ({"optim": {"weight_decay": -0.1}}, "optim.weight_decay"),
        ({"rewards": {"scorers": {"parts": "shapelm"}}}, "rewards.scorers.parts"),
        ({"rewards": {"on_failure": "zero"}}, "rewards.on_failure"),
        ({"rewards": {"remote": {"in_flight": 0}}}, "rewards.remote.in_flight"),
        ({"rewards": {"remote": {"connect_s": 0.0}}}, "rewards.remote.connect_s"),
        ({"rewards": {"start_s": 0.0}}, "rewards.start_s"),
        (
            {
                "rewards": {
                    "backend": "openai",
                    "scorers": {"category": "qwen_vl"},
                    "deadline_s": 45.0,
                }
            },
            "rewards.qwen_vl.request_s",
        ),
        ({"mesh": {"tp": 0}}, "mesh"),
        ({"rollout": {"ahead": 2}}, "rollout.ahead"),
        ({"rollout": {"ahead": 1}, "checkpoint_every": 1}, "checkpoint_every is 1"),
        ({"rollout": {"plans": False}}, "rollout.plans"),
        ({"paradigm": "grpo"}, "with paradigm=grpo, rewards.ensemble is 'both'"),
        ({"rewards": {"ensemble": "coarse"}}, "with paradigm=higrpo, rewards.ensemble"),
        (
            {"rollout": {"refined_sees_coarse": True}, **ONE_STEP},
            "rollout.refined_sees_coarse",
        ),
        (
            {"paradigm": "grpo", "rewards": {"ensemble": "coarse", "weights": ZERO}},
            "rewards.weights.coarse is 0.0; expected a role with a weight",
        ),
        ({"objective": {"updates_per_rollout": 3, "minibatches": 2}}, "updates_per"),
        (
            {"objective": {"updates_per_rollout": 5, "minibatches": 5}},
            "minibatches is 5; expected a divisor of prompts_per_step=12",
        ),
        ({"objective": {"dual_clip": 0.5}}, "objective.dual_clip"),
        ({"objective": {"band_low": 0.9, "band_high": 0.2}}, "objective.band_low"),
        ({"objective": {"sequence_clip_low": 1.0}}, "objective.sequence_clip_low"),
        ({"data": {"share": 0.0}}, "data.share"),
    ],
)
def test_values_that_do_not_fit_are_named(values, named):
    with pytest.raises(UserError, match=named):
        from_config_dict(values)


def test_sizes_that_follow_from_others():
    """32^3 voxels, two halvings: 8^3 cells, 4 to a token; published: 16^3 -> 1,024."""
    assert Config().codec.latent_resolution == 8
    assert Config().codec.tokens == 128
    assert Config().codec.code_size == 32
    published = command.load_config_file(f"{ROOT}/configs/higrpo.py:7b")
    assert from_config_dict(published).codec.tokens == 1024


def test_papers_run():
    """The settings that the paper states."""
    config = from_config_dict(command.load_config_file(f"{ROOT}/configs/higrpo.py:7b"))
    assert (config.steps, config.prompts_per_step, config.group_size) == (1200, 16, 8)
    assert (config.optim.lr, config.objective.kl_coef) == (1e-6, 0.01)
    assert (config.objective.lam, config.objective.updates_per_rollout) == (1.0, 1)
    assert config.render.views == 6


def test_documented_meshes_are_allowed():
    """docs/scaling.md and docs/pods.md, with the slices that the latter adds."""
    for mesh in ({"fsdp": 16}, {"fsdp": 8, "tp": 4}, {"fsdp": 8, "tp": 4, "data": 2}):
        for name in ("higrpo", "grpo"):
            config = command.load_config_file(f"{ROOT}/configs/{name}.py:7b")
            config.mesh.update(mesh)
            assert from_config_dict(config).mesh.fsdp == mesh["fsdp"]


def test_only_the_ensemble_that_is_used_is_scored():
    config = from_config_dict(command.load_config_file(f"{ROOT}/configs/grpo.py"))
    assert config.used_rewards.roles("refined") == config.rewards.roles("refined")
    assert config.used_rewards.roles("coarse") == ()
    assert Config().used_rewards == Config().rewards


CONFIG_FILES = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.name)
def test_every_preset_builds(path):
    """`section` is the dataclass with these fields, among those the file imports."""
    names = runpy.run_path(str(path))
    for preset in names.get("PRESETS", ["tiny"]):
        values = command.load_config_file(f"{path}:{preset}")
        (section,) = (
            kind
            for kind in names.values()
            if isinstance(kind, type)
            and dataclasses.is_dataclass(kind)
            and {field.name for field in dataclasses.fields(kind)} == set(values)
        )
        config = from_config_dict(values, section)
        assert to_dict(config) == values.to_dict()


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.name)
def test_config_files_without_argument_and_with_a_wrong_one(path):
    assert command.load_config_file(str(path)).is_locked
    with pytest.raises(UserError, match="unknown preset 'huge'"):
        command.load_config_file(f"{path}:huge")


def test_presets_carry_their_names():
    """`config.preset` is what the run's first line and config.json say."""
    for name, config in runpy.run_path(f"{ROOT}/configs/higrpo.py")["PRESETS"].items():
        assert config.preset == name


def test_defaults_are_the_tiny_preset():
    tiny = command.load_config_file(f"{ROOT}/configs/higrpo.py")
    assert from_config_dict(tiny) == Config()
    assert all(f.default is not dataclasses.MISSING for f in dataclasses.fields(Config))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("policy.kv_heads", 0),
        ("objective.micro_batch", 0),
        ("optim.grad_clip", 0.0),
        ("evaluation.prompts", 0),
        ("eval_every", -1),
        ("rewards.scorers.preference", "judge"),  # it never rewards
        ("log.samples_every", 0),
        ("log.keep_checkpoints", 0),
        ("rewards.points", 0),
        ("prompts_per_step", 3),  # no 16 rows per micro-batch
        ("mesh.tp", 3),
        ("mesh.fsdp", 32),
    ],
)
def test_values_that_would_fail_later_are_refused_now(field, value):
    values = to_dict(Config())
    section = values
    *path, name = field.split(".")
    for part in path:
        section = section[part]
    section[name] = value
    with pytest.raises(UserError, match=r"config field .* expected"):
        from_config_dict(values)


def test_a_request_may_take_as_long_as_it_likes_where_none_is_sent():
    for backend, scorer in (("local", "qwen_vl"), ("openai", "embedded")):
        scorers = ScorersConfig(category=scorer)
        RewardsConfig(backend=backend, scorers=scorers, deadline_s=45.0)


def test_a_step_may_go_without_scores_but_not_both():
    values = to_dict(Config())
    coarse, refined = (values["rewards"]["weights"][s] for s in ("coarse", "refined"))
    coarse.update(dict.fromkeys(coarse, 0.0))
    assert from_config_dict(values).rewards.roles("coarse") == ()
    refined.update(dict.fromkeys(refined, 0.0))
    with pytest.raises(UserError, match="nothing would be learnt"):
        from_config_dict(values)


@pytest.mark.parametrize("step", ["coarse", "refined"])
def test_the_judge_can_have_no_weight(step):
    values = to_dict(Config())
    values["rewards"]["weights"][step]["judge"] = 1.0
    with pytest.raises(UserError, match=rf"unknown .* rewards.weights.{step}.judge"):
        from_config_dict(values)


def test_the_judge_is_no_role_of_a_reward():
    for loaded in (True, False):
        rewards = RewardsConfig(judge=loaded)
        assert "judge" not in rewards.roles("coarse") + rewards.roles("refined")
        assert rewards.roles("judge") == ("judge",) * loaded
