package pkcs11

/*
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// As in native.go, under names of their own.
typedef unsigned long loop_ulong;
typedef struct { loop_ulong type; void *value; loop_ulong len; } loop_attribute;
typedef struct { loop_ulong mechanism; void *parameter; loop_ulong len; } loop_mechanism;
typedef struct { unsigned char version[2]; void *fn[68]; } loop_functions;
typedef struct { loop_ulong kdf, shared_len; void *shared; loop_ulong public_len; void *public; } loop_ecdh1;

enum { LOOP_DESTROY_OBJECT = 22, LOOP_GET_ATTRIBUTE_VALUE = 24, LOOP_SIGN_INIT = 42, LOOP_SIGN = 43, LOOP_DERIVE_KEY = 62 };
enum { LOOP_ECDH1_DERIVE = 0x1050 };

// What one thread does: a signature or MAC of in, or a derivation with the point in.
typedef struct {
	loop_ulong session, key, mechanism, in_len, out_len;
	int64_t for_ns;
	uint32_t cap; // places in took, the last calls are kept
	int query;    // ask for the length before the signature
} loop_job;

// What it came to; times in ns, summed over all calls.
typedef struct {
	int64_t init, query, call, total;
	uint32_t calls;
	loop_ulong rv;
} loop_result;

static int64_t loop_now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static loop_ulong loop_sign(loop_functions *f, loop_job *j, void *in, loop_result *r) {
	loop_mechanism m = { j->mechanism, NULL, 0 };
	unsigned char out[1024];
	loop_ulong len = 0, rv;
	int64_t start = loop_now(), then;
	rv = ((loop_ulong (*)(loop_ulong, void *, loop_ulong))f->fn[LOOP_SIGN_INIT])(j->session, &m, j->key);
	r->init += (then = loop_now()) - start;
	if (rv != 0) return rv;
	loop_ulong (*sign)(loop_ulong, void *, loop_ulong, void *, loop_ulong *) =
		(loop_ulong (*)(loop_ulong, void *, loop_ulong, void *, loop_ulong *))f->fn[LOOP_SIGN];
	if (j->query) {
		if ((rv = sign(j->session, in, j->in_len, NULL, &len)) != 0) return rv;
		start = loop_now();
		r->query += start - then;
		then = start;
	}
	len = j->out_len;
	rv = sign(j->session, in, j->in_len, out, &len);
	r->call += loop_now() - then;
	return rv;
}

static loop_ulong loop_derive(loop_functions *f, loop_job *j, void *in) {
	loop_ecdh1 p = { 1, 0, NULL, j->in_len, in };
	loop_mechanism m = { LOOP_ECDH1_DERIVE, &p, sizeof p };
	loop_ulong class = 4, type = 0x10, len = j->out_len, secret = 0, rv;
	unsigned char yes = 1, no = 0, z[64];
	loop_attribute t[] = {
		{ 0, &class, sizeof class }, { 0x100, &type, sizeof type }, { 0x161, &len, sizeof len },
		{ 1, &no, 1 }, { 2, &no, 1 }, { 0x103, &no, 1 }, { 0x162, &yes, 1 },
	};
	loop_attribute value = { 0x11, z, j->out_len };
	rv = ((loop_ulong (*)(loop_ulong, void *, loop_ulong, loop_attribute *, loop_ulong, loop_ulong *))f->fn[LOOP_DERIVE_KEY])
		(j->session, &m, j->key, t, sizeof t / sizeof *t, &secret);
	if (rv != 0) return rv;
	rv = ((loop_ulong (*)(loop_ulong, loop_ulong, loop_attribute *, loop_ulong))f->fn[LOOP_GET_ATTRIBUTE_VALUE])(j->session, secret, &value, 1);
	memset(z, 0, sizeof z);
	loop_ulong gone = ((loop_ulong (*)(loop_ulong, loop_ulong))f->fn[LOOP_DESTROY_OBJECT])(j->session, secret);
	return rv != 0 ? rv : gone;
}

static void loop_run(loop_functions *f, loop_job *j, void *in, uint32_t *took, loop_result *r) {
	int64_t begin = loop_now(), last = begin, now;
	do {
		r->rv = j->mechanism == LOOP_ECDH1_DERIVE ? loop_derive(f, j, in) : loop_sign(f, j, in, r);
		now = loop_now();
		if (r->rv != 0) break;
		took[r->calls++ % j->cap] = now - last > UINT32_MAX ? UINT32_MAX : now - last;
		last = now;
	} while (now - begin < j->for_ns);
	r->total = now - begin;
}
*/
import "C"

import (
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"

	"countersign/hsm/sheet"
)

// maxKept is how many of a loop's times are kept, the last ones.
const maxKept = 1 << 16

// loops is the module's function list for calls in a row.
type loops struct{ list *C.loop_functions }

func loopsOf(n native) loops { return loops{(*C.loop_functions)(unsafe.Pointer(n.list))} }

// Loop is what one thread calls again and again, without Go between the calls.
type Loop struct {
	Session   pkcs11.SessionHandle
	Key       pkcs11.ObjectHandle
	Mechanism uint   // of C_SignInit, without a parameter; or CKM_ECDH1_DERIVE
	Input     []byte // what is signed, or the peer's point of 65 bytes
	Size      int    // of the answer in bytes, at most 64 of a derivation and 1024 of a signature
	Query     bool   // ask for the length before each signature
}

// Parts is where the time of signatures went, summed.
type Parts struct{ Init, Query, Call time.Duration }

// Run calls for a time, at least once, and cannot be interrupted: give it little
// time at once. After an error, which is a return code, it stops.
func (r *Raw) Run(l Loop, d time.Duration) (sheet.Sample, Parts, error) {
	job := C.loop_job{
		session: C.loop_ulong(l.Session), key: C.loop_ulong(l.Key), mechanism: C.loop_ulong(l.Mechanism),
		in_len: C.loop_ulong(len(l.Input)), out_len: C.loop_ulong(l.Size), for_ns: C.int64_t(d), cap: maxKept,
	}
	if l.Query {
		job.query = 1
	}
	took := make([]uint32, maxKept)
	var result C.loop_result
	C.loop_run(r.loops.list, &job, unsafe.Pointer(unsafe.SliceData(l.Input)), (*C.uint32_t)(unsafe.SliceData(took)), &result)
	sample := sheet.Sample{Calls: int(result.calls), Each: make([]time.Duration, min(int(result.calls), maxKept))}
	for i := range sample.Each {
		sample.Each[i] = time.Duration(took[i])
	}
	parts := Parts{time.Duration(result.init), time.Duration(result.query), time.Duration(result.call)}
	if result.rv != 0 {
		return sample, parts, pkcs11.Error(result.rv)
	}
	return sample, parts, nil
}
