/* CKM_ECDH1_DERIVE behind a mask: KDFs that it refuses, and one that it computes. */
#include "mask.h"

#include <stdlib.h>
#include <string.h>

enum { FIELD = 48, MAX_KEY = 256 }; /* bytes: of a coordinate on P-384, of a key */

struct ecdh1 { /* CK_ECDH1_DERIVE_PARAMS */
	ul kdf, shared_len;
	void *shared;
	ul public_len;
	void *public;
};

static struct ecdh1 *ecdh(int f, const ul *args) {
	const struct mechanism *m = (const struct mechanism *)args[1];
	if (f != F_DERIVE_KEY || m == NULL || m->type != CKM_ECDH1_DERIVE || m->len != sizeof(struct ecdh1))
		return NULL;
	return m->parameter;
}

static const struct kdf *fact(int f, const ul *args) {
	const struct ecdh1 *p = ecdh(f, args);
	for (int i = 0; p != NULL && i < mask.kdfs; i++)
		if (mask.kdf[i].kdf == p->kdf)
			return &mask.kdf[i];
	return NULL;
}

ul kdf_refuses(int f, const ul *args) {
	const struct kdf *k = fact(f, args);
	return k != NULL && !k->compute ? k->code : CKR_OK;
}

bool kdf_computes(int f, const ul *args) {
	const struct kdf *k = fact(f, args);
	return k != NULL && k->compute;
}

/* agree reads Z from a session object of the real module, which no caller sees. */
static ul agree(const ul *args, unsigned char *z, ul *len) {
	struct ecdh1 null = *ecdh(F_DERIVE_KEY, args);
	null.kdf = CKD_NULL;
	null.shared_len = 0;
	null.shared = NULL;
	*len = null.public_len >= 97 ? 48 : 32; /* P-384: a point has 97 bytes */
	struct mechanism m = {CKM_ECDH1_DERIVE, &null, sizeof null};
	unsigned char no = 0, yes = 1;
	ul class = CKO_SECRET_KEY, type = CKK_GENERIC_SECRET, key = 0;
	struct attribute list[] = {
		{CKA_CLASS, &class, sizeof class}, {CKA_KEY_TYPE, &type, sizeof type}, {CKA_VALUE_LEN, len, sizeof *len},
		{CKA_TOKEN, &no, 1}, {CKA_PRIVATE, &no, 1}, {CKA_SENSITIVE, &no, 1}, {CKA_EXTRACTABLE, &yes, 1},
	};
	ul derive[MAX_ARGS] = {args[0], (ul)&m, args[2], (ul)list, sizeof list / sizeof *list, (ul)&key};
	ul rv = real_call(F_DERIVE_KEY, derive);
	if (rv != CKR_OK)
		return rv;
	struct attribute value = {CKA_VALUE, z, *len};
	ul get[MAX_ARGS] = {args[0], key, (ul)&value, 1}, destroy[MAX_ARGS] = {args[0], key};
	rv = real_call(F_GET_ATTRIBUTE_VALUE, get);
	real_call(F_DESTROY_OBJECT, destroy);
	return rv;
}

/* expand is the KDF of ANSI X9.63: blocks of SHA-256(Z || counter || shared). */
static void expand(struct part z, struct part shared, unsigned char *key, ul len) {
	for (ul made = 0, block = 1; made < len; made += 32, block++) {
		unsigned char counter[4] = {0, 0, 0, (unsigned char)block}, digest[32];
		struct part parts[] = {z, {counter, sizeof counter}, shared};
		sha256(parts, 3, digest);
		memcpy(key + made, digest, len - made < 32 ? len - made : 32);
	}
}

/* create makes the derived key: the caller's template with its value in place of its length. The
 * value comes first, because SoftHSM accepts nothing more after CKA_MODIFIABLE. */
static ul create(const ul *args, unsigned char *key, ul len) {
	const struct attribute *list = (const struct attribute *)args[3];
	struct attribute *all = calloc(args[4] + 1, sizeof *all);
	if (all == NULL)
		give_up("mask", "no memory for a derived key");
	ul n = 0;
	all[n++] = (struct attribute){CKA_VALUE, key, len};
	for (ul i = 0; i < args[4]; i++)
		if (list[i].type != CKA_VALUE_LEN)
			all[n++] = list[i];
	ul call[MAX_ARGS] = {args[0], (ul)all, n, args[5]};
	ul rv = real_call(F_CREATE_OBJECT, call);
	free(all);
	return rv;
}

ul kdf_derive(const ul *args) {
	const struct ecdh1 *p = ecdh(F_DERIVE_KEY, args);
	struct attribute *length = template_find(args, 3, CKA_VALUE_LEN);
	ul len = length != NULL ? ulong_of(length) : 0, z_len;
	if (len == 0 || len > MAX_KEY)
		return CKR_TEMPLATE_INCOMPLETE;
	unsigned char z[FIELD], key[MAX_KEY];
	ul rv = agree(args, z, &z_len);
	if (rv == CKR_OK) {
		expand((struct part){z, z_len}, (struct part){p->shared, p->shared_len}, key, len);
		rv = create(args, key, len);
	}
	memset(z, 0, sizeof z);
	memset(key, 0, sizeof key);
	return rv;
}
