"""Load tests of an OpenAI-compatible endpoint, and what each replica behind it really served.

Why not a load generator that is kept already: `vllm bench serve` needs the engine's environment (2.5 GB) beside the
client, guidellm brings 97 packages with torch, aiperf 139 with transformers, locust 38 and knows no tokens; and none
reads the replicas' own counters before and after, which is the proof of round robin that this is for. So the client is
ours, small, on `httpx2` (HTTP) and `prometheus-client` (the metrics' format); its terms and definitions (TTFT, ITL,
TPOT, goodput) are those of `vllm bench serve`, so that figures can be compared. Counts are as of November 2026.
"""
