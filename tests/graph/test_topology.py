from __future__ import annotations

import numpy as np
import pytest
from onnx import GraphProto, TensorProto, helper

from saccade.errors import ModelError
from saccade.graph.topology import describe, producers, reads, runnable_order, tensors


def graph_of(*nodes: tuple[list[str], list[str]]) -> GraphProto:
    made = [helper.make_node("Op", inputs, outputs) for inputs, outputs in nodes]
    return helper.make_graph(made, "g", [], [])


def test_sorted_graph_keeps_its_order() -> None:
    graph = graph_of((["x"], ["a"]), (["x"], ["b"]), (["a"], ["c"]), (["b", "c"], ["d"]))
    assert [node.output[0] for node in runnable_order(graph)] == ["a", "b", "c", "d"]


def test_shuffled_graphs_are_put_in_order(rng: np.random.Generator) -> None:
    for _ in range(20):
        nodes = [
            ([f"t{j}" for j in rng.integers(0, i + 1, size=2)], [f"t{i + 1}"]) for i in range(30)
        ]
        shuffled = [nodes[i] for i in rng.permutation(len(nodes))]
        ready = {"t0"}
        order = runnable_order(graph_of(*shuffled))
        assert len(order) == 30
        for node in order:
            assert set(node.input) <= ready
            ready.update(node.output)


def test_circle_is_told_from_what_hangs_on_it() -> None:
    graph = graph_of((["b"], ["a"]), (["a"], ["b"]), (["a"], ["innocent"]))
    with pytest.raises(ModelError) as caught:
        runnable_order(graph)
    assert "innocent" not in str(caught.value)
    assert "'a'" in str(caught.value)


def test_node_that_reads_itself() -> None:
    with pytest.raises(ModelError, match=r"'a' <- .*'a'"):
        runnable_order(graph_of((["a"], ["a"])))


def test_long_chain_stored_backwards() -> None:
    graph = graph_of(*[([f"t{i}"], [f"t{i + 1}"]) for i in reversed(range(5000))])
    assert runnable_order(graph)[0].output[0] == "t1"


def test_reads_looks_into_bodies_for_outer_names_only() -> None:
    inner = [helper.make_node("Add", ["own", "outer"], ["sum"])]
    own = helper.make_tensor_value_info("own", TensorProto.FLOAT, [1])
    total = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1])
    body = helper.make_graph(inner, "body", [own], [total])
    node = helper.make_node("Loop", ["", "go"], ["y"], body=body)
    assert reads(node) == ["go", "outer"]


def test_describe_and_producers() -> None:
    named = helper.make_node("Warp", ["x"], ["y"], name="n", domain="com.acme")
    bare = helper.make_node("Relu", ["y"], ["z"])
    assert describe(named) == "com.acme:Warp node 'n'"
    assert describe(bare) == "nameless Relu node that makes 'z'"
    graph = helper.make_graph([named, bare], "g", [], [])
    assert {name: node.op_type for name, node in producers(graph).items()} == {
        "y": "Warp",
        "z": "Relu",
    }


def test_tensors_finds_those_in_attributes_and_bodies() -> None:
    deep = helper.make_tensor("deep", TensorProto.FLOAT, [1], [0.0])
    top = helper.make_tensor("top", TensorProto.FLOAT, [1], [0.0])
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=deep)], "b", [], [])
    node = helper.make_node("If", ["go"], ["y"], then_branch=inner)
    graph = helper.make_graph([node], "g", [], [], [top])
    assert [tensor.name for tensor in tensors(graph)] == ["top", "deep"]
