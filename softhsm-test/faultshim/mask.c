/* One call, as the masked module does it. */
#include "mask.h"

#include <string.h>

enum { USER = 1 }; /* CKU_USER */

/* Which argument of a function is a template; its length is the next one. */
static const struct {
	int f, at;
	enum call call;
} templates[] = {
	{F_CREATE_OBJECT, 1, CREATE}, {F_COPY_OBJECT, 2, COPY}, {F_SET_ATTRIBUTE_VALUE, 2, SET}, {F_FIND_INIT, 1, FIND},
	{F_GENERATE_KEY, 2, GENERATE}, {F_GENERATE_KEY_PAIR, 2, PUBLIC}, {F_GENERATE_KEY_PAIR, 4, PRIVATE},
	{F_UNWRAP_KEY, 5, UNWRAP}, {F_DERIVE_KEY, 3, DERIVE},
};

enum { MAX_TEMPLATES = 2 }; /* of one call */

struct masked {
	int f;
	ul args[MAX_ARGS];
	struct mechanism mechanism;
	struct template template[MAX_TEMPLATES];
	int used;
};

/* hmac_made: a generation of HMAC keys uses the vendor's mechanism. It runs before the mechanism
 * has its real number. */
static ul hmac_made(int f, const ul *args) {
	if (!mask.hmac || f != F_GENERATE_KEY || args[1] == 0)
		return CKR_OK;
	struct attribute *type = template_find(args, 2, CKA_KEY_TYPE);
	if (type == NULL)
		return CKR_OK;
	bool vendor = ((const struct mechanism *)args[1])->type == mask.hmac_keygen;
	bool wrong = ulong_of(type) == CKK_SHA256_HMAC ? !vendor : vendor && mask.hmac_keygen != CKM_GENERIC_SECRET_KEY_GEN;
	return wrong ? CKR_TEMPLATE_INCONSISTENT : CKR_OK;
}

static ul check_templates(struct masked *m) {
	for (size_t i = 0; i < sizeof templates / sizeof *templates; i++) {
		if (templates[i].f != m->f)
			continue;
		struct template *t = &m->template[m->used++];
		*t = (struct template){.at = templates[i].at, .call = templates[i].call};
		ul rv = template_check(t, m->args);
		if (rv != CKR_OK)
			return rv;
	}
	return CKR_OK;
}

/* too_long refuses input to C_Sign or C_SignUpdate, which ends the operation (PKCS#11 v2.40 §5.11). */
static ul too_long(const struct masked *m) {
	unsigned char scratch[1024];
	ul len = sizeof scratch, final[MAX_ARGS] = {m->args[0], (ul)scratch, (ul)&len};
	if (mask.longest[m->f] == 0 || m->args[2] <= mask.longest[m->f])
		return CKR_OK;
	if (m->f == F_SIGN) {
		ul update[MAX_ARGS] = {m->args[0], (ul)scratch, 0};
		real_call(F_SIGN_UPDATE, update);
	}
	real_call(F_SIGN_FINAL, final);
	return mask.too_long[m->f];
}

/* check refuses the call, or gives it the arguments of the real module. */
static ul check(struct masked *m) {
	if (mask.absent[m->f] != 0)
		return mask.absent[m->f];
	ul rv = too_long(m);
	if (rv != CKR_OK)
		return rv;
	rv = hmac_made(m->f, m->args);
	if (rv == CKR_OK)
		rv = mechanism_check(m->f, m->args, &m->mechanism);
	if (rv == CKR_OK)
		rv = kdf_refuses(m->f, m->args);
	return rv == CKR_OK ? check_templates(m) : rv;
}

/* login passes on what follows the name and its colon. */
static ul login(ul *args) {
	const char *pin = (const char *)args[2], *colon = pin == NULL ? NULL : memchr(pin, ':', args[3]);
	if (!mask.user_password || args[1] != USER)
		return real_call(F_LOGIN, args);
	if (colon == NULL || colon == pin)
		return CKR_PIN_INCORRECT;
	args[3] -= (ul)(colon + 1 - pin);
	args[2] = (ul)(colon + 1);
	return real_call(F_LOGIN, args);
}

static ul answer(struct masked *m) {
	if (mask.hidden && m->f == F_FIND)
		return objects_found(m->args);
	switch (m->f) {
	case F_GET_MECHANISM_LIST: return mechanism_list(m->args);
	case F_GET_ATTRIBUTE_VALUE: return masked_read(m->args);
	case F_LOGIN: return login(m->args);
	}
	return kdf_computes(m->f, m->args) ? kdf_derive(m->args) : real_call(m->f, m->args);
}

/* remember notes the objects that the process may find from now on. */
static void remember(const struct masked *m) {
	if (m->f == F_LOGIN)
		objects_seen(m->args[0]);
	object_made(m->f, m->args);
}

ul masked_call(int f, const ul *args) {
	if (!mask.any)
		return real_call(f, args);
	struct masked m = {.f = f};
	memcpy(m.args, args, sizeof m.args);
	ul rv = check(&m);
	if (rv == CKR_OK && (rv = answer(&m)) == CKR_OK && mask.hidden)
		remember(&m);
	for (int i = 0; i < m.used; i++)
		template_free(&m.template[i]);
	return rv;
}
