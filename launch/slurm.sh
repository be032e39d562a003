#!/bin/bash
# Train under Slurm, one process a GPU, and queue the job again when it is stopped after a save.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]
#   sbatch --array=0-4 launch/slurm.sh --config=FILE --workdir=ROOT       # seeds 0 to 4, in ROOT/seed-0 to ROOT/seed-4
#   sbatch --array=0-11%4 launch/slurm.sh --runs=FILE [more arguments]     # task N: the arguments in line N + 1 of FILE
#   bash launch/slurm.sh --dry_run --config=FILE --workdir=DIR             # print the command of a task, start nothing
#
# sbatch's own options stand before the script and replace those of the lines below. A line of FILE is quoted as for a
# shell; nothing in it is expanded. Without a --workdir of its own it has ROOT/run-N.
#
# Environment: PYTHON (python), UNIMIX_MAX_RESTARTS (20), UNIMIX_REQUEUE_CODES ("75"; "75 137" also queues a job
# again of which a process was killed: srun returns the highest code, 137 of that one, 75 of the others).
#
#SBATCH --job-name=unimix
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
# Without "B:" the signal goes to the processes, not to this shell; it may come up to a minute early.
#SBATCH --signal=TERM@180

set -u

mistake() {
  echo "error: $1" >&2
  exit 2
}

index="${SLURM_ARRAY_TASK_ID:-}"
dry_run="" runs="" workdir="" arguments=()
for argument in "$@"; do
  case "$argument" in
    --dry_run) dry_run=yes ;;
    --runs=*) runs="${argument#*=}" ;;
    --workdir=*) workdir="${argument#*=}" ;;
    --workdir | --runs) mistake "$argument has no value; write $argument=PATH" ;;
    *) arguments+=("$argument") ;;
  esac
done

if [ -n "$runs" ]; then
  [ -n "$index" ] || mistake "--runs=$runs needs an array; submit it with sbatch --array=0-N"
  [ -f "$runs" ] || mistake "--runs names $runs, which is no file"
  line="$(sed -n "$((index + 1))p" -- "$runs")"
  [ -n "$line" ] || mistake "$runs has no line $((index + 1)) for task $index; see --array"
  # xargs reads quotes and expands nothing, where eval would run what stands in the file.
  words="$(mktemp)"
  xargs -r printf '%s\0' <<<"$line" >"$words" || mistake "line $((index + 1)) of $runs has a quote without its end"
  own="" more=()
  while IFS= read -r -d '' word; do
    case "$word" in
      --workdir=*) own="${word#*=}" ;;
      *) more+=("$word") ;;
    esac
  done <"$words"
  rm -f "$words"
  arguments=("${more[@]}" "${arguments[@]}")
  workdir="${own:-${workdir:+$workdir/run-$index}}"
elif [ -n "$index" ]; then
  for argument in "${arguments[@]}"; do
    case "$argument" in
      --config.seed | --config.seed=*)
        mistake "the array sets --config.seed to the number of each task; leave $argument out, or submit no array" ;;
    esac
  done
  arguments+=("--config.seed=$index")
  workdir="${workdir:+$workdir/seed-$index}"
fi
# A start without one would make a new run directory, and a job that is queued again would begin anew.
[ -n "$workdir" ] || mistake "--workdir is missing; a job that is queued again goes on in it"

# srun does not take the cores of a task from the job (since Slurm 22.05).
command=(srun --gpu-bind=none --kill-on-bad-exit=0 --wait=120
  ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"}
  "${PYTHON:-python}" -m unimix_jax.main "${arguments[@]}" "--workdir=$workdir")

if [ -n "$dry_run" ]; then
  line="$(printf '%q ' "${command[@]}")"
  echo "${line% }"
  exit 0
fi
[ -n "${SLURM_JOB_ID:-}" ] || mistake "this is no job of Slurm; submit the script with sbatch, or see --dry_run"

export PYTHONUNBUFFERED=1
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
  # A proxy would stand between the processes of a run.
  unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
fi

"${command[@]}"
code=$?

# In an array the number of its first task is that of the whole array, all tasks of which would be queued again.
job="$SLURM_JOB_ID"
[ -z "$index" ] || job="${SLURM_ARRAY_JOB_ID}_$index"
case " ${UNIMIX_REQUEUE_CODES:-75} " in
  *" $code "*)
    restarts="${SLURM_RESTART_COUNT:-0}"
    if [ "$restarts" -ge "${UNIMIX_MAX_RESTARTS:-20}" ]; then
      echo "stopped with code $code after $restarts restarts, which is the limit; submit the same job again" >&2
    elif scontrol requeue "$job"; then
      echo "stopped with code $code; job $job is queued again"
      exit 0
    else
      echo "stopped with code $code, and Slurm does not queue job $job again; submit the same job again" >&2
    fi
    ;;
esac
exit "$code"
