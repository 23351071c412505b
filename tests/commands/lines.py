"""Command lines that several modules start from."""

from simulator.cli import main

DECODE = ["decode", "--model", "llama-3.2-1b", "--gpu", "h100-sxm"]
SPECULATE = ["speculate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--draft", "llama-3.2-1b"]

SCENARIO = """
name: small
model: llama-3.1-8b
gpu: h100-sxm
speculation: {draft: llama-3.2-1b, gamma: 3, acceptance: 0.7}
traffic: {kind: poisson, rate_per_s: 5, requests: 20, lengths: {prompt: 100, output: 12}}
"""


def run(*argv: str) -> int:
    return main(list(argv))
