// A stand-in for libnccl, for tests on machines without GPUs. It is NOT NCCL: it has the few calls
// that the program makes, over host memory, between processes of one machine, through a file that
// all of them map. It checks what it is asked, counts it, and fails on demand; see README.md.
//
// It is as non-blocking as NCCL with `blocking = 0`: a call that needs other ranks comes back with
// ncclInProgress, and every ncclCommGetAsyncError does what can be done meanwhile.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { OK = 0, SYSTEM = 2, INTERNAL = 3, BAD_ARGUMENT = 4, BAD_USE = 5, REMOTE = 6, BUSY = 7 };
enum { FLOAT32 = 7, SUM = 0, UNDEFINED = -2147483647 - 1 };
enum { RANKS = 8, CHUNK = 16384, MOST = 4096 };

typedef struct { char internal[128]; } ncclUniqueId;

// One message's next piece, from one rank to another. `full` is set by the sender and cleared by
// the receiver.
typedef struct {
  _Atomic int full;
  uint64_t whole, bytes;
  char data[CHUNK];
} Box;

typedef struct {
  _Atomic int arrived, left;
  _Atomic int sizes[RANKS]; // rank + 1's world size, 0: not there
  Box boxes[RANKS][RANKS];
} Shared;

// A message under way: to (or from) `peer`, `done` of `bytes`.
typedef struct {
  int sends, peer;
  char *data;
  uint64_t bytes, done;
} Message;

typedef struct {
  int rank, size, state, aborted, calls;
  char path[512], last[256];
  Shared *shared;
  // What is under way, in the order it was posted.
  int count;
  Message list[MOST];
  // An all-reduce under way: where to, and copies of all ranks' numbers.
  float *sum, *copies;
  uint64_t length;
  // Counts of calls and bytes, for the report.
  long inits, groups, sends, receives, sums;
  uint64_t sent_bytes, sum_bytes;
  // On demand: the n-th group or sum ends so.
  int fault_call, fault_code, fault_hangs;
} Comm;

// The group of this thread.
static _Thread_local int depth;
static _Thread_local Comm *in_group;

static int complain(Comm *c, int code, const char *format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(c->last, sizeof c->last, format, list);
  va_end(list);
  return c->state = code;
}

int ncclGetVersion(int *version) { *version = 99901; return OK; }

const char *ncclGetErrorString(int code) {
  switch (code) {
    case OK: return "no error";
    case SYSTEM: return "stand-in: system error";
    case BAD_ARGUMENT: return "stand-in: invalid argument";
    case BAD_USE: return "stand-in: invalid usage";
    case REMOTE: return "stand-in: remote process exited or there was a network error";
    case BUSY: return "stand-in: in progress";
    default: return "stand-in: internal error";
  }
}

const char *ncclGetLastError(Comm *c) { return c ? c->last : ""; }

int ncclGetUniqueId(ncclUniqueId *id) {
  const char *dir = getenv("TRAINER_STANDIN_DIR");
  if (!dir) return SYSTEM;
  memset(id, 0, sizeof *id);
  snprintf(id->internal, sizeof id->internal, "%s/nccl-%d", dir, (int)getpid());
  int file = open(id->internal, O_CREAT | O_EXCL | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(Shared))) return SYSTEM;
  close(file);
  return OK;
}

// TRAINER_STANDIN_FAULT=RANK:CALL:CODE, CODE a result or `hang`.
static void read_fault(Comm *c) {
  const char *text = getenv("TRAINER_STANDIN_FAULT");
  int rank, call, end = 0;
  c->fault_call = -1;
  if (!text || sscanf(text, "%d:%d:%n", &rank, &call, &end) < 2 || rank != c->rank) return;
  c->fault_call = call;
  c->fault_hangs = strcmp(text + end, "hang") == 0;
  c->fault_code = atoi(text + end);
}

int ncclCommInitRankConfig(Comm **result, int size, ncclUniqueId id, int rank, void *config) {
  struct { size_t size; unsigned magic, version; int blocking, cga; } head;
  memcpy(&head, config, sizeof head);
  if (head.size != sizeof head || head.magic != 0xcafebeef || head.version != 21400) return BAD_ARGUMENT;
  if (head.blocking != 0 || head.cga != UNDEFINED) return BAD_ARGUMENT;
  if (size < 1 || size > RANKS || rank < 0 || rank >= size) return BAD_ARGUMENT;
  Comm *c = calloc(1, sizeof *c);
  *result = c;
  c->rank = rank;
  c->size = size;
  snprintf(c->path, sizeof c->path, "%s", id.internal);
  int file = open(c->path, O_RDWR);
  if (file < 0) return complain(c, SYSTEM, "no such id: %s", c->path);
  c->shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (c->shared == MAP_FAILED) return complain(c, SYSTEM, "mmap: %s", strerror(errno));
  int none = 0;
  if (!atomic_compare_exchange_strong(&c->shared->sizes[rank], &none, size))
    return complain(c, BAD_ARGUMENT, "rank %d came twice", rank);
  atomic_fetch_add(&c->shared->arrived, 1);
  c->inits = 1;
  read_fault(c);
  return c->state = BUSY;
}

// One step of the first unfinished message of each (direction, peer); whether something is left.
static int move_messages(Comm *c) {
  int left = 0, seen[2][RANKS] = {{0}};
  for (int i = 0; i < c->count; i++) {
    Message *m = &c->list[i];
    if (m->done == m->bytes) continue;
    left = 1;
    if (seen[m->sends][m->peer]++) continue;
    Box *box = m->sends ? &c->shared->boxes[c->rank][m->peer] : &c->shared->boxes[m->peer][c->rank];
    if (atomic_load(&box->full) == m->sends) continue;
    if (m->sends) {
      box->whole = m->bytes;
      box->bytes = m->bytes - m->done < CHUNK ? m->bytes - m->done : CHUNK;
      memcpy(box->data, m->data + m->done, box->bytes);
      m->done += box->bytes;
      atomic_store(&box->full, 1);
    } else {
      if (box->whole != m->bytes) {
        complain(c, BAD_ARGUMENT, "rank %d sends %lu bytes, rank %d expects %lu", m->peer,
                 (unsigned long)box->whole, c->rank, (unsigned long)m->bytes);
        return 1;
      }
      memcpy(m->data + m->done, box->data, box->bytes);
      m->done += box->bytes;
      atomic_store(&box->full, 0);
    }
  }
  return left;
}

static void finish_sum(Comm *c) {
  for (uint64_t i = 0; c->sum && i < c->length; i++) {
    float sum = c->copies[i];
    for (int rank = 1; rank < c->size; rank++) sum += c->copies[rank * c->length + i];
    c->sum[i] = sum;
  }
  free(c->copies);
  c->copies = c->sum = NULL;
}

int ncclCommGetAsyncError(Comm *c, int *state) {
  if (!c || c->aborted) return BAD_ARGUMENT;
  if (c->state == BUSY && atomic_load(&c->shared->arrived) >= c->size) {
    for (int rank = 0; rank < c->size; rank++) {
      if (atomic_load(&c->shared->sizes[rank]) != c->size) {
        complain(c, BAD_ARGUMENT, "rank %d is of another world", rank);
      }
    }
    int faulty = c->fault_call >= 0 && c->calls == c->fault_call;
    if (faulty && !c->fault_hangs) complain(c, c->fault_code, "a fault on purpose");
    if (c->state == BUSY && !faulty && !move_messages(c)) {
      finish_sum(c);
      c->count = 0;
      c->state = OK;
    }
  }
  *state = c->state;
  return OK;
}

int ncclGroupStart(void) { depth++; return OK; }

int ncclGroupEnd(void) {
  if (depth == 0) return BAD_USE;
  if (--depth > 0 || !in_group) return OK;
  Comm *c = in_group;
  in_group = NULL;
  if (c->state != OK) return c->state;
  c->groups++;
  c->calls++;
  return c->state = BUSY;
}

static int post(Comm *c, int sends, void *data, size_t count, int type, int peer) {
  if (!c || c->aborted || !data || count == 0 || type != FLOAT32) return BAD_ARGUMENT;
  if (peer < 0 || peer >= c->size || peer == c->rank) return BAD_ARGUMENT;
  if (depth == 0 || c->state != OK) return BAD_USE; // always within a group, never while another is under way
  if (c->count == MOST) return INTERNAL;
  c->list[c->count++] = (Message){sends, peer, data, 4 * count, 0};
  in_group = c;
  return OK;
}

int ncclSend(const void *data, size_t count, int type, int peer, Comm *c, void *stream) {
  if (stream) return BAD_ARGUMENT;
  int code = post(c, 1, (void *)data, count, type, peer);
  if (code == OK) { c->sends++; c->sent_bytes += 4 * count; }
  return code;
}

int ncclRecv(void *data, size_t count, int type, int peer, Comm *c, void *stream) {
  if (stream) return BAD_ARGUMENT;
  int code = post(c, 0, data, count, type, peer);
  if (code == OK) c->receives++;
  return code;
}

// Every rank sends its numbers to all and adds all up in order of rank.
int ncclAllReduce(const void *from, void *into, size_t count, int type, int how, Comm *c, void *stream) {
  if (!c || c->aborted || stream || !from || from != into || count == 0) return BAD_ARGUMENT;
  if (type != FLOAT32 || how != SUM) return BAD_ARGUMENT;
  if (depth != 0 || c->state != OK) return BAD_USE;
  c->length = count;
  c->sum = into;
  c->copies = malloc(sizeof(float) * count * c->size);
  memcpy(c->copies + c->rank * count, from, sizeof(float) * count);
  for (int rank = 0; rank < c->size; rank++) {
    if (rank == c->rank) continue;
    c->list[c->count++] = (Message){1, rank, (char *)(c->copies + c->rank * count), 4 * count, 0};
    c->list[c->count++] = (Message){0, rank, (char *)(c->copies + rank * count), 4 * count, 0};
  }
  c->sums++;
  c->sum_bytes += 4 * count;
  c->calls++;
  return c->state = BUSY;
}

// Tells what was asked of it, in one line of JSON; `how` is how it ended.
static void report(Comm *c, const char *how) {
  const char *dir = getenv("TRAINER_STANDIN_DIR");
  char path[512];
  snprintf(path, sizeof path, "%s/%s-%d", dir ? dir : ".", how, c->rank);
  FILE *file = fopen(path, "w");
  if (!file) return;
  fprintf(file,
          "{\"rank\": %d, \"size\": %d, \"inits\": %ld, \"groups\": %ld, \"sends\": %ld, \"receives\": %ld, "
          "\"sums\": %ld, \"sent_bytes\": %lu, \"sum_bytes\": %lu}\n",
          c->rank, c->size, c->inits, c->groups, c->sends, c->receives, c->sums,
          (unsigned long)c->sent_bytes, (unsigned long)c->sum_bytes);
  fclose(file);
}

int ncclCommFinalize(Comm *c) {
  if (!c || c->aborted || depth != 0 || c->state != OK) return BAD_USE;
  return OK;
}

int ncclCommDestroy(Comm *c) {
  if (!c || c->aborted || c->state != OK) return BAD_USE;
  report(c, "destroyed");
  if (atomic_fetch_add(&c->shared->left, 1) == c->size - 1) unlink(c->path);
  munmap(c->shared, sizeof(Shared));
  free(c);
  return OK;
}

// The memory stays: the aborting thread may not be the one that asks.
int ncclCommAbort(Comm *c) {
  if (!c || c->aborted) return BAD_ARGUMENT;
  c->aborted = 1;
  report(c, "aborted");
  unlink(c->path);
  return OK;
}
