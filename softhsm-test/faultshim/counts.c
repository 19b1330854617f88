/*
 * Counts. All processes that name the file of FAULTSHIM_COUNTS map it, so that their
 * counts survive them. In the machine's byte order:
 *
 *       0  8 bytes   "FSCOUNT1"
 *       8  56 bytes  next generation (8), rest 0
 *      64  68 × 64   one per function: name, NUL-padded (32), calls (8), errors (8),
 *                    injected faults (8), nanoseconds in calls (8)
 *    4416  16 × 1088 counts of rules for one version of the control file: its hash (8),
 *                    rest 0 (56), 64 × { calls that matched (8), faults injected (8) }
 *
 * Without it the same counts are in this process's memory.
 */
#include "faultshim.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GENERATIONS = 16 };

struct counter {
	char name[32];
	_Atomic int64_t calls, errors, faults, ns;
};

struct generation {
	uint64_t hash;
	char rest[56];
	struct tally tally[MAX_RULES];
};

struct counts {
	char magic[8];
	uint64_t next;
	char rest[48];
	struct counter function[FUNCTIONS];
	struct generation generation[GENERATIONS];
};
_Static_assert(sizeof(struct counts) == 64 + FUNCTIONS * 64 + GENERATIONS * (64 + 16 * MAX_RULES), "as drawn");

static struct counts own, *counts = &own;
static int counts_fd = -1;
static FILE *fault_log;
static atomic_long in_flight, most_in_flight;

static void name_all(struct counts *c) { /* every process writes the same */
	memcpy(c->magic, "FSCOUNT1", sizeof c->magic);
	for (int f = 0; f < FUNCTIONS; f++)
		strncpy(c->function[f].name, functions[f].name, sizeof c->function[f].name - 1);
}

void counts_open(void) {
	const char *path = getenv("FAULTSHIM_COUNTS"), *log = getenv("FAULTSHIM_LOG");
	if (log != NULL && (fault_log = fopen(log, "ae")) == NULL)
		give_up("cannot open", log);
	if (path != NULL) {
		counts_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (counts_fd < 0 || ftruncate(counts_fd, sizeof *counts) != 0)
			give_up("cannot open", path);
		counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, counts_fd, 0);
		if (counts == MAP_FAILED)
			give_up("cannot map", path);
	}
	name_all(counts);
}

/* shared_tallies are the counts of the rules of one version of the control file. Versions
 * have separate places: a process may still count by earlier rules. */
struct tally *shared_tallies(uint64_t hash) {
	if (counts_fd >= 0)
		flock(counts_fd, LOCK_EX);
	struct generation *found = NULL;
	for (int i = 0; i < GENERATIONS && counts_fd >= 0; i++)
		if (counts->generation[i].hash == hash)
			found = &counts->generation[i];
	if (found == NULL) {
		found = &counts->generation[counts->next++ % GENERATIONS];
		memset(found, 0, sizeof *found);
		found->hash = hash;
	}
	if (counts_fd >= 0)
		flock(counts_fd, LOCK_UN);
	return found->tally;
}

struct entered count_enter(int f) {
	long now = atomic_fetch_add(&in_flight, 1) + 1, most = atomic_load(&most_in_flight);
	while (now > most && !atomic_compare_exchange_weak(&most_in_flight, &most, now)) {
	}
	atomic_fetch_add(&counts->function[f].calls, 1); /* before it, which may not come back */
	return (struct entered){f, now_ns()};
}

void count_fault(int f, const struct rule *r) {
	if (r->action == LATENCY || r->action == JITTER)
		return;
	atomic_fetch_add(&counts->function[f].faults, 1);
	if (fault_log == NULL)
		return;
	fprintf(fault_log, "%.6f %d %s %s 0x%lx\n", (double)now_ns() / 1e9, getpid(), functions[f].name,
	        action_names[r->action], r->arg);
	fflush(fault_log);
}

static void write_stats(const char *path) {
	FILE *out = fopen(path, "we");
	if (out == NULL)
		return; /* its process is about to end, and says so elsewhere */
	fprintf(out, "max_inflight %ld\n", atomic_load(&most_in_flight));
	for (int f = 0; f < FUNCTIONS; f++) {
		const struct counter *c = &counts->function[f];
		if (c->calls > 0)
			fprintf(out, "%-24s calls %8ld errs %6ld avg_us %.1f\n", functions[f].name, (long)c->calls,
			        (long)c->errors, (double)c->ns / 1e3 / (double)c->calls);
	}
	fclose(out);
}

void count_leave(struct entered e, ul rv) {
	struct counter *c = &counts->function[e.f];
	if (rv != CKR_OK)
		atomic_fetch_add(&c->errors, 1);
	atomic_fetch_sub(&in_flight, 1);
	atomic_fetch_add(&c->ns, now_ns() - e.at);
	const char *path = e.f == F_FINALIZE ? getenv("FAULTSHIM_STATS") : NULL;
	if (path != NULL)
		write_stats(path);
}
