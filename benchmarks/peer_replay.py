"""One timed run of Dynamo's offline replay, as JSON. Run by peers.py, maybe in another interpreter, hence alone: it imports
nothing of ours.

    python benchmarks/peer_replay.py REQUESTS fixed|poisson
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

from dynamo.replay import run_synthetic_trace_replay

PROMPT_TOKENS, OUTPUT_TOKENS = 512, 256
ARRIVALS = {"fixed": {"arrival_interval_ms": 125.0}, "poisson": {"request_rate": 8.0}}
"""Eight requests a second, evenly or as a Poisson process."""


def main() -> None:
    """Prints seconds, and what shows that the load was simulated."""
    requests, arrivals = int(sys.argv[1]), ARRIVALS[sys.argv[2]]
    run_synthetic_trace_replay(PROMPT_TOKENS, OUTPUT_TOKENS, 100, replay_mode="offline", **arrivals)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    summary = run_synthetic_trace_replay(
        PROMPT_TOKENS, OUTPUT_TOKENS, requests, replay_mode="offline", **arrivals
    ).summary
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    figures = {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "version": version("ai-dynamo"),
        "completed": summary["completed_requests"],
        "output_tokens": summary["total_output_tokens"],
        "simulated_s": summary["duration_ms"] / 1e3,
        "ttft_s": summary["mean_ttft_ms"] / 1e3,
        "tpot_s": summary["mean_tpot_ms"] / 1e3,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
