"""The loss and its gradient in float64 NumPy, one token at a time.

Written from the formulas, not from the package: slow, and with nothing clever in it.
Arrays are [B, G, T], advantages and rewards [B, G].
"""

import math

import numpy as np


def advantages(rewards, std, eps=1e-4):
    """Equation (10) and its variants; NaN rewards are out, and get 0."""
    found = np.zeros_like(rewards, np.float64)
    everything = [float(r) for row in rewards for r in row if math.isfinite(r)]
    for b, row in enumerate(rewards):
        valid = [g for g, r in enumerate(row) if math.isfinite(r)]
        values = [float(row[g]) for g in valid]
        if len(values) < 2 or max(values) == min(values):
            continue
        mean = sum(values) / len(values)
        among = {"group": values, "batch": everything}.get(std)
        divisor = 1.0
        if among:
            centre = sum(among) / len(among)
            spread = sum((r - centre) ** 2 for r in among) / len(among)
            divisor = math.sqrt(spread) + eps
        for g in valid:
            found[b, g] = (float(row[g]) - mean) / divisor
    return found


def used(rewards):
    """Rollouts that count: valid, in a group of two or more that differ."""
    found = np.zeros(np.shape(rewards), bool)
    for b, row in enumerate(rewards):
        valid = [g for g, r in enumerate(row) if math.isfinite(r)]
        if len({float(row[g]) for g in valid}) > 1:
            found[b, valid] = True
    return found


def weights(mask, aggregation):
    """Each token's share of the loss."""
    prompts, group, length = mask.shape
    found = np.zeros(mask.shape)
    for b in range(prompts):
        for g in range(group):
            for t in range(length):
                if not mask[b, g, t]:
                    continue
                count = {
                    "token": prompts * mask[b].sum(),
                    "token_batch": mask.sum(),
                    "sequence": prompts * group * mask[b, g].sum(),
                }[aggregation]
                found[b, g, t] = 1 / count
    return found


def loss_and_gradient(
    logp,
    old,
    ref,
    advantage,
    mask,
    *,
    aggregation,
    importance,
    clip_low,
    clip_high,
    kl_coef,
    dual_clip=0.0,
    correct_mismatch=0.0,
    sampler=None,
):
    """The loss, and its derivative by each log-probability."""
    share = weights(mask, aggregation)
    loss, gradient = 0.0, np.zeros(mask.shape)
    for b, g in np.ndindex(mask.shape[:2]):
        tokens = [t for t in range(mask.shape[2]) if mask[b, g, t]]
        a = float(advantage[b, g])
        slopes = {}
        for t in tokens:
            diffs = [float(logp[b, g, s]) - float(old[b, g, s]) for s in tokens]
            own = float(logp[b, g, t]) - float(old[b, g, t])
            sequence = importance == "sequence"
            ratio = math.exp(sum(diffs) / len(diffs) if sequence else own)
            inside = min(max(ratio, 1 - clip_low), 1 + clip_high)
            value, slope = ratio * a, ratio * a
            if inside * a < value:
                value, slope = inside * a, 0.0
            if dual_clip and a < 0 and value < dual_clip * a:
                value, slope = dual_clip * a, 0.0
            if correct_mismatch:
                apart = float(old[b, g, t]) - float(sampler[b, g, t])
                factor = min(math.exp(apart), correct_mismatch)
                value, slope = value * factor, slope * factor
            slopes[t] = slope
            if ref is not None:
                away = float(ref[b, g, t]) - float(logp[b, g, t])
                value -= kl_coef * (math.exp(away) - away - 1)
                pull = kl_coef * (math.exp(away) - 1)
                gradient[b, g, t] -= share[b, g, t] * pull
            loss -= share[b, g, t] * value
        for t in tokens:
            if importance == "sequence":  # every token moves the ratio of all
                for s in tokens:
                    gradient[b, g, s] -= share[b, g, t] * slopes[t] / len(tokens)
            else:
                gradient[b, g, t] -= share[b, g, t] * slopes[t]
    return loss, gradient
