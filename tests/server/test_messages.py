"""The table of gRPC messages says what NVIDIA's own stubs say."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2

from saccade.server.messages import METHODS, SERVICE, message


def fields_of(descriptor):
    return {
        field.name: (field.number, field.type, field.is_repeated) for field in descriptor.fields
    }


def check(ours, theirs, path=""):
    """Every field of ours is one of theirs, with the same number and kind; so are theirs."""
    assert fields_of(ours) == fields_of(theirs), path or ours.full_name
    for field in ours.fields:
        if field.message_type is not None:
            other = theirs.fields_by_name[field.name].message_type
            if field.message_type.name not in ("ModelConfig", "ModelStatistics"):
                check(field.message_type, other, f"{path}.{field.name}")


@pytest.mark.parametrize("name", sorted({n for pair in METHODS.values() for n in pair[:2]}))
def test_messages_are_the_protocols(name):
    check(message(name).DESCRIPTOR, getattr(service_pb2, name).DESCRIPTOR)


@pytest.mark.parametrize("name", ["ModelConfig", "ModelStatistics"])
def test_parts_of_messages(name):
    from tritonclient.grpc import model_config_pb2

    home = model_config_pb2 if name == "ModelConfig" else service_pb2
    theirs = fields_of(getattr(home, name).DESCRIPTOR)
    enums = {14: 5}  # choices travel as the numbers they are
    for field, (number, kind, is_repeated) in fields_of(message(name).DESCRIPTOR).items():
        wanted = theirs[field]
        assert (number, kind, is_repeated) == (
            wanted[0],
            enums.get(wanted[1], wanted[1]),
            wanted[2],
        )


def test_methods_are_the_protocols():
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    assert {
        method.name: (method.input_type.name, method.output_type.name, method.client_streaming)
        for method in service.methods
    } == METHODS
