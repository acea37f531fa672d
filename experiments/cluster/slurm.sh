#!/bin/bash
#SBATCH --job-name=elsa-ray
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --output=elsa-ray-%j.log

# A Ray cluster for one job: a head on the first node, the other nodes join it, the run attaches to it.
#   sbatch experiments/cluster/slurm.sh experiments/quickstart.yaml /shared/runs/quickstart
# Everything after the run folder is given to elsa-ray run. VENV names the environment that all nodes can see.

set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "usage: sbatch $0 CONFIG RUN_FOLDER [OPTION...]" >&2
    exit 2
fi
config=$1
folder=$2
shift 2

venv=${VENV:-$SLURM_SUBMIT_DIR/.venv}
# Jobs that share a node must not meet.
port=$((20000 + SLURM_JOB_ID % 20000))
temporary=${TMPDIR:-/tmp}/ray-$SLURM_JOB_ID
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

ulimit -n 65536 2> /dev/null || true

echo "head: $head ($address:$port)"
srun --nodes=1 --ntasks=1 --nodelist="$head" \
    "$venv/bin/ray" start --head --node-ip-address="$address" --port="$port" --num-cpus="$cpus" --num-gpus="$gpus" \
    --temp-dir="$temporary" --disable-usage-stats --include-dashboard=false --block &

for _ in $(seq 60); do
    if "$venv/bin/ray" status --address "$address:$port" > /dev/null 2>&1; then
        break
    fi
    sleep 2
done

if [ "${#nodes[@]}" -gt 1 ]; then
    others=$(IFS=, && echo "${nodes[*]:1}")
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --nodelist="$others" \
        "$venv/bin/ray" start --address="$address:$port" --num-cpus="$cpus" --num-gpus="$gpus" \
        --disable-usage-stats --block &
fi

# Slurm's warning before the time is over reaches this shell: the run then keeps its records, and can be resumed.
"$venv/bin/elsa-ray" run "$config" --address "$address:$port" --out "$folder" "$@" &
run=$!
trap 'kill -TERM "$run" 2> /dev/null || true' TERM
# The trap ends `wait` early: wait again for the run itself.
while :; do
    status=0
    wait "$run" || status=$?
    kill -0 "$run" 2> /dev/null || break
done
status=0
wait "$run" || status=$?
exit "$status"
