"""Scores for other machines: `python -m ar3d_jax.rewards.serve --secret_file=FILE`.

    python -m ar3d_jax.rewards.serve --config=configs/higrpo.py:7b \
        --config.rewards.backend=local --listen=0.0.0.0:7071 --secret_file=secret.txt

loads the scorers of the config's `rewards` section on this machine, which has the GPUs,
prints what each makes of a known object, and serves any number of training hosts.
Those, a TPU pod's for instance, run with

    --config.rewards.backend=remote --config.rewards.remote.servers=HOST:7071 \
        --config.rewards.remote.secret_file=secret.txt

and the same scorers. Objects travel unencrypted: between networks, use a tunnel. Ctrl-C
or SIGTERM ends it; hosts go on with other servers, or wait for it until their deadline.
"""

import asyncio
import os
import signal
import sys

from absl import flags

from ar3d_jax import command
from ar3d_jax.config import Config, RewardsConfig
from ar3d_jax.errors import UserError, exit_on_user_error
from ar3d_jax.rewards.known_object import table
from ar3d_jax.rewards.sidecar import frames, known_object, serving
from ar3d_jax.rewards.sidecar.panel import Panel


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "listen",
        "127.0.0.1:7071",
        "host:port to serve on; 0.0.0.0:PORT for all networks of this machine; "
        "port 0 is any free one",
        flag_values=values,
    )
    flags.DEFINE_string(
        "secret_file",
        "",
        "file whose text all hosts must know; make it with: openssl rand -hex 32",
        flag_values=values,
    )


async def _serve(config: RewardsConfig, listen: str, secret: bytes) -> None:
    """Until a signal."""
    address = frames.parse_address(listen, "--listen", least_port=0)
    # A wrong address is told before minutes of loading; hosts come in after them.
    with serving.bind(address) as bound:
        panel = Panel(config)
        try:
            rows = await known_object.score(panel, config.deadline_s)
            print(*table([row.cells() for row in rows]), sep="\n")
            serving.listen(bound)
            work = asyncio.create_task(serving.serve(bound, panel, secret))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, work.cancel)
            host, port = bound.getsockname()[:2]
            print(f"serving on {host}:{port}", flush=True)
            await work
        except asyncio.CancelledError:
            print("ended by a signal", flush=True)
        finally:
            await panel.close()


def main() -> None:
    """Serves until it is told to stop."""
    with exit_on_user_error():
        config, values = command.parse_config(
            sys.argv, Config, "configs/higrpo.py", None, _define
        )
        rewards = config.rewards
        if rewards.backend == "remote":
            raise UserError(
                "rewards.backend is remote, which is for those who ask this server; "
                "expected local or openai"
            )
        if not values.secret_file:
            raise UserError(
                "--secret_file is empty; expected a file that all hosts have: openssl "
                "rand -hex 32 > FILE"
            )
        secret = frames.read_secret(values.secret_file, "--secret_file")
        os.environ["OMP_NUM_THREADS"] = str(rewards.threads)
        asyncio.run(_serve(rewards, values.listen, secret))


if __name__ == "__main__":
    main()
