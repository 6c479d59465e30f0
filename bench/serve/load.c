/* A load generator that costs little: HTTP/1.1 over keep-alive connections, one thread, epoll.

   load REQUESTS LOG PORT CONNECTIONS SECONDS [RATE SEED]

   Without RATE: a closed loop, each connection sends its next request when it has its answer.
   With RATE: an open loop, requests fall due at random (exponential gaps) at RATE a second, whether
   or not earlier ones were answered; they wait for one of at most CONNECTIONS connections, and
   their latency counts from when they fell due.

   REQUESTS: u32 count, then count times (u32 length, the whole HTTP request); sent in turn.
   LOG:      one record per request that was begun, see struct record, then the body.
   Prints a JSON object: own CPU seconds, wall seconds, counts. bench/serve/load.py is the caller. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define GRACE_NS 20000000000ull /* how long answers are waited for after the last request */
#define MAX_EVENTS 256
#define STATUS_LOST (-1)     /* the connection broke before the answer was whole */
#define STATUS_UNANSWERED (-2)

struct request {
    const char *bytes;
    uint32_t size;
};

/* One line of the log; all times in ns since the start of the run. */
struct record {
    uint32_t request; /* index into REQUESTS */
    int32_t status;   /* of HTTP, or one of the negative ones above */
    uint64_t due_ns, sent_ns, done_ns;
    uint32_t body_size, reserved;
};

struct connection {
    int fd, is_busy;
    uint32_t request, num_sent;
    uint64_t due_ns, sent_ns;
    char *in;
    size_t num_in, capacity;
    size_t head_size; /* 0 until the head is whole */
    int status, is_chunked, closes;
    long body_size; /* -1: until the connection ends */
    int wants_write;
};

static struct request *requests;
static uint32_t num_requests, next_request;
static struct connection *connections;
static int num_connections, epoll_fd, timer_fd = -1, num_busy, num_opened, port;
static int *idle, num_idle;
static uint64_t *waiting; /* due times of an open loop's requests that have no connection yet */
static size_t first_waiting, num_waiting, waiting_capacity, most_waiting;
static uint64_t start_ns, end_ns, num_begun;
static double rate;
static FILE *log_file;

static void fail(const char *doing) {
    perror(doing);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec - start_ns;
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fread(&num_requests, 4, 1, file) != 1 || !num_requests) fail(path);
    requests = calloc(num_requests, sizeof *requests);
    for (uint32_t i = 0; i < num_requests; i++) {
        if (fread(&requests[i].size, 4, 1, file) != 1) fail(path);
        char *bytes = malloc(requests[i].size);
        if (fread(bytes, 1, requests[i].size, file) != requests[i].size) fail(path);
        requests[i].bytes = bytes;
    }
    fclose(file);
}

static void watch(struct connection *c, int op) {
    struct epoll_event event = {.events = EPOLLIN | (c->wants_write ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epoll_fd, op, c->fd, &event)) fail("epoll_ctl");
}

static void open_connection(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) fail("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        close(c->fd);
        c->fd = -1;
        return;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->wants_write = 0;
    watch(c, EPOLL_CTL_ADD);
    num_opened++;
}

static void write_record(struct connection *c, int status, const char *body, size_t size) {
    struct record r = {c->request, status, c->due_ns, c->sent_ns, now_ns(), (uint32_t)size, 0};
    fwrite(&r, sizeof r, 1, log_file);
    fwrite(body, 1, size, log_file);
}

static void send_rest(struct connection *c) {
    struct request *r = &requests[c->request];
    while (c->num_sent < r->size) {
        ssize_t n = send(c->fd, r->bytes + c->num_sent, r->size - c->num_sent, MSG_NOSIGNAL);
        if (n < 0) break; /* full: go on when writable; broken: reading will say so */
        c->num_sent += (uint32_t)n;
    }
    int wants_write = c->num_sent < r->size;
    if (wants_write != c->wants_write) {
        c->wants_write = wants_write;
        watch(c, EPOLL_CTL_MOD);
    }
}

static void begin(struct connection *c, uint64_t due_ns) {
    c->request = next_request;
    next_request = (next_request + 1) % num_requests;
    c->is_busy = 1;
    c->num_sent = 0;
    c->num_in = c->head_size = 0;
    c->due_ns = due_ns;
    c->sent_ns = now_ns();
    num_busy++;
    num_begun++;
    if (c->fd < 0) open_connection(c);
    if (c->fd < 0) { /* nobody listens */
        write_record(c, STATUS_LOST, "", 0);
        c->is_busy = 0;
        num_busy--;
        idle[num_idle++] = (int)(c - connections);
        return;
    }
    send_rest(c);
}

static void go_on(struct connection *c) {
    uint64_t now = now_ns();
    if (!rate) {
        if (now < end_ns) {
            begin(c, now);
            return;
        }
    } else if (num_waiting) {
        uint64_t due_ns = waiting[first_waiting % waiting_capacity];
        first_waiting++;
        num_waiting--;
        begin(c, due_ns);
        return;
    }
    idle[num_idle++] = (int)(c - connections);
}

static void finish(struct connection *c, int status, const char *body, size_t size, int is_over) {
    write_record(c, status, body, size);
    c->is_busy = 0;
    num_busy--;
    if (is_over) {
        close(c->fd);
        c->fd = -1;
    }
    go_on(c);
}

static void read_head(struct connection *c) {
    char *end = memmem(c->in, c->num_in, "\r\n\r\n", 4);
    if (!end) return;
    c->head_size = (size_t)(end - c->in) + 4;
    c->status = c->num_in > 12 ? atoi(c->in + 9) : 0;
    c->body_size = -1;
    c->is_chunked = c->closes = 0;
    *end = 0;
    for (char *line = strstr(c->in, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        char *name = line + 2;
        if (!strncasecmp(name, "content-length:", 15)) c->body_size = atol(name + 15);
        if (!strncasecmp(name, "transfer-encoding:", 18)) c->is_chunked = 1;
        if (!strncasecmp(name, "connection:", 11) && strcasestr(name, "close")) c->closes = 1;
    }
    *end = '\r';
    if (c->status == 204 || c->status == 304) c->body_size = 0;
}

/* Joins the chunks in place. Returns the size of the body, or -1 if the last chunk is not here. */
static long join_chunks(char *body, size_t size, int commit) {
    size_t at = 0, out = 0;
    for (;;) {
        char *line_end = memmem(body + at, size - at, "\r\n", 2);
        if (!line_end) return -1;
        size_t chunk = strtoul(body + at, NULL, 16);
        size_t data = (size_t)(line_end - body) + 2;
        if (data + chunk + 2 > size) return -1;
        if (!chunk) return (long)out;
        if (commit) memmove(body + out, body + data, chunk);
        out += chunk;
        at = data + chunk + 2;
    }
}

static void receive(struct connection *c) {
    for (;;) {
        if (c->capacity - c->num_in < 4096) {
            c->capacity = c->capacity ? c->capacity * 2 : 16384;
            c->in = realloc(c->in, c->capacity + 1);
        }
        ssize_t n = recv(c->fd, c->in + c->num_in, c->capacity - c->num_in, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
        if (n <= 0) { /* the other side has closed */
            if (!c->is_busy) {
                close(c->fd);
                c->fd = -1;
                return;
            }
            char *body = c->in + c->head_size;
            if (n == 0 && c->head_size && c->body_size < 0 && !c->is_chunked)
                finish(c, c->status, body, c->num_in - c->head_size, 1);
            else
                finish(c, STATUS_LOST, "", 0, 1);
            return;
        }
        c->num_in += (size_t)n;
        c->in[c->num_in] = 0;
        if ((size_t)n < c->capacity - (c->num_in - (size_t)n)) break; /* no more for now */
    }
    if (!c->is_busy || !c->num_in) return;
    if (!c->head_size) read_head(c);
    if (!c->head_size) return;
    char *body = c->in + c->head_size;
    size_t have = c->num_in - c->head_size;
    if (c->is_chunked) {
        long size = join_chunks(body, have, 0);
        if (size < 0) return;
        join_chunks(body, have, 1);
        finish(c, c->status, body, (size_t)size, c->closes);
    } else if (c->body_size >= 0 && have >= (size_t)c->body_size) {
        finish(c, c->status, body, (size_t)c->body_size, c->closes);
    }
}

static double exponential(void) { return -log(1.0 - drand48()) / rate; }

static void arm(uint64_t due_ns) {
    uint64_t at = start_ns + due_ns;
    struct itimerspec when = {.it_value = {(time_t)(at / 1000000000ull), (long)(at % 1000000000ull)}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL)) fail("timerfd_settime");
}

/* Starts what has fallen due; returns when the next one will, or 0 after the last. */
static uint64_t start_due(uint64_t next_due_ns) {
    while (next_due_ns && next_due_ns <= now_ns()) {
        if (num_idle) {
            begin(&connections[idle[--num_idle]], next_due_ns);
        } else {
            if (num_waiting == waiting_capacity) {
                fprintf(stderr, "more than %zu requests wait\n", waiting_capacity);
                exit(1);
            }
            waiting[(first_waiting + num_waiting++) % waiting_capacity] = next_due_ns;
            if (num_waiting > most_waiting) most_waiting = num_waiting;
        }
        next_due_ns += (uint64_t)(exponential() * 1e9);
        if (next_due_ns >= end_ns) return 0;
    }
    return next_due_ns;
}

static double cpu_s(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv) {
    if (argc != 6 && argc != 8) {
        fprintf(stderr, "usage: load REQUESTS LOG PORT CONNECTIONS SECONDS [RATE SEED]\n");
        return 2;
    }
    read_requests(argv[1]);
    log_file = fopen(argv[2], "wb");
    if (!log_file) fail(argv[2]);
    setvbuf(log_file, NULL, _IOFBF, 1 << 20);
    port = atoi(argv[3]);
    num_connections = atoi(argv[4]);
    connections = calloc((size_t)num_connections, sizeof *connections);
    idle = calloc((size_t)num_connections, sizeof *idle);
    epoll_fd = epoll_create1(0);
    for (int i = 0; i < num_connections; i++) connections[i].fd = -1;
    double began_cpu_s = cpu_s();
    uint64_t next_due_ns = 0;
    start_ns = now_ns();
    end_ns = (uint64_t)(atof(argv[5]) * 1e9);
    if (argc == 8) {
        rate = atof(argv[6]);
        srand48(atol(argv[7]));
        waiting_capacity = (size_t)(rate * atof(argv[5]) * 2) + 1000;
        waiting = calloc(waiting_capacity, sizeof *waiting);
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
        for (int i = num_connections; i-- > 0;) idle[num_idle++] = i;
        next_due_ns = (uint64_t)(exponential() * 1e9) + 1;
        arm(next_due_ns);
    } else {
        for (int i = 0; i < num_connections; i++) begin(&connections[i], now_ns());
    }
    struct epoll_event events[MAX_EVENTS];
    while (num_busy || num_waiting || next_due_ns || (!rate && now_ns() < end_ns)) {
        if (now_ns() > end_ns + GRACE_NS) break;
        int n = epoll_wait(epoll_fd, events, MAX_EVENTS, 100);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                uint64_t ticks;
                if (read(timer_fd, &ticks, 8) == 8) next_due_ns = start_due(next_due_ns);
                if (next_due_ns) arm(next_due_ns);
                continue;
            }
            if (c->fd >= 0 && (events[i].events & EPOLLOUT)) send_rest(c);
            if (c->fd >= 0 && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) receive(c);
        }
        if (!rate && !num_busy && now_ns() < end_ns) { /* all lost: try again, slowly */
            usleep(10000);
            while (num_idle && now_ns() < end_ns) {
                int i = idle[--num_idle];
                begin(&connections[i], now_ns());
                if (connections[i].fd < 0) break;
            }
        }
    }
    double wall_s = (double)now_ns() / 1e9, used_s = cpu_s() - began_cpu_s;
    int num_unanswered = num_busy;
    for (int i = 0; i < num_connections; i++)
        if (connections[i].is_busy) write_record(&connections[i], STATUS_UNANSWERED, "", 0);
    if (fclose(log_file)) fail(argv[2]);
    printf("{\"cpu_s\": %.6f, \"wall_s\": %.6f, \"num_begun\": %llu, \"num_unanswered\": %d, "
           "\"num_opened\": %d, \"num_never_sent\": %zu, \"most_waiting\": %zu}\n",
           used_s, wall_s, (unsigned long long)num_begun, num_unanswered, num_opened, num_waiting,
           most_waiting);
    return 0;
}
