"""Hi-GRPO for text-to-3D: open, fast, tested training code in JAX for TPU and GPU."""

__version__ = "0.1.0"
