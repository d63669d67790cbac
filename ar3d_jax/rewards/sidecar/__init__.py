"""The sidecar: the process that holds the reward models, and the only home of torch.

It never loads jax. `server.py` talks to the trainer, `scorers/` judge.
"""
