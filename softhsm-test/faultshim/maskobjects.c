/*
 * A module that reads its token once, at the login of a process: it finds what was there then and
 * what the process made itself.
 */
#include "mask.h"

#include <pthread.h>

static pthread_mutex_t looking = PTHREAD_MUTEX_INITIALIZER;
static ul known[MAX_OBJECTS];
static int count; /* both guarded by looking */

static int place(ul object) {
	for (int i = 0; i < count; i++)
		if (known[i] == object)
			return i;
	return -1;
}

static bool has(ul object) { return place(object) >= 0; }

static void add(ul object) {
	if (count == MAX_OBJECTS)
		give_up("mask", "too many objects");
	if (!has(object))
		known[count++] = object;
}

/* objects_seen notes all objects, after a login. */
void objects_seen(ul session) {
	ul object, found = 1, init[MAX_ARGS] = {session, 0, 0}, find[MAX_ARGS] = {session, (ul)&object, 1, (ul)&found};
	pthread_mutex_lock(&looking);
	if (real_call(F_FIND_INIT, init) == CKR_OK) {
		while (real_call(F_FIND, find) == CKR_OK && found == 1)
			add(object);
		real_call(F_FIND_FINAL, init);
	}
	pthread_mutex_unlock(&looking);
}

static void forget(ul object) {
	int i = place(object);
	if (i >= 0)
		known[i] = known[--count];
}

/* object_made notes what a call of this process made or destroyed. */
void object_made(int f, const ul *args) {
	static const struct { int f, at; } made[] = {
		{F_CREATE_OBJECT, 3}, {F_COPY_OBJECT, 4}, {F_GENERATE_KEY, 4}, {F_GENERATE_KEY_PAIR, 6}, {F_GENERATE_KEY_PAIR, 7},
		{F_UNWRAP_KEY, 7}, {F_DERIVE_KEY, 5},
	};
	pthread_mutex_lock(&looking);
	if (f == F_DESTROY_OBJECT)
		forget(args[1]);
	for (size_t i = 0; i < sizeof made / sizeof *made; i++)
		if (made[i].f == f)
			add(*(ul *)args[made[i].at]);
	pthread_mutex_unlock(&looking);
}

/* objects_found is C_FindObjects without the objects that the process does not know. */
ul objects_found(const ul *args) {
	ul *list = (ul *)args[1], *found = (ul *)args[3], kept = 0, rv;
	do {
		if ((rv = real_call(F_FIND, args)) != CKR_OK)
			return rv;
		pthread_mutex_lock(&looking);
		for (ul i = 0; i < *found; i++)
			if (has(list[i]))
				list[kept++] = list[i];
		pthread_mutex_unlock(&looking);
	} while (kept == 0 && *found > 0);
	*found = kept;
	return CKR_OK;
}
