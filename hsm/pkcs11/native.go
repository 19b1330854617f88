package pkcs11

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>

// The types of PKCS#11 v2.40 that these calls need, laid out as in its C headers on a
// platform where structures are not packed.
typedef unsigned long ulong_t;
typedef struct { ulong_t type; void *value; ulong_t len; } attribute;
typedef struct { ulong_t type; void *parameter; ulong_t len; } mechanism;
typedef struct { unsigned char version[2]; void *fn[68]; } functions;
typedef struct { void *data; ulong_t len; } bytes;

// Places in CK_FUNCTION_LIST.
enum {
	LOGIN = 18, GET_ATTRIBUTE_VALUE = 24, SIGN_INIT = 42, SIGN = 43, GENERATE_KEY = 58, WRAP_KEY = 60, UNWRAP_KEY = 61, DERIVE_KEY = 62
};

typedef ulong_t (*init_fn)(ulong_t, mechanism *, ulong_t);
typedef ulong_t (*data_fn)(ulong_t, void *, ulong_t, void *, ulong_t *);

// stage is 1 if the second function of a call answered.
typedef struct { ulong_t rv; int stage; } outcome;

static outcome both(functions *f, int init, ulong_t session, mechanism *m, ulong_t key, bytes in, void *out, ulong_t *out_len) {
	ulong_t rv = ((init_fn)f->fn[init])(session, m, key);
	if (rv != 0) return (outcome){ rv, 0 };
	return (outcome){ ((data_fn)f->fn[init + 1])(session, in.data, in.len, out, out_len), 1 };
}

static outcome sign(functions *f, ulong_t session, ulong_t key, ulong_t type, void *param, ulong_t param_len,
		void *in, ulong_t in_len, void *out, ulong_t *out_len) {
	mechanism m = { type, param, param_len };
	return both(f, SIGN_INIT, session, &m, key, (bytes){ in, in_len }, out, out_len);
}

static ulong_t login(functions *f, ulong_t session, void *pin, ulong_t len) {
	return ((ulong_t (*)(ulong_t, ulong_t, void *, ulong_t))f->fn[LOGIN])(session, 1, pin, len);
}

static ulong_t read_value(functions *f, ulong_t session, ulong_t object, void *out, ulong_t *out_len) {
	attribute value = { 0x11, out, *out_len };
	ulong_t rv = ((ulong_t (*)(ulong_t, ulong_t, attribute *, ulong_t))f->fn[GET_ATTRIBUTE_VALUE])(session, object, &value, 1);
	*out_len = value.len;
	return rv;
}

static void set(attribute *list, ulong_t i, ulong_t type, void *value, ulong_t len) {
	list[i] = (attribute){ type, value, len };
}

// The CKA_UNWRAP_TEMPLATE of a wrap key makes what it unwraps CKA_SENSITIVE. It is the
// first attribute of a list, where the caller left room: SoftHSM accepts nothing more
// after CKA_MODIFIABLE. It does not set CKA_EXTRACTABLE false, because then nothing could
// be moved to another wrap key.
static unsigned char yes = 1;
static attribute unwrapped[1] = { { 0x103, &yes, 1 } };

static ulong_t generate(functions *f, ulong_t session, ulong_t type, attribute *list, ulong_t n, ulong_t *key) {
	mechanism m = { type, NULL, 0 };
	set(list, 0, 0x40000212, unwrapped, sizeof unwrapped);
	return ((ulong_t (*)(ulong_t, mechanism *, attribute *, ulong_t, ulong_t *))f->fn[GENERATE_KEY])(session, &m, list, n, key);
}

static ulong_t wrap(functions *f, ulong_t session, ulong_t type, ulong_t with, ulong_t key, void *out, ulong_t *out_len) {
	mechanism m = { type, NULL, 0 };
	return ((ulong_t (*)(ulong_t, mechanism *, ulong_t, ulong_t, void *, ulong_t *))f->fn[WRAP_KEY])(session, &m, with, key, out, out_len);
}

static ulong_t unwrap(functions *f, ulong_t session, ulong_t type, ulong_t with, bytes wrapped, attribute *list, ulong_t n, ulong_t *key) {
	mechanism m = { type, NULL, 0 };
	set(list, 0, 0x40000212, unwrapped, sizeof unwrapped);
	return ((ulong_t (*)(ulong_t, mechanism *, ulong_t, void *, ulong_t, attribute *, ulong_t, ulong_t *))f->fn[UNWRAP_KEY])(
		session, &m, with, wrapped.data, wrapped.len, list, n, key);
}

// derive_data is C_DeriveKey with a CK_KEY_DERIVATION_STRING_DATA.
static ulong_t derive_data(functions *f, ulong_t session, ulong_t base, bytes data, attribute *list, ulong_t n, ulong_t *key) {
	mechanism m = { 0x1104, &data, sizeof data };
	return ((ulong_t (*)(ulong_t, mechanism *, ulong_t, attribute *, ulong_t, ulong_t *))f->fn[DERIVE_KEY])(session, &m, base, list, n, key);
}
// load_error says why a library is no PKCS#11 module, or returns NULL.
static const char *load_error(const char *path) {
	void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
	if (library == NULL) return dlerror();
	const char *problem = dlsym(library, "C_GetFunctionList") == NULL ? "it has no function C_GetFunctionList" : NULL;
	dlclose(library);
	return problem;
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// native makes the calls that miekg/pkcs11 cannot: two functions in one step and answers
// of a known size without the length query before them (one round trip to a network HSM
// instead of two), other parameters and attributes, and a PIN without copies. It shares
// the module that miekg/pkcs11 opened.
type native struct{ list *C.functions }

// nativeOf takes the function list out of miekg's context, where it is private. Asking the
// library for it again does not share sessions: p11-kit's proxy gives a new list and state
// to each caller.
func nativeOf(ctx *pkcs11.Ctx) native {
	inner := *(**struct{ handle, list unsafe.Pointer })(unsafe.Pointer(ctx)) // struct ctx of miekg/pkcs11 v1.1.2
	return native{(*C.functions)(inner.list)}
}

// loadError is the error of a library that miekg/pkcs11 did not load. It has the message of the dynamic linker, which
// names the missing file: perhaps another library.
func loadError(path string) error {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	why := "C_GetFunctionList failed"
	if text := C.load_error(name); text != nil {
		why = C.GoString(text)
	}
	return fmt.Errorf("loading module: %s: %w", why, hsm.ErrUnavailable)
}

// reserved passes args to C_Initialize as pReserved. The string stays in C memory: the
// standard does not limit how long a module may read it.
func reserved(args string) []pkcs11.InitializeOption {
	if args == "" {
		return nil
	}
	return []pkcs11.InitializeOption{pkcs11.InitializeWithReserved(unsafe.Pointer(C.CString(args)))}
}

// login is C_Login of CKU_USER.
func (n native) login(session pkcs11.SessionHandle, pin []byte) error {
	if rv := C.login(n.list, C.ulong_t(session), pointer(pin), C.ulong_t(len(pin))); rv != 0 {
		return pkcs11.Error(rv)
	}
	return nil
}

// operation is a mechanism with its parameter, and the length in bytes of its result.
type operation struct {
	mechanism uint
	parameter []byte
	size      int
}

// sign is C_SignInit and C_Sign.
func (n native) sign(s *session, key pkcs11.ObjectHandle, m operation, in []byte) ([]byte, error) {
	out, length := make([]byte, m.size), C.ulong_t(m.size)
	o := C.sign(n.list, C.ulong_t(s.handle), C.ulong_t(key), C.ulong_t(m.mechanism), pointer(m.parameter), C.ulong_t(len(m.parameter)),
		pointer(in), C.ulong_t(len(in)), pointer(out), &length)
	return finished(out, length, o, [2]string{"C_SignInit", "C_Sign"})
}

// value reads CKA_VALUE of a secret of size bytes.
func (n native) value(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, size int) ([]byte, error) {
	out, length := make([]byte, size), C.ulong_t(size)
	rv := C.read_value(n.list, C.ulong_t(session), C.ulong_t(object), pointer(out), &length)
	return checked(out, length, rv)
}

// generateWrapping is C_GenerateKey with an unwrap template, so that every key that the
// new one unwraps is sensitive.
func (n native) generateWrapping(session pkcs11.SessionHandle, mechanism uint, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	size := len(template) + 1
	list, free := attributes(template, 1)
	defer free()
	var key C.ulong_t
	rv := C.generate(n.list, C.ulong_t(session), C.ulong_t(mechanism), list, C.ulong_t(size), &key)
	return handle(key, rv)
}

// maxWrapped is larger than every wrapped key of the appliance.
const maxWrapped = 8 << 10

// wrap is C_WrapKey. It passes a large buffer, because NSS answers the length query with
// less than it then needs.
func (n native) wrap(s *session, mechanism uint, with, key pkcs11.ObjectHandle) ([]byte, error) {
	out, length := make([]byte, maxWrapped), C.ulong_t(maxWrapped)
	rv := C.wrap(n.list, C.ulong_t(s.handle), C.ulong_t(mechanism), C.ulong_t(with), C.ulong_t(key), pointer(out), &length)
	if rv != 0 {
		return nil, pkcs11.Error(rv)
	}
	return append([]byte(nil), out[:min(length, maxWrapped)]...), nil
}

// unwrapWrapping is C_UnwrapKey to a wrap key with the unwrap template of
// generateWrapping.
func (n native) unwrapWrapping(s *session, mechanism uint, with pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	size := len(template) + 1
	list, free := attributes(template, 1)
	defer free()
	in := C.bytes{C.CBytes(wrapped), C.ulong_t(len(wrapped))}
	defer C.free(in.data)
	var key C.ulong_t
	rv := C.unwrap(n.list, C.ulong_t(s.handle), C.ulong_t(mechanism), C.ulong_t(with), in, list, C.ulong_t(size), &key)
	return handle(key, rv)
}

// encryptData is C_DeriveKey with CKM_AES_ECB_ENCRYPT_DATA: the new key is the encryption
// of data, whole blocks, under base.
func (n native) encryptData(session pkcs11.SessionHandle, base pkcs11.ObjectHandle, data []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	list, free := attributes(template, 0)
	defer free()
	in := C.bytes{C.CBytes(data), C.ulong_t(len(data))}
	defer C.free(in.data)
	var key C.ulong_t
	rv := C.derive_data(n.list, C.ulong_t(session), C.ulong_t(base), in, list, C.ulong_t(len(template)), &key)
	return handle(key, rv)
}

// attributes copies a template into C memory, after room for more attributes.
func attributes(template []*pkcs11.Attribute, room int) (list *C.attribute, free func()) {
	list = (*C.attribute)(C.calloc(C.size_t(room+len(template)), C.sizeof_attribute))
	values := []unsafe.Pointer{unsafe.Pointer(list)}
	for i, a := range template {
		value := C.CBytes(a.Value)
		values = append(values, value)
		C.set(list, C.ulong_t(room+i), C.ulong_t(a.Type), value, C.ulong_t(len(a.Value)))
	}
	return list, func() {
		for _, v := range values {
			C.free(v)
		}
	}
}

// pointer is never null, because some modules refuse that even for no bytes.
func pointer(b []byte) unsafe.Pointer {
	if cap(b) == 0 {
		b = make([]byte, 1)
	}
	return unsafe.Pointer(unsafe.SliceData(b))
}

func handle(h, rv C.ulong_t) (pkcs11.ObjectHandle, error) {
	if rv != 0 {
		return 0, pkcs11.Error(rv)
	}
	return pkcs11.ObjectHandle(h), nil
}

func finished(out []byte, length C.ulong_t, o C.outcome, names [2]string) ([]byte, error) {
	out, err := checked(out, length, o.rv)
	return out, at(names[o.stage], err)
}

func checked(out []byte, length, rv C.ulong_t) ([]byte, error) {
	if rv != 0 {
		return nil, pkcs11.Error(rv)
	}
	if int(length) != len(out) {
		return nil, errShort
	}
	return out, nil
}
