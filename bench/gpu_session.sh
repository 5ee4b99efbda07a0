#!/usr/bin/env bash
# One command on a bare GPU machine: build, GPU tests, figures. Results go to the given folder.
#   bench/gpu_session.sh [folder]          (default bench/results/gpu)
# Uses the Python environment that is active: torch with CUDA, nvcc and this package's dependencies.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results/gpu}
mkdir -p "$out"

part() { # name, seconds, command...
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then echo "   done"; else echo "   FAILED ($?), see $out/$name.log"; fi
  tail -n 4 "$out/$name.log"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
part build 300 env INTERLUDE_FAST_CUDA=1 python3 setup.py build_ext --inplace
part doctor 60 python3 -m interlude_fast.cli doctor
part tests_ops 300 python3 -m pytest tests/ops tests/gpu -p no:cacheprovider
part tests_train 600 python3 -m pytest tests/train tests/evaluate -p no:cacheprovider
part tests_methods 600 python3 -m pytest tests/models tests/methods -p no:cacheprovider
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    part "sanitizer_$tool" 300 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      python3 -m pytest tests/gpu -p no:cacheprovider -x
  done
fi
part bench_ops 300 python3 -m bench.ops --device cuda --out "$out/ops.json"
for side in 32 96 224; do # separately: each within ten minutes
  part "bench_pipelines_$side" 600 python3 -m bench.pipelines --device cuda --sides "$side" --out "$out/pipelines-$side.json"
done
part digits 300 python3 -m interlude_fast.cli compare --device cuda --seeds 0 --out "$out/digits.json"
