#include "faultshim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

int64_t now_ns(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* nap sleeps with microsecond precision: the usual slack of 50 us is a third of a fast HSM's time. */
void nap(int64_t ns) {
	static _Thread_local bool exact;
	if (!exact) {
		prctl(PR_SET_TIMERSLACK, 1000UL);
		exact = true;
	}
	struct timespec left = {ns / 1000000000, ns % 1000000000};
	while (nanosleep(&left, &left) != 0 && errno == EINTR) {
	}
}

double random_unit(void) {
	static _Thread_local unsigned seed;
	if (seed == 0)
		seed = (unsigned)now_ns() ^ (unsigned)(ul)&seed ^ (unsigned)getpid();
	return rand_r(&seed) / ((double)RAND_MAX + 1);
}

void give_up(const char *what, const char *about) {
	fprintf(stderr, "faultshim: %s: %s\n", what, about);
	_exit(2);
}
