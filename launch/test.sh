#!/usr/bin/env bash
# Sets up this clone as local.sh does, then format, lint, types and all tests:
#   bash launch/test.sh [pytest arguments]
# Needs no network once it is set up.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root"
bin="$venv/bin"
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/shellcheck" --external-sources launch/*.sh .ci/run
PYRIGHT_PYTHON_IGNORE_WARNINGS=1 "$python" -m pyright
exec "$python" -m pytest "$@"
