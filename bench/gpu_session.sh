#!/usr/bin/env bash
# One command on a GPU machine: build, tests, checkers, figures, profiles, real training.
#   bench/gpu_session.sh FOLDER [part...]     every part, in the order of their worth, or those that are named
#   bench/gpu_session.sh --plan [part...]     the parts, their commands' limits in seconds, and what they leave
# FOLDER, outside the repository or ignored by git, gets results.tgz (logs and JSON files, renewed after every command,
# so that what was measured is there whatever ends this script), summary.txt, and the built extension. bench/collect.py
# makes results and tables of such archives, of one call or of several on the same machine. A part ends within 590 s.
#
# Half an hour on a machine that takes calls of ten minutes:
#   COMMIT=ID LIMIT=580 bench/gpu_session.sh OUT build kernels tests ops sanitizer dtypes
#   COMMIT=ID LIMIT=580 bench/gpu_session.sh OUT build step pipelines profile ncu
#   COMMIT=ID LIMIT=580 bench/gpu_session.sh OUT build train
# Parts run in the order given; a call replaces what an earlier one left in the same OUT. Repeat in a later call what
# summary.txt calls "left out". `build` takes a second where nothing has changed. With more time: step_large, bench,
# train_fixmatch, train_supervised, train_40; or train_together, four runs at once that share the GPU.
#
# Uses python3 (or PYTHON) with torch for CUDA and this package's dependencies, and nvcc. Changes no setting of the GPU.
# Paths are absolute or from the repository's root.
#   LIMIT=seconds     of the whole call: commands are cut to fit, and what no longer fits is left out
#   WHEELS=folder     of wheels that the environment lacks (pydantic, ...), installed beside it without a network
#   DATA=folder       with train/<class>/* and test/<class>/*, or an archive of one: real images for bench and train*
#   DATA_NAME=words   of what DATA is, for the tables: "CIFAR-10 as JPEG files of quality 75"
#   COMMIT=id         of the sources, where git cannot tell; without either nothing is measured
#   EXTENSION=folder  a FOLDER of an earlier call: the extension that was built there is taken if it fits
#   BUDGET=8m         of a real run
#   REHEARSE=1        every command on the CPU, with tiny sizes; figures mean nothing
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
parts=(build tests dtypes kernels sanitizer ops step profile pipelines train ncu step_large bench train_fixmatch
  train_supervised train_40 train_compiled train_together memory rest suite)
plan=""
[ "${1:-}" != --plan ] || plan=1
out=${1:-}
shift || true
if [ -z "$out" ]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' bench/gpu_session.sh
  exit 2
fi
for part in "$@"; do
  [[ " ${parts[*]} " == *" $part "* ]] || {
    echo "gpu_session: no part '$part'; there are ${parts[*]}" >&2
    exit 2
  }
done
[ $# -gt 0 ] || set -- "${parts[@]}"

die() {
  echo "gpu_session: $*" >&2
  if [ -z "$plan" ] && [ -d "$out" ]; then echo "gpu_session: $*" >>"$out/summary.txt"; fi
  exit 2
}

# ---- What is there -----------------------------------------------------------------------------------

if [ -n "${REHEARSE:-}" ]; then
  device=cpu quick=(--quick) small="WRN-10-1" batches=4 fast=(eager) budget=${BUDGET:-12s} seconds=2
  network=(--set model.depth=10 --set model.width=1 --set train.batch=2 --set train.mu=2 --precision fp32)
  network+=(--set train.eval_every=200000 --set train.device=cpu)
else
  device=cuda quick=() small="" batches=64 fast=("compiled and captured" captured) budget=${BUDGET:-8m} seconds=40
  network=(--set model.depth=28 --set model.width=2 --precision bf16 --set train.eval_every=20000)
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ -z "${REHEARSE:-}" ] || network+=(--set "data.cache=$work/cache")
results=$work/results
mkdir -p "$results"

prepare() {
  mkdir -p "$out" || exit 2
  rm -f "$out"/.results.* # of a call that was cut off
  : >"$out/summary.txt"
  command -v "$python" >/dev/null || die "no $python: PYTHON=path of the one that has torch"
  if [ -n "${WHEELS:-}" ]; then
    local site="$work/site"
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
      "$WHEELS"/*.whl >"$results/wheels.log" 2>&1 || die "the wheels in $WHEELS cannot be installed: $(tail -n 1 "$results/wheels.log")"
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
  fi
  local missing told gpu=""
  missing=$("$python" -c '
from importlib.util import find_spec
wanted = "torch numpy PIL pydantic click filelock yaml rich safetensors sklearn scipy tensorboard torchmetrics pytest"
print(*(name for name in wanted.split() if find_spec(name) is None))')
  [ -z "$missing" ] || die "python lacks $missing: put wheels for $("$python" -V) into a folder, WHEELS=folder"
  if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit --format=csv \
      >"$results/machine.txt" 2>&1 || die "no GPU here; REHEARSE=1 goes through every command on the CPU"
    head -n 2 "$results/machine.txt" | tail -n 1
    gpu="\"$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)\""
  fi
  if told=$(git rev-parse --short HEAD 2>/dev/null); then # as bench/harness.py has it
    [ -z "$(git status --porcelain -- . ':!bench/results' 2>/dev/null)" ] || told="$told dirty"
  else
    told=${COMMIT:-unknown}
  fi
  [ "$told" != unknown ] || [ -n "${REHEARSE:-}" ] ||
    die "git cannot tell the commit that is measured: COMMIT=id names it"
  printf '{"commit": "%s", "date": "%s", "gpus": [%s], "parts": "%s", "data": "%s"}\n' \
    "$told" "$(date +%F)" "$gpu" "$*" "$(tr -d '\\"\n' <<<"${DATA_NAME:-}")" >"$results/session.json"
  export PYTHONUNBUFFERED=1
}

images() { # DATA as a folder with train and test
  if [ -n "${DATA:-}" ] && [ -f "$DATA" ]; then # unpacked once
    local place
    place=${TMPDIR:-/tmp}/interlude-data-$(cksum <"$DATA" | cut -d' ' -f1)
    [ -d "$place" ] || {
      mkdir -p "$place.part" && "$python" -m tarfile -e "$DATA" "$place.part" && mv "$place.part" "$place"
    } >"$results/data.log" 2>&1 || die "DATA=$DATA cannot be unpacked: $(tail -n 1 "$results/data.log")"
    DATA=$place
  fi
  if [ -z "${DATA:-}" ] && [ "$device" = cpu ]; then
    DATA=$work/data
    "$python" -c '
import sys
from pathlib import Path
from tests.helpers import image_names, write_images
for part, each in (("train", 30), ("test", 5)):
    write_images(Path(sys.argv[1]) / part, image_names("abcdefghij", each), size=(32, 32))' "$DATA" ||
      die "no images to rehearse with"
  fi
  if [ -n "${DATA:-}" ] && [ ! -d "$DATA/train" ]; then
    local train
    train=$(find "$DATA" -maxdepth 3 -type d -name train | head -n 1)
    [ -n "$train" ] || die "DATA=$DATA holds no train/<class>/*"
    DATA=$(dirname "$train")
  fi
}

# ---- Steps of a part ---------------------------------------------------------------------------------

archive() { # what there is, atomically; of a copy, as logs are written to meanwhile
  local name staged=$work/archive.$BASHPID
  rm -rf "$staged"
  mkdir "$staged" || return 1
  cp -r "$results" "$staged/" 2>/dev/null # a file that is just being renamed comes with the next one
  cp "$out/summary.txt" "$staged/results/summary.txt"
  for name in "$staged"/results/*.log; do # a log that ran away must not fill the archive
    [ ! -f "$name" ] || [ "$(stat -c %s "$name")" -lt 1000000 ] || {
      tail -c 500000 "$name" >"$name.end" && mv "$name.end" "$name"
    }
  done
  tar -czf "$out/.results.$BASHPID" -C "$staged" results && mv "$out/.results.$BASHPID" "$out/results.tgz"
  rm -rf "$staged"
}

note() { # a line for summary.txt, standard output and the archive: step, state, seconds, what it said last
  printf '%-26s %-9s %4s s  %s\n' "$1" "$2" "$3" "${4:-}" | tee -a "$out/summary.txt"
  archive
}

left() { echo $((${LIMIT:-1000000} - SECONDS)); }

total=0 looked=""
step() { # limit, name, what it leaves, command...
  local limit=$1 name=$2 leaves=$3 began=$SECONDS code=0 allowed
  shift 3
  if [ -n "$plan" ]; then
    printf '  %4s s  %-26s %s\n' "$limit" "$name" "$leaves"
    total=$((total + limit))
    return 0
  fi
  allowed=$(($(left) - 15))
  [ "$allowed" -lt "$limit" ] || allowed=$limit
  if [ "$allowed" -lt 20 ]; then
    note "$name" "left out" 0 "no time"
    return 1
  fi
  echo "== $name"
  # An interrupt first: Python then says where it was. Not a SIGTERM, which a run of one process does not wait for;
  # `timeout` lets its command hear interrupts in the background too.
  timeout -s INT -k 8 "$allowed" "$@" >"$results/$name.log" 2>&1 </dev/null || code=$?
  local last
  last=$(grep -av '^\s*$' "$results/$name.log" | tail -n 1 | cut -c1-150)
  case $code in
  0) note "$name" ok $((SECONDS - began)) "$last" ;;
  124 | 137) note "$name" stopped $((SECONDS - began)) "at its limit of $allowed s: $last" ;;
  *) note "$name" FAILED $((SECONDS - began)) "exit code $code: $last" ;;
  esac
  return $code
}

tests() { # limit, name, pytest arguments...
  local limit=$1 name=$2 more=()
  shift 2
  if [ -z "$plan" ]; then
    "$python" -c 'import xdist' 2>/dev/null && [ "$device" = cuda ] && more+=(-n 6)
    "$python" -c 'import pytest_timeout' 2>/dev/null && more+=(--timeout 200)
  fi
  step "$limit" "$name" "$name.log" \
    "$python" -m pytest -p no:cacheprovider -vv --tb=short -ra --durations=10 "${more[@]}" "$@"
}

script() { # limit, name of the result, module of bench/, arguments...
  local limit=$1 name=$2 module=$3
  shift 3
  step "$limit" "$name" "$name.json" \
    "$python" -m "bench.$module" --device $device "${quick[@]}" --out "$results/$name.json" "$@"
}

with_data() { # name of what wants images
  [ -z "$plan" ] || return 0
  [ -n "$looked" ] || images
  looked=1
  [ -n "${DATA:-}" ] || {
    note "$1" "left out" 0 "DATA names no images"
    return 1
  }
}

keep() { # of a run: what tells of it
  local file
  for file in result.json metrics.jsonl config.yaml passport.json split.json log.txt; do
    [ ! -f "$work/runs/$1/$file" ] || { mkdir -p "$results/$1" && cp "$work/runs/$1/$file" "$results/$1/$file"; }
  done
}

in_seconds() { # 8m -> 480
  case $1 in
  *h) echo $((${1%h} * 3600)) ;;
  *m) echo $((${1%m} * 60)) ;;
  *) echo "${1%s}" ;;
  esac
}

run() { # limit, name, arguments...: a real run, of BUDGET or what is left
  local limit=$1 name=$2 keeper="" code=0 fits length
  shift 2
  with_data "$name" || return 0
  length=$(in_seconds "$budget")
  if [ -z "$plan" ]; then
    fits=$(($(left) - 60)) # start, last evaluation and report
    [ "$fits" -lt "$length" ] && length=$fits
    [ $((limit - 60)) -lt "$length" ] && length=$((limit - 60))
    [ "$length" -ge 10 ] || {
      note "$name" "left out" 0 "no time"
      return 0
    }
    # A run that is cut off leaves what it had.
    while sleep 30; do keep "$name" && archive; done >/dev/null 2>&1 &
    keeper=$!
  fi
  step "$limit" "$name" "$name/{result.json,metrics.jsonl,config.yaml,passport.json,split.json,log.txt}" \
    "$python" -m interlude_fast.cli train --dataset folder --data-root "${DATA:-DATA}/train" --test "${DATA:-DATA}/test" \
    --set model.name=wideresnet "${network[@]}" --budget "${length}s" --run-dir "$work/runs/$name" "$@" || code=$?
  [ -z "$plan" ] || return 0
  kill "$keeper" 2>/dev/null
  wait "$keeper" 2>/dev/null
  keep "$name"
  archive
  return $code
}

# ---- The parts ---------------------------------------------------------------------------------------

fingerprint() { # of all that the extension is made of
  {
    find csrc setup.py -type f ! -path 'csrc/tests/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    "$python" -c 'import sys, importlib.metadata as m; print(sys.version, m.version("torch"))'
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null
    nvcc --version 2>/dev/null || "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" --version 2>/dev/null
    echo "${TORCH_CUDA_ARCH_LIST:-}"
  } | sha256sum | cut -d' ' -f1
}

loaded() { # mark, fingerprint: the extension is there with CUDA kernels, and marked as what the fingerprint stands for
  step 60 doctor "doctor.log" "$python" -m interlude_fast.cli doctor || true
  [ -z "$plan" ] || return 0
  grep -aqE '^extension +built with .* CUDA [0-9]' "$results/doctor.log" ||
    stop "no CUDA kernels: $(grep -a '^extension' "$results/doctor.log" | cut -c1-300)"
  mkdir -p build && echo "$2" >"$1"
}

part_build() {
  local mark=build/gpu_session.fingerprint now="" built=()
  if [ "$device" = cpu ]; then # beside the one that is there
    step 420 build "the extension" env INTERLUDE_FAST_CUDA=0 "$python" setup.py build_ext \
      --build-lib "$work/lib" --build-temp "$work/build" || stop "the extension was not built"
    step 60 doctor "doctor.log" "$python" -m interlude_fast.cli doctor
    return
  fi
  if [ -z "$plan" ]; then
    now=$(fingerprint)
    built=(interlude_fast/_C*.so)
    if [ -f "${built[0]}" ] && [ "$(cat $mark 2>/dev/null)" = "$now" ]; then
      note build ok 0 "nothing has changed"
      return 0
    fi
    if [ -n "${EXTENSION:-}" ] && [ "$(cat "$EXTENSION/extension.fingerprint" 2>/dev/null)" = "$now" ]; then
      cp "$EXTENSION"/_C*.so interlude_fast/ && note build ok 0 "taken from $EXTENSION"
      loaded "$mark" "$now"
      return 0
    fi
    rm -f interlude_fast/_C*.so "$mark"
  fi
  step 420 build "the extension" env INTERLUDE_FAST_CUDA=1 "$python" setup.py build_ext --inplace || {
    grep -aE 'error|Error' "$results/build.log" | head -n 8 | cut -c1-200 | tee -a "$out/summary.txt"
    stop "the extension was not built: what follows would measure the torch reference"
  }
  loaded "$mark" "$now"
  [ -z "$plan" ] || return 0
  built=(interlude_fast/_C*.so)
  if [ "$(stat -c %s "${built[0]}")" -lt 16000000 ]; then
    cp "${built[0]}" "$out/" && cp $mark "$out/extension.fingerprint"
  fi
}

stop() {
  [ -n "$plan" ] && return
  echo "gpu_session: $*" | tee -a "$out/summary.txt" >&2
  archive
  exit 1
}

part_tests() {
  tests 150 tests_ops tests/gpu/test_ops_gpu.py tests/gpu/test_pipelines_gpu.py
  tests 190 tests_ways tests/gpu/test_ways_gpu.py
  tests 150 tests_methods tests/gpu/test_methods_gpu.py tests/gpu/test_memory_gpu.py
  tests 90 tests_others tests/gpu --ignore tests/gpu/test_ops_gpu.py --ignore tests/gpu/test_pipelines_gpu.py \
    --ignore tests/gpu/test_ways_gpu.py --ignore tests/gpu/test_methods_gpu.py --ignore tests/gpu/test_memory_gpu.py
}

part_dtypes() { # the ops' own tests, where they run on the GPU: dtypes, formats, shapes, gradients, torch.compile
  local what=(tests/ops -k "cuda and not emulat")
  [ -z "${REHEARSE:-}" ] || what=(tests/ops/test_fusion.py)
  tests 400 tests_dtypes "${what[@]}"
}

part_kernels() {
  step 90 kernels "kernels.log: every kernel in small shapes, against the CPU" \
    "$python" -m bench.kernels --small --device $device
}

part_sanitizer() { # our kernels alone: their mangled names hold the namespace
  local tool more launch=("$python" -m bench.kernels --small --device $device)
  step 20 kernel_names "kernel_names.log: the kernels that the filter means" \
    bash -c "grep -aoE '_ZN9interlude[A-Za-z0-9_]*kernel' interlude_fast/_C*.so | sort -u" || true
  for tool in memcheck racecheck; do
    more=()
    [ $tool = racecheck ] || more=(--report-api-errors no)
    if [ -n "$plan" ] || { [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; }; then
      # An allocation for every tensor, so that what lies beyond one is nobody's.
      step 270 "$tool" "$tool.log" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool \
        --kernel-name kns=interlude --error-exitcode 9 --print-limit 20 "${more[@]}" "${launch[@]}" || true
    else
      note "$tool" "left out" 0 "no compute-sanitizer"
    fi
  done
}

part_ops() {
  script 300 ops ops
}

part_step() {
  script 400 step-28-2 step --networks "${small:-WRN-28-2}" --stages whole --repeats 12
  script 180 stages-28-2 step --networks "${small:-WRN-28-2}" --ways eager \
    --stages batch forward loss backward update --repeats 10
}

part_profile() {
  script 400 profile-28-2 profiling --networks "${small:-WRN-28-2}"
}

part_pipelines() {
  local side
  for side in 32 96; do
    script 280 "pipelines-$side" pipelines --sides "$side" --repeats 4
  done
}

part_train() {
  run 570 train-interlude-250 --method interlude --labels 250
}

part_ncu() {
  if [ -z "$plan" ] && ! command -v ncu >/dev/null; then
    step 60 ncu "ncu.csv, ncu.txt" "$python" -m bench.kernels --device $device
    note ncu "left out" 0 "no ncu"
    return
  fi
  # Clocks stay as they are.
  step 240 ncu "ncu.log" ncu --clock-control none --target-processes application-only --kernel-name-base mangled \
    --kernel-name regex:interlude --set full --force-overwrite --export "$work/ncu" \
    "$python" -m bench.kernels --device $device || true
  [ -n "$plan" ] || [ -f "$work/ncu.ncu-rep" ] || return
  step 60 ncu_figures "ncu.csv" bash -c "ncu --import '$work/ncu.ncu-rep' --csv --page raw >'$results/ncu.csv'" || true
  step 60 ncu_details "ncu.txt" bash -c "ncu --import '$work/ncu.ncu-rep' --page details >'$results/ncu.txt'" || true
}

part_step_large() {
  script 280 step-37-2 step --networks "${small:-WRN-37-2}" --ways "${fast[@]}" --stages whole --repeats 12
  script 300 step-28-8 step --networks "${small:-WRN-28-8}" --ways "${fast[@]}" --stages whole --repeats 12
}

part_bench() {
  with_data bench || return 0
  step 400 bench "bench.json" "$python" -m interlude_fast.cli bench --dataset folder --data-root "${DATA:-DATA}/train" \
    --test "${DATA:-DATA}/test" --set model.name=wideresnet "${network[@]}" --labels 250 --seconds $seconds \
    --out "$results/bench.json" --overwrite
}

part_train_fixmatch() {
  run 570 train-fixmatch-250 --method fixmatch --labels 250
}

part_train_supervised() {
  run 570 train-supervised-250 --method supervised --labels 250
}

part_train_40() {
  run 570 train-interlude-40 --method interlude --labels 40
}

part_train_compiled() {
  run 570 train-interlude-250-compiled --method interlude --labels 250 --compile
}

part_train_together() { # four runs share the GPU: errors after the same time each, no speeds
  local method
  if [ -n "$plan" ]; then
    step 570 train_together "together-*: the four runs of train* at once, each with its result.json and metrics.jsonl"
    return
  fi
  with_data train_together || return 0
  for method in interlude fixmatch supervised; do
    run 570 "together-$method-250" --method $method --labels 250 &
  done
  run 570 together-interlude-40 --method interlude --labels 40 &
  wait
}

part_memory() {
  script 280 memory memory
  script 280 memory-compiled memory --compile --batches $batches
}

part_rest() {
  script 290 scaling scaling
  script 290 seeds seeds
}

part_suite() { # what runs on CPUs too, with the GPU beside it
  local what=(tests/models tests/methods tests/evaluate tests/training --ignore tests/training/test_distributed.py)
  [ -z "${REHEARSE:-}" ] || what=(tests/models/test_wideresnet.py)
  tests 580 suite "${what[@]}"
}

# ---- What was asked for ------------------------------------------------------------------------------

main() { # read as a whole before it runs, so that the file may change meanwhile
  local part lines
  if [ -n "$plan" ]; then
    for part in "$@"; do
      lines=$("part_$part")
      total=0
      "part_$part" >/dev/null
      printf '%s: %s s\n%s\n' "$part" "$total" "$lines"
    done
    exit 0
  fi
  prepare "$@"
  for part in "$@"; do
    "part_$part"
  done
  rm -f "$out"/.results.*
  archive
  local kept bad
  kept="$out/results.tgz ($(stat -c %s "$out/results.tgz") bytes)"
  bad=$(grep -E '^[^ ]+ +(FAILED|stopped)' "$out/summary.txt" | cut -d' ' -f1 | xargs)
  if [ -n "$bad" ]; then
    echo "failed: $bad; $kept"
    exit 1
  fi
  echo "all is well; $kept"
  exit 0
}

main "$@"
