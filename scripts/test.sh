#!/usr/bin/env bash
# Runs the tests, after setting up .venv if need be. Arguments go to pytest: `bash scripts/test.sh --slow -k kernel`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
