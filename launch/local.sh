#!/usr/bin/env bash
# Sets up this clone and trains on this machine:
#   bash launch/local.sh [--workdir=DIR] [--config.FIELD=VALUE ...]
# Relative paths in flags count from the clone's folder.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root"
exec "$python" -m ar3d_jax.train --config=configs/higrpo.py "$@"
