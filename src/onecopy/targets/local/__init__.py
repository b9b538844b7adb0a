"""The local target: a whole stack on this machine, with no cloud.

`control` is what commands call. It starts one detached supervisor process, which owns every other process:
store (SeaweedFS), fork server and replicas (vLLM), router (vllm-router). The supervisor runs the steps of `bringup`,
then keeps watch (`supervisor`). What it knows stands in `<home>/state.json`, what it does in `<home>/events.jsonl`;
commands only read those and send signals, so that any of them may die at any time.
"""
