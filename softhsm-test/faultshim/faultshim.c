/* The function list that the program gets, and the one symbol that it looks up. */
#include "mask.h"

#include <pthread.h>

#define P1 ul a
#define P2 P1, ul b
#define P3 P2, ul c
#define P4 P3, ul d
#define P5 P4, ul e
#define P6 P5, ul f
#define P8 P6, ul g, ul h
#define V1 a
#define V2 V1, b
#define V3 V2, c
#define V4 V3, d
#define V5 V4, e
#define V6 V5, f
#define V8 V6, g, h

/* Place in CK_FUNCTION_LIST and number of arguments, as in table.c. */
#define ALL(X) \
	X(0, 1) X(1, 1) X(2, 1) X(4, 3) X(5, 2) X(6, 2) X(7, 3) X(8, 3) X(9, 4) X(10, 3) X(11, 5) \
	X(12, 5) X(13, 1) X(14, 1) X(15, 2) X(16, 3) X(17, 5) X(18, 4) X(19, 1) X(20, 4) X(21, 5) \
	X(22, 2) X(23, 3) X(24, 4) X(25, 4) X(26, 3) X(27, 4) X(28, 1) X(29, 3) X(30, 5) X(31, 5) \
	X(32, 3) X(33, 3) X(34, 5) X(35, 5) X(36, 3) X(37, 2) X(38, 5) X(39, 3) X(40, 2) X(41, 3) \
	X(42, 3) X(43, 5) X(44, 3) X(45, 3) X(46, 3) X(47, 5) X(48, 3) X(49, 5) X(50, 3) X(51, 3) \
	X(52, 3) X(53, 5) X(54, 5) X(55, 5) X(56, 5) X(57, 5) X(58, 5) X(59, 8) X(60, 6) X(61, 8) \
	X(62, 6) X(63, 3) X(64, 3) X(65, 1) X(66, 1) X(67, 3)

#define X(i, n) \
	static ul shim_##i(P##n) { \
		const ul args[MAX_ARGS] = {V##n}; \
		return dispatch(i, args); \
	}
ALL(X)
#undef X

static struct { /* CK_FUNCTION_LIST */
	unsigned char version[2];
	void (*fn[FUNCTIONS])(void);
} mine;

__attribute__((visibility("default"))) ul C_GetFunctionList(void **list);

static ul open_once(void) {
	counts_open();
	rules_open();
	mask_open();
	if (!real_load())
		return CKR_GENERAL_ERROR;
	real_version(mine.version);
#define X(i, n) mine.fn[i] = (void (*)(void))shim_##i;
	ALL(X)
#undef X
	mine.fn[F_GET_FUNCTION_LIST] = (void (*)(void))C_GetFunctionList;
	return CKR_OK;
}

ul C_GetFunctionList(void **list) {
	static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
	static bool opened;
	if (list == NULL)
		return CKR_ARGUMENTS_BAD;
	pthread_mutex_lock(&opening);
	ul rv = opened ? CKR_OK : open_once();
	opened = rv == CKR_OK;
	pthread_mutex_unlock(&opening);
	*list = &mine;
	return rv;
}
