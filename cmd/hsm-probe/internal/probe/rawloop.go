package probe

/*
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// The few types of PKCS#11 v2.40 that these calls need.
typedef unsigned long loop_ulong;
typedef struct { loop_ulong type; void *value; loop_ulong len; } loop_attribute;
typedef struct { loop_ulong mechanism; void *parameter; loop_ulong len; } loop_mechanism;
typedef struct { unsigned char version[2]; void *fn[68]; } loop_functions;
typedef struct { loop_ulong kdf, shared_len; void *shared; loop_ulong public_len; void *public; } loop_ecdh1;

enum { LOOP_DESTROY_OBJECT = 22, LOOP_GET_ATTRIBUTE_VALUE = 24, LOOP_SIGN_INIT = 42, LOOP_SIGN = 43, LOOP_GENERATE_KEY = 58, LOOP_DERIVE_KEY = 62 };
enum { LOOP_ECDH1_DERIVE = 0x1050 };

// The work of one thread: a signature or MAC of in, or a derivation with the point in.
typedef struct {
	loop_ulong session, key, mechanism, in_len, out_len;
	int64_t for_ns;
	uint32_t cap; // places in took, the last calls are kept
	int query;    // ask for the length before the signature
} loop_job;

// The result; times in ns, summed over all calls.
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

// generate_wrapping is C_GenerateKey of an AES key whose CKA_UNWRAP_TEMPLATE makes
// every key that it unwraps CKA_SENSITIVE. list[0] is left free for it.
static loop_ulong generate_wrapping(loop_functions *f, loop_ulong session, loop_attribute *list, loop_ulong n, loop_ulong *key) {
	unsigned char yes = 1;
	loop_attribute unwrapped[1] = { { 0x103, &yes, 1 } };
	loop_mechanism m = { 0x1080, NULL, 0 };
	list[0] = (loop_attribute){ 0x40000212, unwrapped, sizeof unwrapped };
	return ((loop_ulong (*)(loop_ulong, loop_mechanism *, loop_attribute *, loop_ulong, loop_ulong *))f->fn[LOOP_GENERATE_KEY])(session, &m, list, n, key);
}

// encrypt_data is C_DeriveKey with CKM_AES_ECB_ENCRYPT_DATA and a CK_KEY_DERIVATION_STRING_DATA.
static loop_ulong encrypt_data(loop_functions *f, loop_ulong session, loop_ulong base, void *data, loop_ulong len,
		loop_attribute *list, loop_ulong n, loop_ulong *key) {
	struct { void *data; loop_ulong len; } string = { data, len };
	loop_mechanism m = { 0x1104, &string, sizeof string };
	return ((loop_ulong (*)(loop_ulong, loop_mechanism *, loop_ulong, loop_attribute *, loop_ulong, loop_ulong *))f->fn[LOOP_DERIVE_KEY])
		(session, &m, base, list, n, key);
}
*/
import "C"

import (
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"

	"countersign/cmd/hsm-probe/internal/report"
	ours "countersign/hsm/pkcs11"
)

// maxKept is how many times of a loop are kept, the last ones.
const maxKept = 1 << 16

// loop is the call that one thread repeats, without Go between the calls.
type loop struct {
	session   pkcs11.SessionHandle
	key       pkcs11.ObjectHandle
	mechanism uint   // of C_SignInit, without a parameter; or CKM_ECDH1_DERIVE
	input     []byte // input of a signature, or the point of the peer, 65 bytes
	size      int    // of the answer in bytes, at most 64 of a derivation and 1024 of a signature
	query     bool   // ask for the length before each signature
}

// parts is the time of the parts of signatures, summed.
type parts struct{ init, query, call time.Duration }

// run calls for a time, at least once. It cannot be interrupted, so d should be short. It
// stops at the first error, which is a return code.
func run(m *ours.Module, l loop, d time.Duration) (report.Sample, parts, error) {
	job := C.loop_job{
		session: C.loop_ulong(l.session), key: C.loop_ulong(l.key), mechanism: C.loop_ulong(l.mechanism),
		in_len: C.loop_ulong(len(l.input)), out_len: C.loop_ulong(l.size), for_ns: C.int64_t(d), cap: maxKept,
	}
	if l.query {
		job.query = 1
	}
	took := make([]uint32, maxKept)
	var result C.loop_result
	C.loop_run((*C.loop_functions)(m.Functions()), &job, unsafe.Pointer(unsafe.SliceData(l.input)), (*C.uint32_t)(unsafe.SliceData(took)), &result)
	sample := report.Sample{Calls: int(result.calls), Each: make([]time.Duration, min(int(result.calls), maxKept))}
	for i := range sample.Each {
		sample.Each[i] = time.Duration(took[i])
	}
	sum := parts{time.Duration(result.init), time.Duration(result.query), time.Duration(result.call)}
	if result.rv != 0 {
		return sample, sum, pkcs11.Error(result.rv)
	}
	return sample, sum, nil
}

// list copies a template into C memory, behind room for more attributes.
func list(template []*pkcs11.Attribute, room int) (all *C.loop_attribute, free func()) {
	all = (*C.loop_attribute)(C.calloc(C.size_t(room+len(template)), C.sizeof_loop_attribute))
	parts := []unsafe.Pointer{unsafe.Pointer(all)}
	for i, a := range template {
		value := C.CBytes(a.Value)
		parts = append(parts, value)
		unsafe.Slice(all, room+len(template))[room+i] = C.loop_attribute{C.loop_ulong(a.Type), value, C.loop_ulong(len(a.Value))}
	}
	return all, func() {
		for _, p := range parts {
			C.free(p)
		}
	}
}

func made(key, rv C.loop_ulong) (pkcs11.ObjectHandle, error) {
	if rv != 0 {
		return 0, pkcs11.Error(rv)
	}
	return pkcs11.ObjectHandle(key), nil
}

// generateWrapping makes an AES key that keeps what it unwraps sensitive.
func (p *prober) generateWrapping(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	attributes, free := list(template, 1)
	defer free()
	var key C.loop_ulong
	rv := C.generate_wrapping((*C.loop_functions)(p.Functions()), C.loop_ulong(p.main), attributes, C.loop_ulong(len(template)+1), &key)
	return made(key, rv)
}

// encryptKey makes a key that is the encryption of data, whole blocks of 16 bytes, under base.
func (p *prober) encryptKey(base pkcs11.ObjectHandle, data []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	attributes, free := list(template, 0)
	defer free()
	in := C.CBytes(data)
	defer C.free(in)
	var key C.loop_ulong
	rv := C.encrypt_data((*C.loop_functions)(p.Functions()), C.loop_ulong(p.main), C.loop_ulong(base), in, C.loop_ulong(len(data)),
		attributes, C.loop_ulong(len(template)), &key)
	return made(key, rv)
}
