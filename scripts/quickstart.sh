#!/usr/bin/env bash
# The whole of it on a small simulated market: simulate, train, ask one scenario, report.
# Sets up .venv if need be. What it makes lies in runs/quickstart; running it again replaces that.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
SECONDS=0
config=configs/membership.yaml
scenario=configs/scenarios/annual_dearer.yaml
data=runs/quickstart/data
run=runs/quickstart/run
small=(market.members=2000 market.periods=24 "data.path=$data/membership.parquet")

"$python" scripts/simulate.py --config "$config" --out "$data" "${small[@]}"
"$python" scripts/train.py --config "$config" --run "$run" --overwrite "${small[@]}"
"$python" scripts/counterfactual.py --run "$run" --scenario "$scenario" --overwrite
"$python" scripts/report.py --run "$run"
echo "quickstart took $((SECONDS / 60)) min $((SECONDS % 60)) s; report: $PWD/$run/report.html"
