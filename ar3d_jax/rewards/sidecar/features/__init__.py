"""The process that holds an evaluation's feature networks; it never loads jax.

`__main__.py` talks to the trainer, `networks.py` knows the modules that load networks.
"""
