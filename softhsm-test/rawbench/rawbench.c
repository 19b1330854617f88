/*
 * rawbench - how fast a PKCS#11 token is when nothing stands before it: the loop
 * that figures of the appliance are compared with.
 *
 *     rawbench MODULE LABEL PIN OPERATION THREADS SECONDS
 *
 * OPERATION is sign (CKM_ECDSA, P-256), derive (CKM_ECDH1_DERIVE, P-256, reading Z
 * and destroying it) or mac (CKM_SHA256_HMAC, 32 bytes). Each thread has a session
 * of its own. Prints one line: operation threads operations-per-second mean-µs
 * cpu-µs. The key is a token object, as the appliance's are, and destroyed at the end.
 */
#include <dlfcn.h>
#include <p11-kit/pkcs11.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static CK_FUNCTION_LIST *f;
static CK_SLOT_ID slot;
static CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
static CK_BYTE p256[] = {6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7};
static CK_BYTE point[67];
static CK_OBJECT_HANDLE key;
static atomic_int running;

#define OK(call)                                                              \
	do {                                                                  \
		CK_RV rv_ = (call);                                           \
		if (rv_ != CKR_OK) {                                          \
			fprintf(stderr, "rawbench: %s: 0x%lx\n", #call, rv_); \
			exit(1);                                              \
		}                                                             \
	} while (0)

static CK_SESSION_HANDLE open_session(void) {
	CK_SESSION_HANDLE s;
	OK(f->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &s));
	return s;
}

/* A key pair that may sign and derive; the point of the public half is kept. */
static CK_OBJECT_HANDLE make_pair(CK_SESSION_HANDLE s) {
	CK_MECHANISM m = {CKM_EC_KEY_PAIR_GEN, NULL, 0};
	CK_ATTRIBUTE pub[] = {{CKA_TOKEN, &yes, 1}, {CKA_EC_PARAMS, p256, sizeof p256}, {CKA_LABEL, "rawbench", 8}};
	CK_ATTRIBUTE priv[] = {{CKA_TOKEN, &yes, 1}, {CKA_SIGN, &yes, 1}, {CKA_DERIVE, &yes, 1}, {CKA_SENSITIVE, &yes, 1}, {CKA_LABEL, "rawbench", 8}};
	CK_ATTRIBUTE q = {CKA_EC_POINT, point, sizeof point};
	CK_OBJECT_HANDLE public, private;
	OK(f->C_GenerateKeyPair(s, &m, pub, 3, priv, 5, &public, &private));
	OK(f->C_GetAttributeValue(s, public, &q, 1));
	OK(f->C_DestroyObject(s, public));
	return private;
}

static CK_OBJECT_HANDLE make_secret(CK_SESSION_HANDLE s) {
	CK_MECHANISM m = {CKM_GENERIC_SECRET_KEY_GEN, NULL, 0};
	CK_ULONG length = 32;
	CK_ATTRIBUTE t[] = {{CKA_TOKEN, &yes, 1}, {CKA_SIGN, &yes, 1}, {CKA_SENSITIVE, &yes, 1}, {CKA_VALUE_LEN, &length, sizeof length}, {CKA_LABEL, "rawbench", 8}};
	CK_OBJECT_HANDLE made;
	OK(f->C_GenerateKey(s, &m, t, 5, &made));
	return made;
}

static void sign(CK_SESSION_HANDLE s, CK_MECHANISM_TYPE type) {
	CK_MECHANISM m = {type, NULL, 0};
	CK_BYTE in[32] = {1}, out[64];
	CK_ULONG n = sizeof out;
	OK(f->C_SignInit(s, &m, key));
	OK(f->C_Sign(s, in, sizeof in, out, &n));
}

static void derive(CK_SESSION_HANDLE s) {
	CK_ECDH1_DERIVE_PARAMS p = {CKD_NULL, 0, NULL, 65, point + 2};
	CK_MECHANISM m = {CKM_ECDH1_DERIVE, &p, sizeof p};
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_KEY_TYPE type = CKK_GENERIC_SECRET;
	CK_ULONG length = 32;
	CK_BYTE z[32];
	CK_ATTRIBUTE t[] = {{CKA_CLASS, &class, sizeof class}, {CKA_KEY_TYPE, &type, sizeof type}, {CKA_TOKEN, &no, 1},
		{CKA_SENSITIVE, &no, 1}, {CKA_EXTRACTABLE, &yes, 1}, {CKA_VALUE_LEN, &length, sizeof length}};
	CK_ATTRIBUTE value = {CKA_VALUE, z, sizeof z};
	CK_OBJECT_HANDLE secret;
	OK(f->C_DeriveKey(s, &m, key, t, 6, &secret));
	OK(f->C_GetAttributeValue(s, secret, &value, 1));
	OK(f->C_DestroyObject(s, secret));
}

static void *loop(void *operation) {
	CK_SESSION_HANDLE s = open_session();
	long *n = calloc(1, sizeof *n);
	while (running) {
		switch (*(char *)operation) {
		case 's': sign(s, CKM_ECDSA); break;
		case 'm': sign(s, CKM_SHA256_HMAC); break;
		default: derive(s);
		}
		++*n;
	}
	OK(f->C_CloseSession(s));
	return n;
}

static double seconds(struct timeval t) { return t.tv_sec + t.tv_usec / 1e6; }

static double cpu(void) {
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return seconds(u.ru_utime) + seconds(u.ru_stime);
}

static void find_slot(const char *label) {
	CK_SLOT_ID slots[16];
	CK_ULONG n = 16;
	OK(f->C_GetSlotList(CK_TRUE, slots, &n));
	for (CK_ULONG i = 0; i < n; i++) {
		CK_TOKEN_INFO info;
		if (f->C_GetTokenInfo(slots[i], &info) == CKR_OK && !strncmp((char *)info.label, label, strlen(label))) {
			slot = slots[i];
			return;
		}
	}
	fprintf(stderr, "rawbench: no token %s\n", label);
	exit(1);
}

int main(int argc, char **argv) {
	if (argc != 7) {
		fprintf(stderr, "usage: rawbench MODULE LABEL PIN sign|derive|mac THREADS SECONDS\n");
		return 2;
	}
	void *module = dlopen(argv[1], RTLD_NOW);
	CK_RV (*list)(CK_FUNCTION_LIST **) = module ? (CK_RV (*)(CK_FUNCTION_LIST **))dlsym(module, "C_GetFunctionList") : NULL;
	if (!list) {
		fprintf(stderr, "rawbench: %s\n", dlerror());
		return 1;
	}
	OK(list(&f));
	CK_C_INITIALIZE_ARGS args = {.flags = CKF_OS_LOCKING_OK};
	OK(f->C_Initialize(&args));
	find_slot(argv[2]);
	CK_SESSION_HANDLE s = open_session();
	OK(f->C_Login(s, CKU_USER, (CK_BYTE *)argv[3], strlen(argv[3])));
	key = argv[4][0] == 'm' ? make_secret(s) : make_pair(s);

	int threads = atoi(argv[5]), wanted = atoi(argv[6]);
	pthread_t thread[64];
	if (threads < 1 || threads > 64 || wanted < 1) return 2;
	running = 1;
	double before = cpu();
	for (int i = 0; i < threads; i++) pthread_create(&thread[i], NULL, loop, argv[4]);
	struct timespec pause = {wanted, 0};
	nanosleep(&pause, NULL);
	running = 0;
	long total = 0;
	for (int i = 0; i < threads; i++) {
		void *n;
		pthread_join(thread[i], &n);
		total += *(long *)n;
	}
	double used = cpu() - before;
	OK(f->C_DestroyObject(s, key));
	printf("%s %d %.0f %.1f %.1f\n", argv[4], threads, (double)total / wanted, 1e6 * wanted * threads / total, 1e6 * used / total);
	return 0;
}
