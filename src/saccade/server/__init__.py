"""Models as a service: pictures or tensors in over HTTP and gRPC, boxes or tensors out.

Two kinds of processes, see docs/decisions/0004-a-front-and-engine-processes.md:

    front     connections, protocols, admission, the queue; one event loop, no numpy
    engine    decoding to boxes on threads; one process per device, watched and restarted
"""
