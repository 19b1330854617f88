#include "faultshim.h"

#include <dlfcn.h>
#include <stdio.h>

struct list { /* CK_FUNCTION_LIST */
	unsigned char version[2];
	void *fn[FUNCTIONS];
};

static struct list *real;
static char path[4096] = "/usr/lib/softhsm/libsofthsm2.so";

void real_path(const char *p) { snprintf(path, sizeof path, "%s", p); }

void real_version(unsigned char version[2]) {
	version[0] = real->version[0];
	version[1] = real->version[1];
}

bool real_load(void) {
	void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL) {
		fprintf(stderr, "faultshim: %s\n", dlerror());
		return false;
	}
	ul (*get)(struct list **);
	*(void **)&get = dlsym(handle, "C_GetFunctionList");
	if (get != NULL && get(&real) == CKR_OK)
		return true;
	fprintf(stderr, "faultshim: %s has no function list\n", path);
	return false;
}

#define ARG1 ul
#define ARG2 ARG1, ul
#define ARG3 ARG2, ul
#define ARG4 ARG3, ul
#define ARG5 ARG4, ul
#define ARG6 ARG5, ul
#define ARG8 ARG6, ul, ul
#define CALL(n) (*(ul (**)(ARG##n))&real->fn[f])

ul real_call(int f, const ul *a) {
	if (real->fn[f] == NULL)
		return CKR_FUNCTION_NOT_SUPPORTED;
	switch (functions[f].args) {
	case 1: return CALL(1)(a[0]);
	case 2: return CALL(2)(a[0], a[1]);
	case 3: return CALL(3)(a[0], a[1], a[2]);
	case 4: return CALL(4)(a[0], a[1], a[2], a[3]);
	case 5: return CALL(5)(a[0], a[1], a[2], a[3], a[4]);
	case 6: return CALL(6)(a[0], a[1], a[2], a[3], a[4], a[5]);
	default: return CALL(8)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
	}
}
