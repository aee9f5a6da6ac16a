#!/usr/bin/env bash
# Everything that only an accelerator can tell, in at most eight minutes and without a network; called from the repository's root:
#
#     bash benchmarks/performance/gpu.sh FOLDER
#
# FOLDER gets a JSON file of each part that measures, what all parts printed as log.txt, and summary.txt. What is wanted most comes first, and each part has a
# time of its own after which it is ended, so that a slow one takes nothing from the others. On a machine without an
# accelerator the same lines run on small shapes:
#
#     SIZE=tiny DEVICE=cpu bash benchmarks/performance/gpu.sh FOLDER
#
# SIZE (7b), DEVICE (cuda), SHAPES (auto), METHODS and PAIRS (of the table of steps), BATCHES (of the memory's rows), WIDE (the batch of answers that is held against 1),
# STEPS and ROUNDS (of the table), JOBS (processes of the tests) and SECONDS_IN_ALL (480) may be set; PATIENCE is a factor on the time of each
# part, for a slow machine; PYTHON names the interpreter.
# Where cl-zoo is not installed its entry points are read from pyproject.toml. The exit code is 1 where a part failed or was ended.
set -u
OUT=${1:?"names no folder for the results; call it as gpu.sh FOLDER"}
PYTHON=${PYTHON:-$(command -v python || command -v python3)}
SIZE=${SIZE:-7b}
DEVICE=${DEVICE:-cuda}
SHAPES=${SHAPES:-auto}
METHODS=${METHODS:-finetune,hide,olora,ewc,moelora,branchlora,hydralora}
PAIRS=${PAIRS:-branchlora/moelora}
BATCHES=${BATCHES:-4 16 24}
WIDE=${WIDE:-64}
STEPS=${STEPS:-5}
ROUNDS=${ROUNDS:-4}
PATIENCE=${PATIENCE:-1}
SECONDS_IN_ALL=${SECONDS_IN_ALL:-$((480 * PATIENCE))}
HERE=benchmarks/performance
mkdir -p "$OUT"
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
export PYTHONPATH="$PWD:$PWD/plugins:$PWD/benchmarks:$SCRATCH${PYTHONPATH:+:$PYTHONPATH}"
failed=0
: >"$OUT/summary.txt"
: >"$OUT/log.txt"

"$PYTHON" - "$SCRATCH" <<'END'
import sys, tomllib
from importlib import metadata
from pathlib import Path

try:
    metadata.version("cl-zoo")
except metadata.PackageNotFoundError:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    folder = Path(sys.argv[1], "cl_zoo-0.1.0.dist-info")
    folder.mkdir()
    folder.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: cl-zoo\nVersion: 0.1.0\n")
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = [line for group, those in groups.items() for line in (f"[{group}]", *(f"{a} = {b}" for a, b in those.items()))]
    folder.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
END

say() { echo "$*" | tee -a "$OUT/summary.txt"; }

# part NAME LIMIT COMMAND…: runs it for at most LIMIT seconds, and no longer than what is left in all.
part() {
    local name=$1 limit=$(($2 * PATIENCE)) began=$SECONDS left=$((SECONDS_IN_ALL - SECONDS)) code
    shift 2
    ((left < limit)) && limit=$left
    if ((limit < 5)); then
        say "== $name: left out, the time is spent"
        failed=1
        return
    fi
    timeout --kill-after=5 "$limit" "$@" >"$SCRATCH/printed" 2>&1
    code=$?
    { echo "== $name: $*"; cat "$SCRATCH/printed"; } >>"$OUT/log.txt"
    ((code == 124 || code == 137)) && say "== $name: ended after its $limit s" || say "== $name: exit code $code after $((SECONDS - began)) s"
    ((code)) && failed=1
    grep -v "Loading weights\|Writing model\|FutureWarning\|warnings.warn" "$SCRATCH/printed" | tail -n 25 | tee -a "$OUT/summary.txt"
}

step() {
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$PYTHON" $HERE/train_step.py --size "$SIZE" --shapes "$SHAPES" --device "$DEVICE" --json "$OUT/$name.json" "$@"
}

step "$SIZE-$DEVICE" 170 --methods "$METHODS" --pairs $PAIRS --steps "$STEPS" --rounds "$ROUNDS"
part "memory-$DEVICE" 90 "$PYTHON" $HERE/memory.py --size "$SIZE" --shapes "$SHAPES" --device "$DEVICE" --batches $BATCHES --json "$OUT/memory-$DEVICE.json"
step "answers-$WIDE-$DEVICE" 60 --phase answer --methods finetune --batch "$WIDE" --steps 2 --rounds 2
step "answers-1-$DEVICE" 40 --phase answer --methods finetune --batch 1 --steps 4 --rounds 2
part "answers" 10 "$PYTHON" -c '
import json, sys
found = [json.load(open(name))["contenders"]["finetune"] for name in sys.argv[1:]]
wide, alone = (one["samples_per_step"] / one["seconds"]["median"] for one in found)
print("answers a second: %.2f in a batch of %d, %.2f alone; ratio %.2f" % (wide, found[0]["samples_per_step"], alone, wide / alone))
' "$OUT/answers-$WIDE-$DEVICE.json" "$OUT/answers-1-$DEVICE.json"
part "tests" 150 "$PYTHON" -m pytest -n "${JOBS:-6}" -q -m gpu -p no:cacheprovider --basetemp="$SCRATCH/tests" $(grep -rl "mark\.gpu" tests --include="test_*.py")
say "== all parts: $SECONDS s"
exit $failed
