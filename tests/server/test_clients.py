"""NVIDIA's own clients, unchanged, over HTTP and gRPC, blocking and not."""

from __future__ import annotations

import asyncio
import queue

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

import saccade
from nets import score_of
from server.conftest import jpeg

pytestmark = pytest.mark.slow


@pytest.fixture(params=["http", "grpc"])
def client(request, served):
    """A client and its module."""
    module = http_client if request.param == "http" else grpc_client
    address = served.host if request.param == "http" else served.grpc
    with module.InferenceServerClient(address) as made:
        made.module = module
        yield made


def plain(answer):
    """An answer of either client as plain values."""
    if isinstance(answer, dict | list):
        return answer
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(answer, preserving_proto_field_name=True)


def tensor(module, name, array, datatype):
    made = module.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def pair(module, rng, num=2):
    a, b = rng.integers(-99, 99, (2, num, 16), dtype=np.int32)
    return a, b, [tensor(module, "INPUT0", a, "INT32"), tensor(module, "INPUT1", b, "INT32")]


def test_health_and_descriptions(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert not client.is_model_ready("nothing")
    server = plain(client.get_server_metadata())
    assert server["name"] == "saccade"
    assert "binary_tensor_data" in server["extensions"]
    model = plain(client.get_model_metadata("simple"))
    assert [one["name"] for one in model["inputs"]] == ["INPUT0", "INPUT1"]
    assert [int(size) for size in model["outputs"][0]["shape"]] == [-1, 16]
    config = plain(client.get_model_config("simple"))
    config = config.get("config", config)
    assert config["name"] == "simple"
    assert config["backend"] == "onnxruntime"


def test_infer_gives_what_the_network_gives(client, rng):
    a, b, inputs = pair(client.module, rng)
    found = client.infer("simple", inputs, request_id="mine")
    assert found.as_numpy("OUTPUT0").tolist() == (a + b).tolist()
    assert found.as_numpy("OUTPUT1").tolist() == (a - b).tolist()
    told = found.get_response()
    assert (told["id"] if isinstance(told, dict) else told.id) == "mine"


def test_one_output_can_be_asked_for(client, rng):
    a, b, inputs = pair(client.module, rng)
    outputs = [client.module.InferRequestedOutput("OUTPUT1")]
    found = client.infer("simple", inputs, outputs=outputs)
    assert found.as_numpy("OUTPUT1").tolist() == (a - b).tolist()
    assert found.as_numpy("OUTPUT0") is None


def test_more_items_than_a_batch_holds(client, rng):
    a, b, inputs = pair(client.module, rng, num=11)
    found = client.infer("simple", inputs)
    assert found.as_numpy("OUTPUT0").tolist() == (a + b).tolist()


@pytest.mark.parametrize(
    ("model", "datatype", "array"),
    [
        ("bools", "BOOL", np.array([[True, False, True, True]])),
        ("halves", "FP16", np.array([[0.5, -2, 65504, 6e-8]], np.float16)),
        ("identity", "FP32", np.array([[1, np.inf, -np.inf, 1e-40]], np.float32)),
    ],
)
def test_types_pass_unchanged(client, model, datatype, array):
    found = client.infer(model, [tensor(client.module, "input", array, datatype)])
    assert found.as_numpy("output").tobytes() == array.tobytes()


def test_long_tensors_go_through_shared_memory_of_the_server(client, rng):
    array = rng.random((3, 70_000), np.float32)
    found = client.infer("wide", [tensor(client.module, "input", array, "FP32")])
    assert (found.as_numpy("output") == array).all()


def test_compressed_requests(client, rng):
    array = np.repeat(rng.random((2, 1), np.float32), 70_000, 1)
    key = "request_compression_algorithm"
    key = key if client.module is http_client else "compression_algorithm"
    for kind in ("gzip", "deflate"):
        inputs = [tensor(client.module, "input", array, "FP32")]
        found = client.infer("wide", inputs, **{key: kind})
        assert (found.as_numpy("output") == array).all()


def test_errors_have_their_codes(client, rng):
    _, _, inputs = pair(client.module, rng)
    is_http = client.module is http_client
    with pytest.raises(InferenceServerException, match="must be one of") as caught:
        client.infer("nothing", inputs)
    assert caught.value.status() == ("404" if is_http else "StatusCode.NOT_FOUND")
    with pytest.raises(InferenceServerException, match="INPUT1") as caught:
        client.infer("simple", inputs[:1])
    assert caught.value.status() == ("400" if is_http else "StatusCode.INVALID_ARGUMENT")
    wrong = tensor(client.module, "input", np.zeros((1, 5), np.float32), "FP32")
    with pytest.raises(InferenceServerException, match="must have shape"):
        client.infer("identity", [wrong])
    wrong = tensor(client.module, "input", np.zeros((1, 4), np.float64), "FP64")
    with pytest.raises(InferenceServerException, match="must be FP32"):
        client.infer("identity", [wrong])


def test_statistics_count_what_was_done(client, rng):
    def successes():
        told = plain(client.get_inference_statistics("simple"))["model_stats"][0]
        return int(told["inference_stats"]["success"]["count"]), int(told["inference_count"])

    before = successes()
    client.infer("simple", pair(client.module, rng, num=3)[2])
    after = successes()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 3)
    everything = plain(client.get_inference_statistics())["model_stats"]
    assert {"simple", "identity"} <= {one["name"] for one in everything}


def test_pictures_as_bytes(client, networks):
    pictures = [jpeg(200), jpeg(90), jpeg(250, size_wh=(30, 60))]
    array = np.array([*pictures, b"none"], object)
    asked = tensor(client.module, "picture", array, "BYTES")
    found = client.infer("colours.detect", [asked])
    with saccade.load(networks["colours"]) as detector:
        for place, picture in enumerate(pictures):
            wanted = detector(picture)
            num = int(found.as_numpy("num")[place])
            assert num == len(wanted)
            assert (found.as_numpy("boxes")[place, :num] == wanted.boxes_xyxy).all()
            assert (found.as_numpy("scores")[place, :num] == wanted.scores).all()
            assert (found.as_numpy("classes")[place, :num] == wanted.classes).all()
    assert found.as_numpy("num")[3] == 0
    errors = found.as_numpy("errors")
    assert list(errors[:3]) == [b""] * 3
    assert b"must be JPEG" in errors[3]
    with pytest.raises(InferenceServerException, match="must be JPEG"):
        client.infer(
            "colours.detect",
            [tensor(client.module, "picture", np.array([b"none"], object), "BYTES")],
        )


def test_thresholds_as_parameters(client):
    asked = tensor(client.module, "picture", np.array([jpeg(200)], object), "BYTES")
    found = client.infer("colours.detect", [asked], parameters={"score": 0.99})
    assert found.as_numpy("num").tolist() == [0]
    with pytest.raises(InferenceServerException, match="score must be 0 to 1"):
        client.infer("colours.detect", [asked], parameters={"score": 3})


def test_metadata_of_pictures(client):
    told = plain(client.get_model_metadata("colours.detect"))
    assert told["inputs"][0]["datatype"] == "BYTES"
    with pytest.raises(InferenceServerException):
        client.get_model_metadata("simple.detect")


def test_system_shared_memory(client, rng):
    a, b, _ = pair(client.module, rng)
    num_bytes = a.nbytes
    module = client.module
    key = f"/saccade_test_{module.__name__.split('.')[-1]}"
    memory = shm.create_shared_memory_region("data", key, 4 * num_bytes)
    try:
        shm.set_shared_memory_region(memory, [a, b])
        client.register_system_shared_memory("data", key, 4 * num_bytes)
        told = plain(client.get_system_shared_memory_status())
        regions = told if isinstance(told, list) else list(told["regions"].values())
        assert [one["name"] for one in regions] == ["data"]
        with pytest.raises(InferenceServerException, match="registered"):
            client.register_system_shared_memory("data", key, num_bytes)
        inputs = [module.InferInput(f"INPUT{i}", [2, 16], "INT32") for i in range(2)]
        outputs = [module.InferRequestedOutput(f"OUTPUT{i}") for i in range(2)]
        for i in range(2):
            inputs[i].set_shared_memory("data", num_bytes, i * num_bytes)
            outputs[i].set_shared_memory("data", num_bytes, (2 + i) * num_bytes)
        client.infer("simple", inputs, outputs=outputs)
        found = shm.get_contents_as_numpy(memory, np.int32, [4, 2, 16])
        assert (found[2] == a + b).all()
        assert (found[3] == a - b).all()
        inputs[0].set_shared_memory("data", num_bytes, 4 * num_bytes)
        with pytest.raises(InferenceServerException, match="must lie within"):
            client.infer("simple", inputs)
        client.unregister_system_shared_memory("data")
        inputs[0].set_shared_memory("data", num_bytes, 0)
        with pytest.raises(InferenceServerException, match="must be registered"):
            client.infer("simple", inputs)
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(memory)


def test_memory_of_a_gpu_is_refused_in_words(client):
    with pytest.raises(InferenceServerException, match="runs on the CPU"):
        client.register_cuda_shared_memory("data", b"aGFuZGxl", 0, 64)


def test_repository(client):
    index = plain(client.get_model_repository_index())
    listed = index if isinstance(index, list) else index["models"]
    assert {"colours", "colours.detect", "simple"} <= {one["name"] for one in listed}
    client.load_model("halves")
    assert client.is_model_ready("halves")
    client.unload_model("halves")
    assert not client.is_model_ready("halves")
    with pytest.raises(InferenceServerException, match="unload"):
        client.infer(
            "halves", [tensor(client.module, "input", np.zeros((1, 4), np.float16), "FP16")]
        )
    client.load_model("halves")
    assert client.is_model_ready("halves")
    with pytest.raises(InferenceServerException, match="path"):
        client.load_model("unheard_of")


def test_settings(client):
    assert plain(client.get_log_settings())
    client.update_log_settings({"log_verbose_level": 0})
    with pytest.raises(InferenceServerException, match="log_verbose_level"):
        client.update_log_settings({"log_file": "x"})
    assert plain(client.get_trace_settings())


def test_many_at_a_time_without_blocking(served, rng):
    async def ask(module, aio, address):
        async with aio.InferenceServerClient(address) as client:
            asked = [pair(module, rng) for _ in range(60)]
            found = await asyncio.gather(*(client.infer("simple", one[2]) for one in asked))
            for (a, b, _), answer in zip(asked, found, strict=True):
                assert (answer.as_numpy("OUTPUT0") == a + b).all()

    asyncio.run(ask(http_client, http_aio, served.host))
    asyncio.run(ask(grpc_client, grpc_aio, served.grpc))


def test_a_stream_of_calls(served, rng):
    answers = queue.Queue()
    with grpc_client.InferenceServerClient(served.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        wanted = {}
        for number in range(40):
            a, b, inputs = pair(grpc_client, rng)
            wanted[str(number)] = a + b
            client.async_stream_infer("simple", inputs, request_id=str(number))
        client.async_stream_infer("nothing", inputs, request_id="wrong")
        got = [answers.get(timeout=30) for _ in range(41)]
        client.stop_stream()
    errors = [error for _, error in got if error is not None]
    assert len(errors) == 1
    found = {one.get_response().id: one.as_numpy("OUTPUT0") for one, error in got if not error}
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in wanted.items()}


def test_scores_follow_the_colour(served):
    found = served.detect("colours", jpeg(200, 30, 10, (40, 40)))["detections"]
    assert abs(found[0]["score"] - float(score_of(200 / 255))) < 0.02
