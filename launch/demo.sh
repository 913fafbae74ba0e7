#!/usr/bin/env bash
# The whole road at embedded size: supervised warm-up, then RL from a verifiable reward, then the report.
set -euo pipefail
bin=${VENV:-.venv}/bin
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
echo "1/2  warm-up: supervised fine-tuning on a teacher that is right 40 % of the time"
"$bin/accelerate" launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no -m posttrain train recipes/demo/sft.yaml --set output.overwrite=true
echo "2/2  RL from a verifiable reward with BAPO, from that checkpoint"
"$bin/accelerate" launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no -m posttrain train recipes/demo/bapo.yaml --set output.overwrite=true
