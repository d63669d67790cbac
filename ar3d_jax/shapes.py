"""The dimension key: one letter per axis, the same in annotations and in einsums.

This file holds no code. `sharding.py` says how the axes are laid out on devices.

| letter | axis |
|---|---|
| B | prompts in a batch (inside `policy` and `rollout`: rows, that is B * G) |
| G | samples per prompt: the group |
| T | query tokens |
| S | cache length (keys) |
| L | layers |
| D | model width |
| N | query heads |
| K | key/value heads |
| Q | query heads that share one key/value head: N = K * Q |
| P | Q + 2: what one key/value head projects, its queries, key and value |
| H | head size |
| I | N * H: the heads' results side by side |
| F | MLP width |
| E | 2: the gate and the up projection of the MLP |
| V | vocabulary (in `render` and `rewards`: views) |
| M | shape tokens per object |
| C | codes in the codec's codebook |
| R | voxels along one side |
"""
