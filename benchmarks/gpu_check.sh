#!/bin/bash
# Checks and measures the card of this machine without the hub (docs/gpu.md): benchmarks/gpu_check.sh [FOLDER [MINUTES]]
# Wheels in .whl/ are installed into a folder of their own first. Writes FOLDER/gpu.json after every section, and
# FOLDER/gpu.log; ends with 1 if a result is wrong.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-${OUT:-.}}
minutes=${2:-8}
mkdir -p "$folder"
if compgen -G ".whl/*.whl" >/dev/null; then
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
    export PYTHONPATH="$site"
fi
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export FEDFINLORA_CACHE="${FEDFINLORA_CACHE:-$(mktemp -d)}"
python3 -m fedfinlora bench gpu --minutes "$minutes" --json "$folder/gpu.json" 2>&1 >/dev/null | tee "$folder/gpu.log"
