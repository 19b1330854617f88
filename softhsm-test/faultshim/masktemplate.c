/* Attributes in templates, and as they read, behind a mask. */
#include "mask.h"

#include <stdlib.h>
#include <string.h>

struct attribute *template_find(const ul *args, int at, ul type) {
	struct attribute *list = (struct attribute *)args[at];
	for (ul i = 0; list != NULL && i < args[at + 1]; i++)
		if (list[i].type == type)
			return &list[i];
	return NULL;
}

/* ulong_of is the value of a CK_BBOOL or CK_ULONG, the largest number for another value. */
ul ulong_of(const struct attribute *a) {
	ul value = ~(ul)0;
	if (a->value != NULL && a->len == 1)
		return *(unsigned char *)a->value;
	if (a->value != NULL && a->len == sizeof value)
		memcpy(&value, a->value, sizeof value);
	return value;
}

static void *own(struct template *t, ul size) {
	void *p = calloc(1, size + 1);
	if (p == NULL || t->copies == MAX_FACTS)
		give_up("mask", "no memory for a template");
	return t->copied[t->copies++] = p;
}

void template_free(struct template *t) {
	for (int i = 0; i < t->copies; i++)
		free(t->copied[i]);
}

/* copy puts a template into the arguments that may be changed, with room for one attribute more. */
static void copy(struct template *t, ul *args) {
	struct attribute *list = (struct attribute *)args[t->at];
	t->own = own(t, (args[t->at + 1] + 1) * sizeof *list);
	if (list != NULL)
		memcpy(t->own, list, args[t->at + 1] * sizeof *list);
	args[t->at] = (ul)t->own;
}

/* put changes a value in place of the caller's. */
static void put(struct template *t, struct attribute *a, ul value) {
	unsigned char *to = own(t, sizeof value);
	if (a->len == 1)
		to[0] = (unsigned char)value;
	else
		memcpy(to, &value, sizeof value);
	a->value = to;
}

/* of_key: the object of a call is a private or secret key, or may become one. */
static bool of_key(const struct template *t, const ul *args) {
	if (t->call != CREATE)
		return true;
	struct attribute *class = template_find(args, t->at, CKA_CLASS);
	return class != NULL && (ulong_of(class) == CKO_PRIVATE_KEY || ulong_of(class) == CKO_SECRET_KEY);
}

static ul apply(struct template *t, ul *args, const struct fact *fact) {
	struct attribute *a = template_find(args, t->at, fact->type);
	if (!(fact->calls & t->call) || a == NULL)
		return CKR_OK;
	if (fact->verb == REFUSE || (fact->verb == ONLY && ulong_of(a) != fact->value))
		return fact->code;
	if (fact->verb == FORCE)
		put(t, a, fact->value);
	return CKR_OK;
}

/* UNKNOWN marks a mechanism in CKA_ALLOWED_MECHANISMS that the masked module does not know, so that
 * the real one does not know it either. */
static const ul UNKNOWN = 1UL << 62;

/* translate_allowed gives the mechanisms of CKA_ALLOWED_MECHANISMS their real numbers. */
static void translate_allowed(struct template *t, ul *args) {
	struct attribute *a = template_find(args, t->at, CKA_ALLOWED_MECHANISMS);
	if (a == NULL || a->value == NULL)
		return;
	ul *list = own(t, a->len);
	memcpy(list, a->value, a->len);
	for (ul i = 0; i < a->len / sizeof *list; i++)
		if (!mechanism_own(list[i], &list[i]))
			list[i] |= UNKNOWN;
	a->value = list;
}

static ul allowed_shown(ul own) { return own & UNKNOWN ? own & ~UNKNOWN : mechanism_shown(own); }

/* size gives a new HMAC key the length that its type says, where the caller gave none. It comes
 * first, because SoftHSM accepts nothing more after CKA_MODIFIABLE. */
static void size(struct template *t, ul *args) {
	static ul bytes = 32;
	if (!(t->call & HMAC) || template_find(args, t->at, CKA_VALUE_LEN) != NULL)
		return;
	memmove(t->own + 1, t->own, args[t->at + 1] * sizeof *t->own);
	t->own[0] = (struct attribute){CKA_VALUE_LEN, &bytes, sizeof bytes};
	args[t->at + 1]++;
}

/* translate_hmac: the real module has HMAC keys as generic secrets that sign. */
static ul translate_hmac(struct template *t, ul *args) {
	struct attribute *type = template_find(args, t->at, CKA_KEY_TYPE), *sign = template_find(args, t->at, CKA_SIGN);
	if (!mask.hmac || type == NULL)
		return CKR_OK;
	bool signs = sign != NULL && ulong_of(sign) == 1;
	if (ulong_of(type) == CKK_SHA256_HMAC) {
		put(t, type, CKK_GENERIC_SECRET);
		size(t, args);
	}
	else if (ulong_of(type) == CKK_GENERIC_SECRET && signs && t->call != FIND)
		return CKR_TEMPLATE_INCONSISTENT;
	return CKR_OK;
}

ul template_check(struct template *t, ul *args) {
	copy(t, args);
	struct attribute *type = template_find(args, t->at, CKA_KEY_TYPE);
	if (t->call == GENERATE && type != NULL && ulong_of(type) == CKK_SHA256_HMAC)
		t->call |= HMAC;
	for (int i = 0; i < mask.facts && of_key(t, args); i++) {
		ul rv = apply(t, args, &mask.fact[i]);
		if (rv != CKR_OK)
			return rv;
	}
	translate_allowed(t, args);
	return translate_hmac(t, args);
}

/* ask reads one CK_ULONG or CK_BBOOL of an object from the real module. */
static ul ask(const ul *args, ul type, ul size) {
	unsigned char value[sizeof(ul)] = {0};
	struct attribute a = {type, value, size};
	ul call[MAX_ARGS] = {args[0], args[1], (ul)&a, 1};
	return real_call(F_GET_ATTRIBUTE_VALUE, call) == CKR_OK ? ulong_of(&a) : ~(ul)0;
}

static const struct fact *fact_of(ul type) {
	for (int i = 0; i < mask.facts; i++)
		if (mask.fact[i].calls == READ && mask.fact[i].type == type)
			return &mask.fact[i];
	return NULL;
}

/* shown changes what the real module told of one attribute of a private or secret key. */
static void shown(const ul *args, struct attribute *a, const struct fact *fact) {
	if (a->value == NULL || a->len == ~(ul)0)
		return;
	if (fact != NULL && fact->verb == AS && a->len == 1)
		*(unsigned char *)a->value = (unsigned char)fact->value;
	if (a->type == CKA_ALLOWED_MECHANISMS)
		for (ul i = 0; i < a->len / sizeof(ul); i++)
			((ul *)a->value)[i] = allowed_shown(((ul *)a->value)[i]);
	if (mask.hmac && a->type == CKA_KEY_TYPE && ulong_of(a) == CKK_GENERIC_SECRET && ask(args, CKA_SIGN, 1) == 1)
		*(ul *)a->value = CKK_SHA256_HMAC;
}

/* masked_read is C_GetAttributeValue. A refused attribute has length -1, as §5.7 of PKCS#11 v2.40 says. */
ul masked_read(const ul *args) {
	ul class = ask(args, CKA_CLASS, sizeof class), rv = CKR_OK;
	if (class != CKO_PRIVATE_KEY && class != CKO_SECRET_KEY)
		return real_call(F_GET_ATTRIBUTE_VALUE, args);
	struct attribute *list = (struct attribute *)args[2];
	for (ul i = 0; list != NULL && i < args[3]; i++) {
		const struct fact *fact = fact_of(list[i].type);
		ul call[MAX_ARGS] = {args[0], args[1], (ul)&list[i], 1}, one = CKR_OK;
		if (fact != NULL && fact->verb == REFUSE) {
			list[i].len = ~(ul)0;
			one = fact->code;
		} else if ((one = real_call(F_GET_ATTRIBUTE_VALUE, call)) == CKR_OK)
			shown(args, &list[i], fact);
		if (one != CKR_OK)
			rv = one;
	}
	return rv;
}
