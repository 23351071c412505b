"""Graphs: the model itself on a CPU; and the bookkeeping around captures, with CUDA played by a stand-in."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from simulator.reference_decoder.drafters import EarlyExit, SmallModel
from simulator.reference_decoder.graphs import Graphed, graphed
from simulator.reference_decoder.speculative import Decoding, generate
from simulator.reference_decoder.token_tree import Tree
from tests.reference_decoder.models import PROMPTS, draft, target


class FakeGraph:
    """Replays by running once more what was run while it was current, into the memory it wrote to then."""

    current = None

    def replay(self):
        self.replays += 1
        self.output.copy_(self.call())

    replays = 0


@pytest.fixture
def fake_cuda(monkeypatch):
    @contextlib.contextmanager
    def capture(graph, pool):
        FakeGraph.current = graph
        yield
        FakeGraph.current = None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_in = SimpleNamespace(
        graph_pool_handle=lambda: 1,
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda s: contextlib.nullcontext(),
        CUDAGraph=FakeGraph,
        graph=capture,
    )
    monkeypatch.setattr("simulator.reference_decoder.graphs.torch", SimpleNamespace(
        cuda=stand_in, OutOfMemoryError=torch.OutOfMemoryError))  # fmt: skip
    run = Graphed._run

    def recording(self, *arguments):
        output = run(self, *arguments)
        if FakeGraph.current is not None:
            FakeGraph.current.output, FakeGraph.current.call = output, lambda: run(self, *arguments)
        return output

    monkeypatch.setattr(Graphed, "_run", recording)


def test_on_a_cpu_the_model_itself_runs():
    model = target()
    assert graphed(model) is model


@pytest.mark.parametrize("live_step", [1, 8, 10**9])
def test_replayed_passes_decode_like_eager_ones(fake_cuda, live_step):
    plain = [row.output for row in generate(target(), PROMPTS, 24)]
    for tree in (Tree.chain(3), Tree.branching([2, 2])):
        model = Graphed(target(), live_step=live_step)
        for drafter in (SmallModel(Graphed(draft(), live_step=live_step), tree), EarlyExit(model, tree, 2)):
            assert [row.output for row in generate(model, PROMPTS, 24, drafter=drafter)] == plain


def test_a_shape_is_captured_once_and_padded_batches_share_it(fake_cuda):
    model = Graphed(target(), live_step=10**9, longest_query=1)
    decoding = Decoding(model, 4, 40, pad_to=(4,))
    decoding.admit(PROMPTS[:1], 30)
    decoding.step()
    decoding.admit(PROMPTS[1:], 20)
    for _ in range(5):
        decoding.step()
    (captured,) = model._graphs.values()  # prompts are longer than one token, so prefills ran eagerly
    assert captured.graph.replays == 6


def test_a_failed_capture_falls_back_to_eager_passes(fake_cuda, monkeypatch):
    def refuse():
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = generate(target(), PROMPTS, 8)
    model = Graphed(target())
    monkeypatch.setattr("simulator.reference_decoder.graphs.torch.cuda.CUDAGraph", refuse)
    with pytest.warns(UserWarning, match="no CUDA graph for"):
        assert [row.output for row in generate(model, PROMPTS, 8)] == [row.output for row in plain]


def test_memory_running_out_in_a_capture_is_not_hidden(fake_cuda, monkeypatch):
    def refuse():
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("simulator.reference_decoder.graphs.torch.cuda.CUDAGraph", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        generate(Graphed(target()), PROMPTS, 8)
