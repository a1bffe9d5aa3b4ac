#!/usr/bin/env bash
# What only an accelerator can tell: the ops against their definitions on the device, their times there, and one short training.
#
#     OUT=results benchmarks/on_gpu.sh
#
# For a machine with an NVIDIA GPU, Python 3.12 and jax[cuda13]. Packages it lacks may travel as wheels in ./.whl: they are put into a
# temporary folder, and nothing is fetched. Every stage runs even if one before it failed; all output goes to $OUT, and the exit code
# is non-zero if any stage failed. Under nine minutes: each stage has a limit, and their sum stays below that.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
: "${OUT:?set OUT to the folder for the results}"
mkdir -p "$OUT" || exit 1
out=$(cd "$OUT" && pwd)
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if compgen -G '.whl/*.whl' >/dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$scratch/site" .whl/*.whl || exit 1
  PYTHONPATH="$PWD:$scratch/site"
fi

failed=0
stage() { # stage NAME SECONDS COMMAND...: runs it within its limit, keeps its output, records how it ended
  local name=$1 limit=$2 begin=$SECONDS code=0
  shift 2
  timeout --kill-after=5 "$limit" "$@" </dev/null 2>&1 | tee "$out/$name.log" || code=$?
  ((code)) && failed=1
  printf '%s exit %d after %d s (limit %d s)\n' "$name" "$code" $((SECONDS - begin)) "$limit" | tee -a "$out/stages.txt"
}

: >"$out/stages.txt"
stage device 25 python3 -c '
import sys, jax, flax
print("Python", sys.version.split()[0], "jax", jax.__version__, "flax", flax.__version__, jax.devices())
sys.exit(jax.default_backend() == "cpu")'
stage check 190 python3 -m benchmarks.check_on_device --out "$out/check.json"
stage kernels 150 python3 -m benchmarks.kernels --quick --out "$out/kernels.json"
stage quickstart 165 python3 train.py configs/quickstart.py --training.steps 60 --training.eval-every 60 \
  --training.checkpoint-every 60 --run.folder "$scratch/runs" --run.name quickstart
cp "$scratch/runs/quickstart/results.json" "$out/quickstart.json" || failed=1
exit "$failed"
