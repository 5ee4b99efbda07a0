#!/usr/bin/env bash
# One command on a bare GPU machine: build, GPU tests, figures, real training. Results go to the given folder.
#   bench/gpu_session.sh [folder [part...]]     (default bench/results/gpu, every part)
# Parts, each within ten minutes, in the order in which they are worth having:
#   build tests ways sanitizer ops step pipelines bench train memory scaling seeds step_large train_more methods
# Uses the Python environment that is active: torch with CUDA, nvcc and this package's dependencies.
#   WHEELS=folder   of wheels that the environment lacks (pydantic, ...), installed beside it without a network
#   DATA=folder     with train/<class>/* and test/<class>/*: real images for `bench`, `train` and `train_more`
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results/gpu}
shift || true
all="build tests ways sanitizer ops step pipelines bench train memory scaling seeds step_large train_more methods"
wanted=" ${*:-$all} "
mkdir -p "$out"
failed=""
runs=$(mktemp -d)
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH=$site
fi

wants() { [[ "$wanted" == *" $1 "* ]]; }

step() { # name, seconds, command...
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  echo "== $name"
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
    echo "   done in $((SECONDS - began)) s"
  else
    failed="$failed $name"
    echo "   FAILED after $((SECONDS - began)) s, see $out/$name.log"
  fi
  tail -n 5 "$out/$name.log"
}

tests() { # name, seconds, pytest arguments...
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" python3 -m pytest -q -p no:cacheprovider --durations=5 "$@"
}

interlude() { # name, seconds, arguments...
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" python3 -m interlude_fast.cli "$@"
}

run() { # name, seconds, more arguments: a real run, its result and metrics kept
  local name=$1 limit=$2
  shift 2
  interlude "$name" "$limit" train --dataset folder --data-root "$DATA/train" --test "$DATA/test" \
    --set model.name=wideresnet --set model.depth=28 --set model.width=2 --precision bf16 \
    --run-dir "$runs/$name" "$@"
  for file in result.json metrics.jsonl config.yaml passport.json; do
    cp "$runs/$name/$file" "$out/$name-$file" 2>/dev/null
  done
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
if wants build; then
  step build 300 env INTERLUDE_FAST_CUDA=1 python3 setup.py build_ext --inplace
  step doctor 60 python3 -m interlude_fast.cli doctor
  [ -z "$failed" ] || exit 1 # what follows would measure the torch reference
fi
if wants tests; then
  tests tests_ops_gpu 300 tests/gpu/test_ops_gpu.py tests/gpu/test_pipelines_gpu.py
  tests tests_methods_gpu 300 tests/gpu/test_methods_gpu.py tests/gpu/test_memory_gpu.py
fi
if wants ways; then
  tests tests_ways_gpu 500 tests/gpu/test_ways_gpu.py
  tests tests_distributed_gpu 100 tests/gpu/test_distributed_gpu.py
fi
if wants sanitizer && command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "sanitizer_$tool" 280 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      python3 -m pytest -q tests/gpu/test_ops_gpu.py -p no:cacheprovider -x
  done
fi
wants ops && step bench_ops 300 python3 -m bench.ops --out "$out/ops.json"
wants step && step bench_step 580 python3 -m bench.step --networks WRN-28-2 --out "$out/step-28-2.json"
if wants pipelines; then
  for side in 32 96; do
    step "bench_pipelines_$side" 280 python3 -m bench.pipelines --sides "$side" --out "$out/pipelines-$side.json"
  done
fi
if [ -n "${DATA:-}" ]; then
  wants bench && interlude bench 400 bench --dataset folder --data-root "$DATA/train" --test "$DATA/test" \
    --labels 250 --seconds 40 --out "$out/bench.json"
  wants train && run cifar10-q75-250-interlude 590 --labels 250 --budget 8m
  if wants train_more; then
    run cifar10-q75-250-interlude-compiled 590 --labels 250 --budget 8m --compile
    run cifar10-q75-250-fixmatch 590 --labels 250 --method fixmatch --budget 8m
    run cifar10-q75-250-supervised 590 --labels 250 --method supervised --budget 8m
    run cifar10-q75-40-interlude 590 --labels 40 --budget 8m
  fi
fi
if wants memory; then
  step bench_memory 280 python3 -m bench.memory --out "$out/memory.json"
  step bench_memory_compiled 300 python3 -m bench.memory --compile --batches 64 --out "$out/memory-compiled.json"
fi
wants scaling && step bench_scaling 300 python3 -m bench.scaling --out "$out/scaling.json"
wants seeds && step bench_seeds 400 python3 -m bench.seeds --device cuda --out "$out/seeds.json"
if wants step_large; then
  for network in WRN-28-8 WRN-37-2; do
    step "bench_step_$network" 580 python3 -m bench.step --networks "$network" --stages whole \
      --out "$out/step-$network.json"
  done
fi
if wants methods; then
  tests tests_train 590 tests/train tests/evaluate --ignore tests/train/test_distributed.py
  tests tests_models 590 tests/models tests/methods
  tests tests_ops 300 tests/ops
fi
[ -z "$failed" ] || echo "failed:$failed"
[ -z "$failed" ]
