#include "mask.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* doing is one call with the rules that apply. */
struct doing {
	int f;
	ul args[MAX_ARGS];
	bool skip; /* do not call the module */
	bool keep; /* leave its operation active */
	ul rv;
	struct rule *after[MAX_RULES]; /* to be done with the result */
	int afters;
	unsigned char *copy; /* of altered input, to be freed */
};

static unsigned char *output(const struct doing *d) {
	int n = functions[d->f].out;
	return n > 0 ? (unsigned char *)d->args[n - 1] : NULL;
}

static bool has_verdict(int f) { return f == F_VERIFY || f == F_VERIFY_FINAL; }

/* room returns the size of the output buffer, -1 if the call has none. */
static int64_t room(const struct doing *d) {
	if (output(d) == NULL)
		return -1;
	return d->f == F_GENERATE_RANDOM ? (int64_t)d->args[2] : (int64_t)*(ul *)d->args[functions[d->f].outlen - 1];
}

/* spoilable: the call has output, and does not only ask for its length. */
static bool spoilable(const struct doing *d) { return has_verdict(d->f) || output(d) != NULL; }

static bool spoils(enum action a) {
	return a == GARBAGE || a == ZEROS || a == BITFLIP || a == SHORT || a == WRONGKEY;
}

/* crash ends the process, as a bad module does. */
static void crash(const struct rule *r) {
	volatile int *volatile nowhere = NULL;
	if (r->action == SEGV)
		*nowhere = 1;
	if (r->action == ABORT)
		abort();
	_exit((int)r->arg);
}

static void close_all(void) {
	ul args[MAX_ARGS] = {last_slot()};
	real_call(F_CLOSE_ALL, args);
	sessions_closed();
}

/* sign_else makes the module sign other input. */
static void sign_else(struct doing *d) {
	static unsigned char more = 1;
	if (d->f == F_SIGN_FINAL) {
		ul args[MAX_ARGS] = {d->args[0], (ul)&more, 1};
		real_call(F_SIGN_UPDATE, args);
		return;
	}
	if (d->f != F_SIGN || d->args[2] == 0 || d->copy != NULL)
		return;
	if ((d->copy = malloc(d->args[2])) == NULL)
		give_up("no memory", functions[d->f].name);
	memcpy(d->copy, (const void *)d->args[1], d->args[2]);
	d->copy[0] ^= 1;
	d->args[1] = (ul)d->copy;
}

static void before(struct doing *d, struct rule *r) {
	switch (r->action) {
	case LATENCY: nap((int64_t)r->arg * 1000); break;
	case JITTER: nap((int64_t)(random_unit() * (double)r->arg * 1000)); break;
	case SLEEP: nap((int64_t)r->arg * 1000000); break;
	case RV:
		d->rv = r->arg;
		d->skip = true;
		d->keep = r->keep;
		break;
	case SEGV:
	case ABORT:
	case EXIT: crash(r); break;
	case CLOSEALL: close_all(); break;
	case LOGOUT: real_call(F_LOGOUT, d->args); break;
	case WRONGKEY: sign_else(d); break;
	default: d->after[d->afters++] = r;
	}
}

/* end_operation ends the operation that the call would have ended, and drops its output. */
static void end_operation(const struct doing *d) {
	const struct function *fn = &functions[d->f];
	if (!(fn->classes & CRYPTO) || d->f == F_DERIVE_KEY)
		return;
	ul args[MAX_ARGS], len = 65536 + (fn->args == 5 ? d->args[2] : 0);
	memcpy(args, d->args, sizeof args);
	void *scratch = NULL;
	if (fn->out > 0) {
		if ((scratch = malloc(len)) == NULL)
			give_up("no memory", fn->name);
		args[fn->out - 1] = (ul)scratch;
		args[fn->outlen - 1] = (ul)&len;
	}
	real_call(d->f, args);
	free(scratch);
}

static void spoil(struct doing *d, enum action action) {
	if (has_verdict(d->f)) {
		d->rv = d->rv == CKR_OK ? CKR_SIGNATURE_INVALID : CKR_OK;
		return;
	}
	unsigned char *out = output(d);
	if (d->rv != CKR_OK || out == NULL)
		return;
	ul asked = d->args[2], *len = d->f == F_GENERATE_RANDOM ? &asked : (ul *)d->args[functions[d->f].outlen - 1];
	if (action == GARBAGE)
		for (ul i = 0; i < *len; i++)
			out[i] = (unsigned char)(random_unit() * 256);
	else if (action == ZEROS)
		memset(out, 0, *len);
	else if (action == BITFLIP && *len > 0)
		out[(ul)(random_unit() * (double)*len)] ^= (unsigned char)(1 << (int)(random_unit() * 8));
	else if (action == SHORT)
		*len /= 2;
}

/* lose_reply: the module did the call, and the program gets an error. */
static void lose_reply(struct doing *d, const struct rule *r) {
	bool active = d->rv == CKR_BUFFER_TOO_SMALL || (d->rv == CKR_OK && functions[d->f].out > 0 && output(d) == NULL);
	d->rv = r->arg;
	if (active && d->rv != CKR_OK && d->rv != CKR_BUFFER_TOO_SMALL && !r->keep)
		end_operation(d);
}

/* meant: the rule applies to this call. */
static bool meant(const struct rule *r, const struct doing *d) {
	return r->match[d->f] && (r->size < 0 || r->size == room(d)) && (!spoils(r->action) || spoilable(d));
}

static void apply_before(struct rules *t, struct doing *d) {
	for (int i = 0; i < t->count; i++) {
		struct rule *r = &t->rule[i];
		if (!meant(r, d) || !rule_fires(r))
			continue;
		count_fault(d->f, r);
		before(d, r);
	}
}

static void apply_after(struct doing *d) {
	for (int i = 0; i < d->afters; i++)
		if (d->after[i]->action == RVAFTER)
			lose_reply(d, d->after[i]);
		else
			spoil(d, d->after[i]->action);
}

static void call_module(const struct rules *t, struct doing *d) {
	if (!d->skip) {
		d->rv = masked_call(d->f, d->args);
		session_done(t, d->f, d->args, d->rv);
	} else if (d->rv != CKR_OK && d->rv != CKR_BUFFER_TOO_SMALL && !d->keep)
		end_operation(d);
	pin_done(t, d->f, d->args, d->rv);
}

/* inside is the call inside the device. */
static ul inside(struct rules *t, struct doing *d) {
	apply_before(t, d);
	call_module(t, d);
	apply_after(d);
	free(d->copy);
	return d->rv;
}

static ul admitted(struct rules *t, struct doing *d) {
	if (session_refused(t, d->f, d->args))
		return CKR_SESSION_COUNT;
	if (pin_locked(t, d->f, d->args))
		return CKR_PIN_LOCKED;
	bool place = t->parallel > 0 && (functions[d->f].classes & CRYPTO);
	while (place && sem_wait(&t->device) != 0) {
	}
	ul rv = inside(t, d);
	if (place)
		sem_post(&t->device);
	return rv;
}

ul dispatch(int f, const ul *args) {
	struct rules *t = rules_now();
	struct doing d = {.f = f};
	memcpy(d.args, args, (size_t)functions[f].args * sizeof *args);
	struct entered e = count_enter(f);
	ul rv = admitted(t, &d);
	count_leave(e, rv);
	return rv;
}
