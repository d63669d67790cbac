"""One optimiser step against plain autodiff, and what must not change it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ar3d_jax.config import (
    LoraConfig,
    ObjectiveConfig,
    OptimConfig,
    PolicyConfig,
    RolloutConfig,
)
from ar3d_jax.higrpo.advantages import group_advantages
from ar3d_jax.higrpo.objective import policy_loss
from ar3d_jax.higrpo.update import (
    ScoredRollouts,
    from_saved,
    init_state,
    minibatches,
    optimiser,
    over_updates,
    to_save,
    update_step,
    with_trainer_logp,
)
from ar3d_jax.policy import lora
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.sequence import Layout, Sequence, sequence_logp
from ar3d_jax.policy.vocab import Vocab
from ar3d_jax.rollout.two_step import rollout_coarse, rollout_refined
from ar3d_jax.sharding import make_mesh
from tests.higrpo import plain
from tests.policy import small_policy

B, G = 4, 2
ROWS = B * G
VOCAB = Vocab(
    endoftext=20, im_start=21, im_end=22, codes_start=23, codes=16, mesh_start=39,
    mesh_end=40,
)  # fmt: skip
SMALL = PolicyConfig(
    vocab_size=128, width=16, layers=2, heads=4, kv_heads=2, head_size=4, mlp_width=32
)
OBJECTIVE = ObjectiveConfig(micro_batch=4)
OPTIM = OptimConfig(lr=1e-3, warmup_steps=4)
REWARDS = {
    "coarse": np.array([[1, 2], [3, 0], [5, 5.5], [0, 1]], np.float32),
    "refined": np.array([[2, 1], [0, 3], [1, 1], [4, 1]], np.float32),
}
PROMPT, PLAN, CODES = 4, 5, 6


def make_policy(seed=0, dtype="float32"):
    """Random weights from NumPy: nothing to compile."""
    cfg = dataclasses.replace(SMALL, dtype=dtype)
    abstract = jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    mesh = jax.sharding.get_mesh()

    def fill(leaf):
        layout = jax.NamedSharding(mesh, leaf.sharding.spec)
        values = rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype)
        return jax.device_put(values, layout)

    return jax.tree.map(fill, abstract)


def make_sequence(rng, *, plan_sampled, shape, temperature=1.0):
    """Rows of [prompt, left-padded][plan, right-padded] and, for a shape, [codes]."""
    prompt = rng.integers(1, PROMPT + 1, (ROWS, 1))
    plan = rng.integers(1, PLAN + 1, (ROWS, 1))
    t = np.arange(PROMPT + PLAN + (1 + CODES if shape else 0))
    valid = (t >= PROMPT - prompt) & ((t < PROMPT + plan) | (t >= PROMPT + PLAN))
    tokens = rng.integers(0, 20, valid.shape)
    sampled = np.zeros_like(valid)
    if plan_sampled:
        sampled[:, PROMPT : PROMPT + PLAN] = valid[:, PROMPT : PROMPT + PLAN]
    first_code = PROMPT + PLAN + 1
    if shape:
        tokens[:, first_code - 1] = VOCAB.mesh_start
        tokens[:, first_code:] = rng.integers(23, 39, (ROWS, CODES))
        sampled[:, first_code:] = True
    return Sequence(
        tokens=jnp.asarray(tokens, jnp.int32),
        positions=jnp.asarray(np.maximum(np.cumsum(valid, 1) - 1, 0), jnp.int32),
        valid=jnp.asarray(valid),
        sampled=jnp.asarray(sampled),
        logp=jnp.zeros(valid.shape),
        layout=Layout(
            text=(PROMPT, PROMPT + PLAN) if plan_sampled else None,
            shape=(first_code, first_code + CODES) if shape else None,
            temperature=temperature,
        ),
    )


def make_rollouts(policy, rewards=REWARDS, seed=0):
    """As a rollout leaves them: logp is the policy's own."""
    rng = np.random.default_rng(seed)
    sequences = {
        "coarse": (make_sequence(rng, plan_sampled=True, shape=True),),
        "refined": (
            make_sequence(rng, plan_sampled=True, shape=False),
            make_sequence(rng, plan_sampled=False, shape=True, temperature=0.7),
        ),
    }
    filled = jax.tree.map(
        lambda s: dataclasses.replace(s, logp=logp_of(policy, s)),
        jax.tree.map(on_rows, sequences),
        is_leaf=lambda s: isinstance(s, Sequence),
    )
    return ScoredRollouts(filled, jax.tree.map(jnp.asarray, rewards))


@jax.jit
def logp_of(policy, sequence):
    return sequence_logp(policy, sequence, VOCAB)[0]


def on_rows(x):
    return jax.sharding.reshard(x, jax.P(("data", "fsdp"), *(None,) * (x.ndim - 1)))


def run(policy, rollouts, *, reference=None, objective=OBJECTIVE):
    state = init_state(policy, optim=OPTIM)
    reference = None if objective.kl_coef == 0 else reference or policy
    return update_step(
        state, reference, rollouts, vocab=VOCAB, objective=objective, optim=OPTIM
    )


def assert_close(one, other, **tolerance):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance)


def plain_logp(policy, sequence):
    """Log-probabilities from the logits of all tokens, by log_softmax."""
    logits = policy(sequence.tokens, sequence.positions, sequence.valid)
    logits = logits[:, :-1] / sequence.layout.temperature
    ids = np.arange(SMALL.vocab_size)
    columns = [np.zeros(SMALL.vocab_size, bool)] * sequence.tokens.shape[1]
    text, shape = sequence.layout.text, sequence.layout.shape
    for t in range(*(text or (0, 0))):
        columns[t] = (ids < 20) | (ids == VOCAB.im_end)
    for t in range(*(shape or (0, 0))):
        columns[t] = (ids >= 23) & (ids < 39)
    allowed = jnp.asarray(np.stack(columns)[None, 1:])
    logp = jax.nn.log_softmax(jnp.where(allowed, logits, -1e9), axis=-1)
    chosen = jax.nn.one_hot(sequence.tokens[:, 1:], SMALL.vocab_size)
    logp = jnp.sum(jnp.where(chosen > 0, logp, 0.0), axis=-1)
    return jnp.pad(logp, ((0, 0), (1, 0)))


def test_equals_plain_autodiff_and_adamw():
    """Off-policy, so that ratio, clipping and KL all take part."""
    policy, reference, sampler = make_policy(0), make_policy(1), make_policy(2)
    rollouts = make_rollouts(sampler)

    @jax.jit
    def plain(policy):
        total = 0.0
        for name, parts in rollouts.sequences.items():
            logp, old, ref, mask = (
                jnp.concatenate(x, axis=1).reshape(B, G, -1)
                for x in zip(
                    *(
                        (
                            plain_logp(policy, s),
                            plain_logp(sampler, s),
                            plain_logp(reference, s),
                            s.sampled,
                        )
                        for s in parts
                    ),
                    strict=True,
                )
            )
            rewards = rollouts.rewards[name]
            advantages = group_advantages(rewards, jnp.ones((B, G), bool))
            spread = (rewards.max(axis=1) > rewards.min(axis=1))[:, None, None]
            total += policy_loss(
                logp, old, ref, advantages, mask & spread, clip_low=0.2,
                clip_high=0.28, kl_coef=0.01, aggregation="token", importance="token",
            )[0]  # fmt: skip
        return total

    loss, gradient = jax.value_and_grad(plain)(policy)
    adamw = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(1e-3 / 4, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.01),
    )
    updates, _ = adamw.update(gradient, adamw.init(policy), policy)
    expected = optax.apply_updates(policy, updates)

    state, metrics = run(policy, rollouts, reference=reference)
    assert float(metrics["loss"]) == pytest.approx(float(loss), abs=2e-6)
    norm = float(optax.tree.norm(gradient))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    assert float(metrics["clip_fraction"]) > 0.1
    # Adam divides by the gradient's size, so rounding of a tiny gradient shows.
    assert_close(state.policy, expected, atol=2e-6)
    assert int(state.step) == 1


def test_first_update_has_ratio_1_kl_0_and_metrics_of_the_batch():
    policy = make_policy()
    rollouts = make_rollouts(policy)
    _, metrics = run(policy, rollouts)
    assert float(metrics["ratio_max"]) == pytest.approx(1, abs=1e-5)
    assert float(metrics["kl"]) == pytest.approx(0, abs=1e-9)
    assert float(metrics["clip_fraction"]) == 0
    assert 0 < float(metrics["entropy"]) < np.log(21)
    assert int(metrics["groups_used"]) == 4  # group 2 has spread in its coarse step
    assert float(metrics["reward/coarse_std"]) == pytest.approx(
        (0.5 + 1.5 + 0.25 + 0.5) / 4
    )
    assert float(metrics["reward/refined_std"]) == pytest.approx(3.5 / 4)
    total = metrics["loss/coarse"] + metrics["loss/refined"]
    assert float(metrics["loss"]) == pytest.approx(float(total), abs=1e-7)


def test_micro_batches_change_nothing():
    """With the global divisor, GSPO, and no reference; one may cut a group."""
    policy = make_policy()
    rollouts = make_rollouts(make_policy(2))
    whole, in_parts = (
        run(
            policy,
            rollouts,
            objective=ObjectiveConfig(
                micro_batch=rows,
                aggregation="token_batch",
                importance="sequence",
                kl_coef=0.0,
            ),
        )
        for rows in (8, 1)
    )
    assert_close(whole[1], in_parts[1], rtol=1e-4, atol=1e-6)
    assert_close(whole[0], in_parts[0], atol=1e-6)
    assert np.isnan(whole[1]["kl"])
    assert np.isfinite(whole[1]["loss"])


def test_the_mesh_changes_nothing(monkeypatch):
    """Loss, gradient (as AdamW's first moment) and layouts."""
    four = dataclasses.replace(SMALL, kv_heads=4, heads=8)  # tp=4 needs four
    monkeypatch.setitem(globals(), "SMALL", four)
    # AdamW divides: where a gradient is hardly more than rounding, eps hides that.
    monkeypatch.setitem(globals(), "OPTIM", dataclasses.replace(OPTIM, eps=1e-6))
    objective = dataclasses.replace(OBJECTIVE, micro_batch=8)
    outcomes = []
    for shape in ((1, 1), (8, 1), (4, 2), (2, 4)):
        with jax.set_mesh(make_mesh(*shape)):
            policy = make_policy()
            rollouts = make_rollouts(policy)
            state, metrics = run(policy, rollouts, objective=objective)
            for leaf, original in zip(
                *map(jax.tree.leaves, (state.policy, policy)), strict=True
            ):
                assert leaf.sharding == original.sharding
            moments = state.opt_state[1][0].mu
            assert moments.head[...].sharding == policy.head[...].sharding
        outcomes.append((metrics, moments, state.policy))
    first = outcomes[0]
    assert np.abs(np.asarray(first[1].head[...])).max() > 1e-4
    for metrics, moments, policy in outcomes[1:]:
        assert_close(metrics, first[0], rtol=1e-5, atol=1e-5)
        assert_close(moments, first[1], rtol=1e-5, atol=1e-6)
        assert_close(policy, first[2], atol=5e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"aggregation": "token_batch", "importance": "sequence", "dual_clip": 3.0}
        | {"advantage_std": "batch", "correct_mismatch": 2.0},
        {"aggregation": "sequence", "advantage_std": "none", "kl_coef": 0.0}
        | {"updates_per_rollout": 2, "minibatches": 2},
    ],
    ids=["gspo", "grpo"],
)
def test_neither_mesh_nor_micro_batches_change_any_option(options):
    """4x2 devices in one micro-batch against one device in as many as can be."""
    outcomes = []
    objective = ObjectiveConfig(**options)
    rows = ROWS // objective.minibatches
    for shape, micro_batch in (((1, 1), 2), ((4, 2), rows)):
        objective = dataclasses.replace(objective, micro_batch=micro_batch)
        with jax.set_mesh(make_mesh(*shape)):
            policy = make_policy()
            rollouts = make_rollouts(make_policy(2))  # ratios are not 1
            if objective.correct_mismatch:
                rollouts = with_trainer_logp(rollouts, policy, VOCAB, objective)
            state = init_state(policy, optim=OPTIM)
            reference = policy if objective.kl_coef else None
            for prompts in minibatches(objective, B, jax.random.key(0)):
                state, metrics = update_step(
                    state,
                    reference,
                    rollouts,
                    prompts,
                    vocab=VOCAB,
                    objective=objective,
                    optim=OPTIM,
                )
        outcomes.append((metrics, state.opt_state[1][0].mu, state.policy))
    for one, other in zip(*outcomes, strict=True):
        assert_close(one, other, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_trains_its_product_alone(dtype):
    policy = make_policy(dtype=dtype)
    frozen = jax.tree.map(np.asarray, policy)
    config = LoraConfig(rank=2, targets=("qkv", "down"))
    state = init_state(policy, optim=OPTIM, lora_config=config, key=jax.random.key(1))
    before = jax.tree.map(np.asarray, lora.trained(state.policy))
    rollouts = make_rollouts(state.policy)
    state, metrics = update_step(
        state, None, rollouts, vocab=VOCAB, objective=OBJECTIVE, optim=OPTIM
    )
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert_close(lora.base(state.policy), frozen, rtol=0)
    after = lora.trained(state.policy)
    assert (
        np.abs(np.asarray(after["qkv"]["b"][...]) - before["qkv"]["b"][...]).max() > 0
    )
    saved = to_save(state)
    assert {leaf.size for leaf in jax.tree.leaves(saved.opt_state[1][0].mu)} == {
        leaf.size for leaf in jax.tree.leaves(after)
    }
    assert set(saved.policy) == {"qkv", "down"}
    again = from_saved(state, saved)
    assert_close(again.policy, state.policy, rtol=0)


def test_what_a_rollout_without_a_score_did_does_not_matter():
    policy = make_policy()
    rewards = {name: np.array(x) for name, x in REWARDS.items()}
    rewards["coarse"][0] = [np.nan, 2]  # one valid: the group teaches nothing
    rewards["refined"][1, 0] = rewards["refined"][1, 1] = np.nan
    rollouts = make_rollouts(policy, rewards)

    def changed(sequence, field, row, value):
        array = np.array(getattr(sequence, field))
        array[row] = value
        return dataclasses.replace(sequence, **{field: on_rows(jnp.asarray(array))})

    outcomes = []
    for value in (3, 17):
        (coarse,) = rollouts.sequences["coarse"]
        local, refined = rollouts.sequences["refined"]
        sequences = {
            "coarse": (changed(coarse, "tokens", 0, value),),
            "refined": (
                changed(local, "logp", 2, value),
                changed(refined, "tokens", 3, value),
            ),
        }
        outcomes.append(run(policy, dataclasses.replace(rollouts, sequences=sequences)))
    assert_close(*outcomes, rtol=0)
    state, metrics = outcomes[0]
    assert int(metrics["groups_used"]) == 4
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.policy))


def test_a_batch_without_any_score_leaves_only_weight_decay():
    policy = make_policy()
    rewards = jax.tree.map(lambda x: x * np.nan, REWARDS)
    state, metrics = run(policy, make_rollouts(policy, rewards))
    assert (int(metrics["groups_used"]), float(metrics["grad_norm"])) == (0, 0)
    assert float(metrics["loss"]) == 0
    shrunk = jax.tree.map(lambda x: x * (1 - 1e-3 / 4 * 0.01), policy)
    assert_close(state.policy, shrunk, rtol=1e-6)


def test_the_state_is_donated_and_its_source_is_not():
    policy = make_policy()
    state = init_state(policy, optim=OPTIM)
    update_step(
        state,
        policy,
        make_rollouts(policy),
        vocab=VOCAB,
        objective=OBJECTIVE,
        optim=OPTIM,
    )
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert not any(x.is_deleted() for x in jax.tree.leaves(policy))


def test_better_rollouts_become_likelier():
    policy = make_policy()
    rollouts = make_rollouts(policy)
    state = init_state(policy, optim=OPTIM)
    for _ in range(4):
        state, _ = update_step(
            state, policy, rollouts, vocab=VOCAB, objective=OBJECTIVE, optim=OPTIM
        )
    for name, parts in rollouts.sequences.items():
        gain = sum(
            (logp_of(state.policy, s) - s.logp).sum(axis=1).reshape(B, G) for s in parts
        )
        advantages = group_advantages(rollouts.rewards[name], jnp.ones((B, G), bool))
        assert float((gain * advantages).sum()) > 0


def test_the_rate_rises_to_lr_and_moments_are_float32():
    """Adam's first steps on a constant gradient move by the rate, whatever its size."""
    steps = optimiser(OptimConfig(lr=0.5, warmup_steps=2, weight_decay=0.0))
    p = jnp.ones(3)
    state = steps.init(p)
    moves = []
    for _ in range(3):
        updates, state = steps.update(jnp.full(3, 1e-3), state, p)
        moves.append(float(-updates[0]))
    assert moves == pytest.approx([0.25, 0.5, 0.5], rel=1e-3)
    state = init_state(make_policy(dtype="bfloat16"), optim=OPTIM)
    assert {x.dtype.name for x in jax.tree.leaves(state.policy)} == {"bfloat16"}
    moments = state.opt_state[1][0]
    assert {x.dtype.name for x in jax.tree.leaves((moments.mu, moments.nu))} == {
        "float32"
    }


def adamw_by_hand(parameter, gradients, cfg):
    """The parameter after each step: clipping by the norm, warm-up, AdamW."""
    first, second = np.zeros_like(parameter), np.zeros_like(parameter)
    found = []
    for t, gradient in enumerate(gradients, 1):
        g = gradient * min(1.0, cfg.grad_clip / np.linalg.norm(gradient))
        first = cfg.b1 * first + (1 - cfg.b1) * g
        second = cfg.b2 * second + (1 - cfg.b2) * g**2
        mean, square = first / (1 - cfg.b1**t), second / (1 - cfg.b2**t)
        move = mean / (np.sqrt(square) + cfg.eps) + cfg.weight_decay * parameter
        parameter = parameter - cfg.lr * min(1.0, t / cfg.warmup_steps) * move
        found.append(parameter)
    return found


def test_several_steps_of_the_optimiser_by_hand():
    """Gradients of unlike sizes, so that the clip and each of AdamW's numbers shows."""
    cfg = OptimConfig(
        lr=0.1, warmup_steps=3, b1=0.6, b2=0.7, eps=0.05, weight_decay=0.3,
        grad_clip=2.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 3)) * [[40], [0.1], [1], [5], [0.3]]
    parameter = np.array([1.0, -2.0, 0.5])
    expected = adamw_by_hand(parameter, gradients, cfg)
    steps = optimiser(cfg)
    p = jnp.asarray(parameter, jnp.float32)
    state = steps.init(p)
    for gradient, wanted in zip(gradients, expected, strict=True):
        updates, state = steps.update(jnp.asarray(gradient, jnp.float32), state, p)
        p = optax.apply_updates(p, updates)
        np.testing.assert_allclose(p, wanted, rtol=1e-5)


def test_a_bfloat16_policy_moves_by_less_than_its_own_precision():
    """The paper's rate: 1e-6 is far below bfloat16's spacing, and must add up."""
    policy = make_policy(dtype="bfloat16")
    optim = dataclasses.replace(OPTIM, lr=1e-6, moment_dtype="bfloat16")
    state = init_state(policy, optim=optim)
    for _ in range(3):
        state, _ = update_step(
            state,
            policy,
            make_rollouts(policy),
            vocab=VOCAB,
            objective=OBJECTIVE,
            optim=optim,
        )
    moved = np.abs(np.asarray(state.master.head[...] - policy.head[...].astype("f4")))
    assert 1e-6 < moved.max() < 4e-6
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.master)
    assert_close(state.policy, rounded, rtol=0)
    dtypes = {x.dtype.name for x in jax.tree.leaves(state.opt_state)}
    assert dtypes == {"bfloat16", "int32"}


def test_moments_in_bfloat16_lead_nearly_the_same_way():
    policy = make_policy()
    moved = {}
    for dtype in ("float32", "bfloat16"):
        optim = dataclasses.replace(
            OPTIM, moment_dtype=dtype, gradient_dtype=dtype, weight_decay=0.0
        )
        state = init_state(policy, optim=optim)
        for _ in range(4):
            state, _ = update_step(
                state,
                policy,
                make_rollouts(policy),
                vocab=VOCAB,
                objective=OBJECTIVE,
                optim=optim,
            )
        assert state.master is None
        change = jax.tree.map(lambda a, b: a - b, state.policy, policy)
        moved[dtype] = np.concatenate([np.ravel(x) for x in jax.tree.leaves(change)])
    cosine = moved["float32"] @ moved["bfloat16"]
    cosine /= np.linalg.norm(moved["float32"]) * np.linalg.norm(moved["bfloat16"])
    assert cosine > 0.99


def of_prompts(rollouts, prompts):
    """A batch of some prompts alone, as if they had been sampled alone."""
    rows = np.concatenate([np.arange(p * G, p * G + G) for p in prompts])
    sequences = jax.tree.map(lambda x: on_rows(np.asarray(x)[rows]), rollouts.sequences)
    rewards = {name: np.asarray(x)[prompts] for name, x in rollouts.rewards.items()}
    return ScoredRollouts(sequences, rewards)


@pytest.mark.parametrize("aggregation", ["token", "token_batch", "sequence"])
def test_updates_on_minibatches_are_updates_on_their_prompts(aggregation):
    objective = ObjectiveConfig(
        micro_batch=4,
        updates_per_rollout=4,
        minibatches=2,
        aggregation=aggregation,
        kl_coef=0.0,
    )
    policy = make_policy()
    rollouts = make_rollouts(policy)
    settings = {"vocab": VOCAB, "objective": objective, "optim": OPTIM}
    state, plain = (init_state(policy, optim=OPTIM) for _ in range(2))
    parts = minibatches(objective, B, jax.random.key(3))
    assert len(parts) == 4
    for one_pass in (parts[:2], parts[2:]):
        assert sorted(np.concatenate(one_pass).tolist()) == [0, 1, 2, 3]
    found = []
    for prompts in parts:
        state, metrics = update_step(state, None, rollouts, prompts, **settings)
        alone = of_prompts(rollouts, np.asarray(prompts))
        plain, expected = update_step(plain, None, alone, **settings)
        assert float(metrics["loss"]) == pytest.approx(
            float(expected["loss"]), abs=1e-6
        )
        found.append(jax.device_get(metrics))
    assert_close(state, plain, atol=1e-6)
    line = over_updates(found)
    assert line["mismatch"] == found[0]["mismatch"] < 1e-5
    assert line["ratio_max"] == max(x["ratio_max"] for x in found) > 1
    assert line["loss"] == pytest.approx(np.mean([x["loss"] for x in found]))


def test_an_update_that_had_nothing_to_learn_from_leaves_the_others_numbers():
    nan = float("nan")
    empty = {"loss": 0.0, "kl": nan, "mismatch": nan, "ratio_max": 0.0}
    full = {"loss": 1.0, "kl": 0.2, "mismatch": 0.1, "ratio_max": 1.5}
    later = {"loss": 2.0, "kl": 0.4, "mismatch": 0.3, "ratio_max": 1.2}
    line = over_updates([empty, full, later])
    assert line == pytest.approx(
        {"loss": 1.0, "kl": 0.3, "mismatch": 0.1, "ratio_max": 1.5}
    )
    assert np.isnan(over_updates([empty])["kl"])


def test_a_broken_gradient_among_several_shows():
    line = over_updates([{"grad_norm": 1.0}, {"grad_norm": float("inf")}])
    assert not np.isfinite(line["grad_norm"])


def test_a_sampler_that_disagrees_is_measured_and_corrected():
    """The trainer's own are the old ones; the sampler's only weigh the tokens."""
    policy = make_policy()
    rollouts = make_rollouts(policy)
    shift = 0.1
    sampled = jax.tree.map(
        lambda s: dataclasses.replace(s, logp=s.logp - shift * s.sampled),
        rollouts.sequences,
        is_leaf=lambda s: isinstance(s, Sequence),
    )
    shifted = dataclasses.replace(rollouts, sequences=sampled)
    _, plain = run(policy, shifted)
    assert float(plain["mismatch"]) == pytest.approx(shift, rel=1e-3)
    assert float(plain["ratio_max"]) == pytest.approx(np.exp(shift), rel=1e-3)

    objective = dataclasses.replace(OBJECTIVE, correct_mismatch=2.0, kl_coef=0.0)
    corrected = with_trainer_logp(shifted, policy, VOCAB, objective)
    _, metrics = run(policy, corrected, objective=objective)
    assert float(metrics["mismatch"]) == pytest.approx(shift, rel=1e-3)
    assert float(metrics["ratio_max"]) == pytest.approx(1.0, abs=1e-5)
    # The loss of the undisturbed rollouts, times exp(shift) < 2.
    _, exact = run(
        policy, rollouts, objective=dataclasses.replace(OBJECTIVE, kl_coef=0.0)
    )
    wanted = float(exact["loss"]) * np.exp(shift)
    assert float(metrics["loss"]) == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    capped = dataclasses.replace(objective, correct_mismatch=1.0)
    _, metrics = run(policy, corrected, objective=capped)
    assert float(metrics["loss"]) == pytest.approx(float(exact["loss"]), abs=1e-5)


def sampled_logp(policy, prompts):
    """A two-step rollout by `policy`: its sequences and the sampler's numbers."""
    cfg, key = RolloutConfig(plan_tokens=6), jax.random.key(0)
    sizes = {"group_size": 2, "shape_tokens": 9}
    arguments = (cfg, small_policy.VOCAB, key)
    coarse, cache = rollout_coarse(policy, prompts, *arguments, **sizes)
    rest = rollout_refined(policy, prompts, coarse, cache, *arguments, **sizes)
    return coarse, *rest


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_sampler_has_the_weights_that_were_trained(lora_rank):
    """After an update, the rollout's log-probabilities are the new policy's."""
    policy, prompts = small_policy.make_policy(), small_policy.make_prompts()
    optim = dataclasses.replace(OPTIM, lr=0.1, warmup_steps=0)
    thin = LoraConfig(rank=lora_rank, alpha=8.0)
    state = init_state(policy, optim=optim, lora_config=thin, key=jax.random.key(1))
    before = jax.tree.map(jnp.copy, state.policy)
    coarse, *refined = sampled_logp(state.policy, prompts)
    rollouts = ScoredRollouts({"coarse": (coarse,), "refined": tuple(refined)}, REWARDS)
    objective = dataclasses.replace(OBJECTIVE, kl_coef=0.0)
    arguments = {"vocab": small_policy.VOCAB, "objective": objective, "optim": optim}
    for _ in range(2):  # LoRA's first step moves one of its two matrices only
        state, _ = update_step(state, None, rollouts, **arguments)
    logp = jax.jit(lambda p, s: sequence_logp(p, s, small_policy.VOCAB)[0])
    for sequence in sampled_logp(state.policy, prompts):
        new, old = (np.asarray(logp(p, sequence)) for p in (state.policy, before))
        np.testing.assert_allclose(np.asarray(sequence.logp), new, atol=1e-4)
        assert np.abs(new - old).max() > 0.1


def test_without_a_reference_the_policy_is_not_kept_twice():
    policy = make_policy()
    state = init_state(policy, optim=OPTIM, keep=False)
    objective = dataclasses.replace(OBJECTIVE, kl_coef=0.0)
    rollouts = make_rollouts(policy)
    update_step(state, None, rollouts, vocab=VOCAB, objective=objective, optim=OPTIM)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(policy))


@pytest.mark.parametrize(
    ("std", "aggregation"),
    [("group", "token"), ("batch", "token_batch"), ("none", "sequence")],
)
def test_the_loss_is_that_of_the_config(std, aggregation):
    """On-policy and without KL it is the weighted sum of the advantages alone."""
    policy = make_policy()
    rollouts = make_rollouts(policy)
    objective = dataclasses.replace(
        OBJECTIVE, advantage_std=std, aggregation=aggregation, kl_coef=0.0
    )
    _, metrics = run(policy, rollouts, objective=objective)
    for name, sequences in rollouts.sequences.items():
        rewards = REWARDS[name]
        sampled = np.concatenate([np.asarray(s.sampled) for s in sequences], axis=1)
        mask = sampled.reshape(B, G, -1) & plain.used(rewards)[..., None]
        weights = plain.weights(mask, aggregation).sum(axis=2)
        expected = -(weights * plain.advantages(rewards, std)).sum()
        # Plans differ in length; where all rollouts weigh the same, that is no matter.
        assert (abs(expected) > 1e-3) == (aggregation != "sequence")
        assert float(metrics[f"loss/{name}"]) == pytest.approx(expected, abs=1e-5)


def test_the_reference_of_lora_is_what_was_frozen():
    """After the first update the policy is no longer there, and the KL shows it."""
    optim = dataclasses.replace(OPTIM, lr=0.1, warmup_steps=0)
    config = LoraConfig(rank=2, targets=("qkv", "down"))
    key = jax.random.key(1)
    state = init_state(make_policy(), optim=optim, lora_config=config, key=key)
    rollouts = make_rollouts(state.policy)
    found = []
    for _ in range(2):
        state, metrics = update_step(
            state, None, rollouts, vocab=VOCAB, objective=OBJECTIVE, optim=optim
        )
        found.append(float(metrics["kl"]))
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[1] > 1e-3


def test_passes_over_a_batch_have_orders_of_their_own():
    """Each pass has every prompt once, in an order that its number and the key give."""
    objective = ObjectiveConfig(updates_per_rollout=4, minibatches=2)
    orders = []
    for seed in (0, 0, 1):
        parts = [
            np.asarray(x) for x in minibatches(objective, 16, jax.random.key(seed))
        ]
        assert [len(part) for part in parts] == [8] * 4
        orders += [tuple(np.concatenate(parts[:2])), tuple(np.concatenate(parts[2:]))]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert orders[:2] == orders[2:4]  # of the same key
    assert len({*orders, tuple(range(16))}) == 5
    whole = ObjectiveConfig(updates_per_rollout=3)
    assert minibatches(whole, 16, jax.random.key(0)) == [None] * 3
