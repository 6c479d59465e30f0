/* A Triton back end that hands its input back: what Triton's own C++ costs, and nothing else.

   Declarations are those of Triton's back-end API (tritonbackend.h); the library that defines them
   is in the process that loads this one. */

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

typedef void *Handle;
typedef Handle Error; /* null: none */

#define FINAL 1u
#define RELEASE_ALL 1u

Error TRITONBACKEND_RequestInputByIndex(Handle request, uint32_t index, Handle *input);
Error TRITONBACKEND_InputProperties(Handle input, const char **name, int *datatype,
                                    const int64_t **shape, uint32_t *num_dims, uint64_t *num_bytes,
                                    uint32_t *num_buffers);
Error TRITONBACKEND_InputBuffer(Handle input, uint32_t index, const void **buffer,
                                uint64_t *num_bytes, int *memory_type, int64_t *memory_id);
Error TRITONBACKEND_ResponseNew(Handle *response, Handle request);
Error TRITONBACKEND_ResponseOutput(Handle response, Handle *output, const char *name, int datatype,
                                   const int64_t *shape, uint32_t num_dims);
Error TRITONBACKEND_OutputBuffer(Handle output, void **buffer, uint64_t num_bytes,
                                 int *memory_type, int64_t *memory_id);
Error TRITONBACKEND_ResponseSend(Handle response, uint32_t flags, Error error);
Error TRITONBACKEND_RequestRelease(Handle request, uint32_t flags);
Error TRITONBACKEND_ModelInstanceReportStatistics(Handle instance, Handle request, _Bool success,
                                                  uint64_t begin_ns, uint64_t compute_begin_ns,
                                                  uint64_t compute_end_ns, uint64_t end_ns);
const char *TRITONSERVER_ErrorMessage(Error error);

#define TRY(call)                                                          \
    do {                                                                   \
        Error error = (call);                                              \
        if (error) {                                                       \
            fprintf(stderr, "echo: %s\n", TRITONSERVER_ErrorMessage(error)); \
            return error;                                                  \
        }                                                                  \
    } while (0)

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static Error answer(Handle instance, Handle request) {
    Handle input, response, output;
    const int64_t *shape;
    uint32_t num_dims, num_buffers;
    uint64_t num_bytes, begin_ns = now_ns();
    int datatype, memory_type = 0;
    int64_t memory_id = 0;
    void *to;
    TRY(TRITONBACKEND_RequestInputByIndex(request, 0, &input));
    TRY(TRITONBACKEND_InputProperties(input, NULL, &datatype, &shape, &num_dims, &num_bytes,
                                      &num_buffers));
    TRY(TRITONBACKEND_ResponseNew(&response, request));
    TRY(TRITONBACKEND_ResponseOutput(response, &output, "OUTPUT0", datatype, shape, num_dims));
    TRY(TRITONBACKEND_OutputBuffer(output, &to, num_bytes, &memory_type, &memory_id));
    for (uint32_t i = 0; i < num_buffers; i++) {
        const void *from;
        uint64_t part;
        TRY(TRITONBACKEND_InputBuffer(input, i, &from, &part, &memory_type, &memory_id));
        memcpy(to, from, part);
        to = (char *)to + part;
    }
    TRY(TRITONBACKEND_ResponseSend(response, FINAL, NULL));
    uint64_t end_ns = now_ns();
    TRY(TRITONBACKEND_ModelInstanceReportStatistics(instance, request, 1, begin_ns, begin_ns,
                                                    end_ns, end_ns));
    return NULL;
}

__attribute__((visibility("default"))) Error
TRITONBACKEND_ModelInstanceExecute(Handle instance, Handle *requests, uint32_t num_requests) {
    for (uint32_t i = 0; i < num_requests; i++) {
        answer(instance, requests[i]);
        TRITONBACKEND_RequestRelease(requests[i], RELEASE_ALL);
    }
    return NULL;
}
