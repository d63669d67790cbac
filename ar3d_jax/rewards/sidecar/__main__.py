"""`python -m ar3d_jax.rewards.sidecar SOCKET_FD RING_FD`: see `server.py`."""

from ar3d_jax.rewards.sidecar.server import main

if __name__ == "__main__":
    main()
