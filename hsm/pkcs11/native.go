package pkcs11

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>

// The few words of PKCS#11 v2.40 these calls need, in the layout of its C
// headers on a platform where structures are not packed.
typedef unsigned long ulong_t;
typedef struct { ulong_t type; void *value; ulong_t len; } attribute;
typedef struct { ulong_t mechanism; void *parameter; ulong_t len; } mechanism;
typedef struct { unsigned char version[2]; void *fn[68]; } functions;

// Places in CK_FUNCTION_LIST.
enum { GET_ATTRIBUTE_VALUE = 24, SIGN = 43, GENERATE_KEY = 58, DERIVE_KEY = 62 };

static functions *load(const char *module) {
	void *handle = dlopen(module, RTLD_LAZY);
	if (handle == NULL) return NULL;
	ulong_t (*get)(functions **) = dlsym(handle, "C_GetFunctionList");
	functions *list = NULL;
	if (get == NULL || get(&list) != 0) return NULL;
	return list;
}

static ulong_t sign(functions *f, ulong_t session, void *in, ulong_t in_len, void *out, ulong_t *out_len) {
	return ((ulong_t (*)(ulong_t, void *, ulong_t, void *, ulong_t *))f->fn[SIGN])(session, in, in_len, out, out_len);
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

// generate adds CKA_UNWRAP_TEMPLATE {CKA_SENSITIVE true, CKA_EXTRACTABLE false}
// in the last place of list, which the caller left free.
static ulong_t generate(functions *f, ulong_t session, ulong_t type, attribute *list, ulong_t n, ulong_t *key) {
	unsigned char yes = 1, no = 0;
	attribute unwrapped[2] = { { 0x103, &yes, 1 }, { 0x162, &no, 1 } };
	mechanism m = { type, NULL, 0 };
	set(list, n - 1, 0x40000212, unwrapped, sizeof unwrapped);
	return ((ulong_t (*)(ulong_t, mechanism *, attribute *, ulong_t, ulong_t *))f->fn[GENERATE_KEY])(session, &m, list, n, key);
}

// derive_data is C_DeriveKey with a CK_KEY_DERIVATION_STRING_DATA.
static ulong_t derive_data(functions *f, ulong_t session, ulong_t base, void *data, ulong_t len, attribute *list, ulong_t n, ulong_t *key) {
	struct { void *data; ulong_t len; } text = { data, len };
	mechanism m = { 0x1104, &text, sizeof text };
	return ((ulong_t (*)(ulong_t, mechanism *, ulong_t, attribute *, ulong_t, ulong_t *))f->fn[DERIVE_KEY])(session, &m, base, list, n, key);
}
*/
import "C"

import (
	"unsafe"

	"github.com/miekg/pkcs11"
)

// native makes the calls miekg/pkcs11 cannot: answers of a known size without
// the length query before them (one round trip to a network HSM instead of
// two), and attributes that are arrays. It shares the module miekg opened.
type native struct{ list *C.functions }

func loadNative(module string) (native, bool) {
	path := C.CString(module)
	defer C.free(unsafe.Pointer(path))
	n := native{C.load(path)}
	return n, n.list != nil
}

// sign is C_Sign; size is the length of the signature or MAC in bytes.
func (n native) sign(session pkcs11.SessionHandle, in []byte, size int) ([]byte, error) {
	out, length := make([]byte, size), C.ulong_t(size)
	if len(in) == 0 {
		in = []byte{0}[:0:1] // some modules refuse a null pointer
	}
	rv := C.sign(n.list, C.ulong_t(session), unsafe.Pointer(unsafe.SliceData(in)), C.ulong_t(len(in)),
		unsafe.Pointer(unsafe.SliceData(out)), &length)
	return checked(out, length, rv)
}

// value reads CKA_VALUE of a secret of size bytes.
func (n native) value(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, size int) ([]byte, error) {
	out, length := make([]byte, size), C.ulong_t(size)
	rv := C.read_value(n.list, C.ulong_t(session), C.ulong_t(object), unsafe.Pointer(unsafe.SliceData(out)), &length)
	return checked(out, length, rv)
}

// generateWrapping is C_GenerateKey with an unwrap template that keeps every
// key this one restores sensitive and not extractable.
func (n native) generateWrapping(session pkcs11.SessionHandle, mechanism uint, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	size := len(template) + 1
	list, free := attributes(template, size)
	defer free()
	var key C.ulong_t
	if rv := C.generate(n.list, C.ulong_t(session), C.ulong_t(mechanism), list, C.ulong_t(size), &key); rv != 0 {
		return 0, pkcs11.Error(rv)
	}
	return pkcs11.ObjectHandle(key), nil
}

// encryptData is C_DeriveKey with CKM_AES_ECB_ENCRYPT_DATA: the new key is the
// encryption of data, whole blocks, under base.
func (n native) encryptData(session pkcs11.SessionHandle, base pkcs11.ObjectHandle, data []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	list, free := attributes(template, len(template))
	defer free()
	in := C.CBytes(data)
	defer C.free(in)
	var key C.ulong_t
	rv := C.derive_data(n.list, C.ulong_t(session), C.ulong_t(base), in, C.ulong_t(len(data)), list, C.ulong_t(len(template)), &key)
	if rv != 0 {
		return 0, pkcs11.Error(rv)
	}
	return pkcs11.ObjectHandle(key), nil
}

// attributes copies a template into C memory, with room for size of them.
func attributes(template []*pkcs11.Attribute, size int) (list *C.attribute, free func()) {
	list = (*C.attribute)(C.calloc(C.size_t(size), C.sizeof_attribute))
	values := []unsafe.Pointer{unsafe.Pointer(list)}
	for i, a := range template {
		value := C.CBytes(a.Value)
		values = append(values, value)
		C.set(list, C.ulong_t(i), C.ulong_t(a.Type), value, C.ulong_t(len(a.Value)))
	}
	return list, func() {
		for _, v := range values {
			C.free(v)
		}
	}
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
