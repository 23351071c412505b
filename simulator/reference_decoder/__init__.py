"""A real decoder in PyTorch, real speculative decoding on it, and the harness that measures both.

    python -m simulator.reference_decoder.measure --device cuda --budget 8m --out h200.jsonl

Imports torch, numpy and the standard library, nothing else of this project: copy the folder to any machine with
PyTorch and it runs. It meets the simulator only through the measurement files it writes (see `measurements`).
"""
