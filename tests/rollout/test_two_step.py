import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ar3d_jax.config import RolloutConfig
from ar3d_jax.policy.sequence import sequence_logp
from ar3d_jax.rollout import generate
from ar3d_jax.rollout.two_step import (
    rollout_coarse,
    rollout_one_step,
    rollout_refined,
)
from ar3d_jax.sharding import make_mesh
from tests.policy import small_policy
from tests.policy.small_policy import CFG, VOCAB, make_prompts

RUN = RolloutConfig(plan_tokens=6)
GROUP, SHAPE = 2, 9
LOGP = jax.jit(sequence_logp, static_argnames="vocab")


def make_policy(cfg=CFG):
    """A policy that likes to end its turn: some plans end early, others are cut off.

    With the head's own column the logit of the end of turn is far below the others;
    turned around, the column makes it one of the largest.
    """
    policy = small_policy.make_policy(cfg)
    head = policy.head.get_value()
    turned = np.array(head)
    turned[:, VOCAB.im_end] *= -1.2
    policy.head = nnx.Param(jax.device_put(turned, head.sharding))
    return policy


def plan_of(sequence):
    """(tokens, valid, sampled) of the sampled plan, [rows, plan tokens]."""
    span = slice(*sequence.layout.text)
    fields = (sequence.tokens, sequence.valid, sequence.sampled)
    return tuple(np.asarray(field)[:, span] for field in fields)


def check_premise(coarse, local):
    """Of both plans some rows end before the last token, and some are cut off there."""
    for sequence in (coarse, local):
        _, valid, sampled = plan_of(sequence)
        assert 0 < (~valid[:, -1]).sum() < len(valid), "no row, or every row, ends"
        cut = valid[:, -1] & ~sampled[:, -1]
        assert cut.any(), "no plan is cut off"


def roll_out(policy, prompts, cfg=RUN, *, seed=0, group=GROUP):
    key = jax.random.key(seed)
    sizes = {"group_size": group, "shape_tokens": SHAPE}
    coarse, cache = rollout_coarse(policy, prompts, cfg, VOCAB, key, **sizes)
    rest = rollout_refined(policy, prompts, coarse, cache, cfg, VOCAB, key, **sizes)
    return coarse, *rest


@pytest.fixture(scope="module")
def rolled():
    with jax.set_mesh(make_mesh()):
        policy, prompts = make_policy(), make_prompts()
        sequences = jax.block_until_ready(roll_out(policy, prompts))
    check_premise(*sequences[:2])
    return policy, prompts, sequences


def test_log_probabilities_equal_a_full_forward(mesh):
    """Cached decoding, padding and shared prompts against one pass over each row."""
    policy = make_policy()
    sequences = roll_out(policy, make_prompts())
    check_premise(*sequences[:2])
    for sequence in sequences:
        logp, _ = LOGP(policy, sequence, vocab=VOCAB)
        np.testing.assert_allclose(
            np.asarray(sequence.logp), np.asarray(logp), rtol=1e-4, atol=1e-4
        )


def test_log_probabilities_at_another_temperature_with_the_coarse_shape_in_sight():
    """Our option: the refined shape after the coarse one's own tokens."""
    policy, prompts = make_policy(), make_prompts()
    cfg = dataclasses.replace(RUN, temperature=0.6, refined_sees_coarse=True)
    coarse, local, refined = roll_out(policy, prompts, cfg)
    for sequence in (coarse, local, refined):
        logp, _ = LOGP(policy, sequence, vocab=VOCAB)
        np.testing.assert_allclose(
            np.asarray(sequence.logp), np.asarray(logp), rtol=1e-4, atol=1e-4
        )
    tokens, start = np.asarray(refined.tokens), refined.layout.shape[0]
    seen = tokens[:, start - SHAPE - 3 : start]
    shape = np.asarray(coarse.tokens)[:, slice(*coarse.layout.shape)]
    np.testing.assert_array_equal(seen[:, 1:-2], shape)
    marks = (VOCAB.mesh_start, VOCAB.mesh_end, VOCAB.mesh_start)
    assert (seen[:, [0, -2, -1]] == marks).all()
    assert np.asarray(refined.valid)[:, start - SHAPE - 3 : start].all()
    assert not np.asarray(refined.sampled)[:, :start].any()


def test_one_step_is_a_prompt_and_a_shape(mesh):
    policy, prompts = make_policy(), make_prompts()
    shapes = rollout_one_step(
        policy,
        jnp.asarray(prompts.high),
        jnp.asarray(prompts.high_valid),
        RUN,
        VOCAB,
        jax.random.key(0),
        group_size=GROUP,
        shape_tokens=SHAPE,
    )
    tokens = np.asarray(shapes.tokens)
    np.testing.assert_array_equal(tokens[::GROUP, :12], prompts.high)
    assert (tokens[:, 12] == VOCAB.mesh_start).all()
    codes = tokens[:, 13:] - VOCAB.codes_start
    assert codes.shape[1] == SHAPE
    assert ((codes >= 0) & (codes < VOCAB.codes)).all()
    logp, _ = LOGP(policy, shapes, vocab=VOCAB)
    np.testing.assert_allclose(
        np.asarray(shapes.logp), np.asarray(logp), rtol=1e-4, atol=1e-4
    )


def test_mesh_changes_nothing(rolled):
    *_, one = rolled
    with jax.set_mesh(make_mesh(4, 2)):
        eight = roll_out(make_policy(), make_prompts())
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-4)


def test_layout_of_the_three_sequences(rolled):
    _, prompts, (coarse, local, refined) = rolled
    length, turn = prompts.high.shape[1], len(prompts.low_turn)
    plan = RUN.plan_tokens
    high = np.repeat(prompts.high, GROUP, axis=0)
    low = np.repeat(prompts.low, GROUP, axis=0)

    tokens = np.asarray(coarse.tokens)
    assert tokens.shape == (8, length + plan + 1 + SHAPE)
    np.testing.assert_array_equal(tokens[:, :length], high)
    assert (tokens[:, length + plan] == VOCAB.mesh_start).all()
    assert coarse.layout.text == (length, length + plan)
    assert coarse.layout.shape == (length + plan + 1, length + plan + 1 + SHAPE)

    before = np.asarray(local.tokens)[:, : length + plan]
    np.testing.assert_array_equal(before, tokens[:, : length + plan])
    start = length + plan
    expected = np.tile(prompts.low_turn, (8, 1))
    np.testing.assert_array_equal(local.tokens[:, start : start + turn], expected)
    assert local.layout.text == (start + turn, start + turn + plan)
    assert local.layout.shape is None

    text = slice(*local.layout.text)
    np.testing.assert_array_equal(refined.tokens[:, :length], low)
    np.testing.assert_array_equal(
        refined.tokens[:, length : length + plan], local.tokens[:, text]
    )
    assert refined.layout.text is None
    assert not np.asarray(refined.sampled)[:, : length + plan + 1].any()
    for sequence in (coarse, local, refined):
        valid = np.asarray(sequence.valid)
        positions = np.maximum(valid.cumsum(axis=1) - 1, 0)
        np.testing.assert_array_equal(np.asarray(sequence.positions), positions)
        assert (np.asarray(sequence.logp)[~np.asarray(sequence.sampled)] == 0).all()


def test_segments_sample_only_what_they_may(rolled):
    *_, (coarse, local, refined) = rolled
    for sequence in (coarse, refined):
        codes = np.asarray(sequence.tokens)[:, slice(*sequence.layout.shape)]
        assert codes.shape[1] == SHAPE
        assert (codes >= VOCAB.codes_start).all()
        assert (codes < VOCAB.codes_start + VOCAB.codes).all()
        assert np.asarray(sequence.sampled)[:, slice(*sequence.layout.shape)].all()
    for sequence in (coarse, local):
        span = slice(*sequence.layout.text)
        plans = np.asarray(sequence.tokens)[:, span]
        valid = np.asarray(sequence.valid)[:, span]
        assert ((plans < VOCAB.endoftext) | (plans == VOCAB.im_end)).all()
        for plan, kept in zip(plans, valid, strict=True):
            words = plan[kept].tolist()
            assert kept.tolist() == sorted(kept.tolist(), reverse=True)
            assert words.index(VOCAB.im_end) == len(words) - 1  # ends, and only there


def test_nothing_is_sampled_after_the_end_of_turn(rolled):
    """What follows is padding: not valid, not sampled, without a log-probability."""
    *_, (coarse, local, _) = rolled
    for sequence in (coarse, local):
        tokens, valid, sampled = plan_of(sequence)
        logp = np.asarray(sequence.logp)[:, slice(*sequence.layout.text)]
        for row in range(len(tokens)):
            ends = np.flatnonzero(tokens[row] == VOCAB.im_end)
            assert len(ends) == 1
            after = np.arange(RUN.plan_tokens) > ends[0]
            np.testing.assert_array_equal(valid[row], ~after)
            forced = ends[0] == RUN.plan_tokens - 1
            assert sampled[row].sum() == ends[0] + (not forced)
            assert not logp[row, after].any()
            assert (logp[row, sampled[row]] < 0).all()


def uniform_policy():
    """Every logit is 0: what is drawn is the random number, cut into equal parts."""
    policy = make_policy()
    head = policy.head.get_value()
    policy.head = nnx.Param(jax.device_put(np.zeros(head.shape), head.sharding))
    return policy


def test_each_segment_has_random_numbers_of_its_own():
    """Two segments with one stream would draw the same share of their ids."""
    coarse, local, refined = roll_out(uniform_policy(), make_prompts())
    text = np.array([*range(VOCAB.endoftext), VOCAB.im_end])
    first = slice(RUN.plan_tokens - 1)  # its last token is given
    shares = {}
    for name, sequence in (("global", coarse), ("local", local)):
        tokens, _, sampled = plan_of(sequence)
        shares[name] = np.where(
            sampled, np.searchsorted(text, tokens) / len(text), np.nan
        )[:, first]
    for name, sequence in (("coarse", coarse), ("refined", refined)):
        codes = np.asarray(sequence.tokens)[:, slice(*sequence.layout.shape)]
        shares[name] = ((codes - VOCAB.codes_start) / VOCAB.codes)[:, first]
    assert all(np.isfinite(share).mean() > 0.5 for share in shares.values())
    for one, other in itertools.combinations(shares, 2):
        apart = np.nanmean(np.abs(shares[one] - shares[other]))
        assert apart > 0.2, (one, other)  # a third, where they are independent
    for name in ("coarse", "refined"):  # nor do rows or tokens share theirs
        assert shares[name].std(axis=0).min() > 0.05, name
        assert shares[name].std(axis=1).min() > 0.05, name


def test_a_plan_without_an_end_gets_one_unsampled():
    policy = make_policy()
    head = np.array(policy.head.get_value())
    head[:, VOCAB.im_end] = 0  # a logit of 0, which is never the largest
    policy.head = nnx.Param(jnp.asarray(head))
    cfg = dataclasses.replace(RUN, top_k=1)
    for sequence in roll_out(policy, make_prompts(), cfg)[:2]:
        span = slice(*sequence.layout.text)
        assert (np.asarray(sequence.tokens)[:, span][:, -1] == VOCAB.im_end).all()
        assert np.asarray(sequence.valid)[:, span].all()
        sampled = np.asarray(sequence.sampled)[:, span]
        assert sampled[:, :-1].all()
        assert not sampled[:, -1].any()


def test_rows_do_not_depend_on_the_batch(rolled):
    """Fewer prompts, longer padding, the same rows."""
    policy, prompts, (coarse, _, refined) = rolled
    fewer = jax.tree.map(lambda x: x[:2] if x.ndim == 2 else x, prompts)
    padded = dataclasses.replace(
        fewer,
        **{
            name: np.pad(getattr(fewer, name), ((0, 0), (4, 0)))
            for name in ("high", "high_valid", "low", "low_valid")
        },
    )
    for batch in (fewer, padded):
        other_coarse, _, other_refined = roll_out(policy, batch)
        for mine, other in ((coarse, other_coarse), (refined, other_refined)):
            there, here = slice(*other.layout.shape), slice(*mine.layout.shape)
            np.testing.assert_array_equal(
                np.asarray(other.tokens)[:, there], np.asarray(mine.tokens)[:4, here]
            )


def test_samples_of_a_group_differ_and_keys_matter(rolled):
    policy, prompts, (coarse, *_) = rolled
    shapes = np.asarray(coarse.tokens)[:, slice(*coarse.layout.shape)]
    assert len(np.unique(shapes, axis=0)) == len(shapes)
    again, *_ = roll_out(policy, prompts)
    np.testing.assert_array_equal(np.asarray(again.tokens), np.asarray(coarse.tokens))
    other, *_ = roll_out(policy, prompts, seed=1)
    assert (np.asarray(other.tokens) != np.asarray(coarse.tokens)).any()


def test_a_shared_prompt_is_as_if_repeated(rolled):
    """One prompt for G samples against G equal prompts with one sample each."""
    policy, prompts, (coarse, *_) = rolled
    repeated = jax.tree.map(
        lambda x: np.repeat(x, GROUP, axis=0) if x.ndim == 2 else x, prompts
    )
    apart, *_ = roll_out(policy, repeated, group=1)
    np.testing.assert_array_equal(np.asarray(apart.tokens), np.asarray(coarse.tokens))
    np.testing.assert_allclose(apart.logp, coarse.logp, atol=1e-5)


def test_no_compilation_after_the_first_call(rolled):
    policy, prompts, _ = rolled
    before = rollout_coarse._cache_size(), rollout_refined._cache_size()
    other = make_prompts(seed=5)
    roll_out(policy, other, seed=7)
    roll_out(jax.tree.map(lambda x: x * 1.01, policy), prompts, seed=8)
    assert (rollout_coarse._cache_size(), rollout_refined._cache_size()) == before


def test_going_on_to_the_last_token_changes_nothing(rolled):
    policy, prompts, (*sequences,) = rolled
    longer = roll_out(policy, prompts, dataclasses.replace(RUN, stop_early=False))
    for one, other in zip(sequences, longer, strict=True):
        np.testing.assert_array_equal(np.asarray(one.tokens), np.asarray(other.tokens))
        np.testing.assert_array_equal(np.asarray(one.valid), np.asarray(other.valid))
        np.testing.assert_allclose(one.logp, other.logp, atol=1e-5)


def test_windows_of_the_cache_and_scanned_layers_change_nothing(rolled, monkeypatch):
    _, prompts, (coarse, *_) = rolled
    monkeypatch.setattr(generate, "WINDOW", 4)
    jax.clear_caches()
    policy = make_policy(dataclasses.replace(CFG, scan_decode=True))
    windowed, *_ = roll_out(policy, prompts)
    np.testing.assert_array_equal(
        np.asarray(windowed.tokens), np.asarray(coarse.tokens)
    )
    np.testing.assert_allclose(windowed.logp, coarse.logp, atol=1e-4)


def test_truncation_is_remembered(rolled):
    policy, prompts, _ = rolled
    coarse, *_ = roll_out(policy, prompts, dataclasses.replace(RUN, top_p=0.5))
    assert coarse.layout.truncated
