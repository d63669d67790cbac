"""Nearest codes against brute force; the codebook's moving average by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from ar3d_jax.codec.quantizer import Codebook, kmeans, nearest_codes, update_codebook


def test_nearest_code_is_the_nearest_and_the_first_on_ties():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(3, 7, 5)).astype(np.float32)
    codes = rng.normal(size=(11, 5)).astype(np.float32)
    distances = ((latents[..., None, :] - codes) ** 2).sum(-1)
    found = nearest_codes(jnp.asarray(latents), jnp.asarray(codes))
    np.testing.assert_array_equal(found, distances.argmin(-1))
    twice = np.concatenate([codes, codes])
    found = nearest_codes(jnp.asarray(latents), jnp.asarray(twice))
    np.testing.assert_array_equal(found, distances.argmin(-1))


def test_codes_are_the_moving_average_of_what_is_assigned_to_them():
    codes = jnp.array([[0.0], [10.0]])
    latents = jnp.array([[1.0], [3.0], [11.0]])
    book, used = update_codebook(Codebook.of(codes), latents, jax.random.key(0), 0.5)
    # counts: (1 + 2) / 2 and (1 + 1) / 2; sums: (0 + 4) / 2 and (10 + 11) / 2
    np.testing.assert_allclose(book.counts, [1.5, 1.0])
    np.testing.assert_allclose(book.codes, [[2 / 1.5], [10.5]], rtol=1e-6)
    assert used == 1.0


def test_a_dead_code_restarts_at_a_latent():
    codes = jnp.array([[0.0], [1000.0]])
    latents = jnp.linspace(-1, 1, 50)[:, None]
    book = Codebook.of(codes)
    for step in range(400):
        book, used = update_codebook(book, latents, jax.random.key(step), 0.9)
    assert used == 1.0
    assert jnp.abs(book.codes).max() <= 1.0


def test_kmeans_ends_where_each_centre_is_the_mean_of_its_points():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(200, 2)).astype(np.float32)
    found = np.asarray(kmeans(jnp.asarray(points), 3, jax.random.key(3), iterations=40))
    distances = ((points[:, None] - found[None]) ** 2).sum(-1)
    nearest = distances.argmin(1)
    means = np.stack([points[nearest == code].mean(0) for code in range(3)])
    np.testing.assert_allclose(found, means, atol=1e-5)
    assert distances.min(1).mean() < 0.7 * points.var(0).sum()
