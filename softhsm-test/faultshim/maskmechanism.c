/* Mechanisms behind a mask: absent ones, and those with other numbers. */
#include "mask.h"

#include <string.h>

static bool among(const ul *list, int count, ul type) {
	for (int i = 0; i < count; i++)
		if (list[i] == type)
			return true;
	return false;
}

/* mechanism_shown is the number by which the masked module knows a mechanism of the real one. */
ul mechanism_shown(ul own) {
	for (int i = 0; i < mask.numbers; i++)
		if (mask.number[i].own == own)
			return mask.number[i].shown;
	return own;
}

static bool lacking(ul own) {
	return among(mask.lacks, mask.lacking, own) || (mask.known > 0 && !among(mask.knows, mask.known, own));
}

/* mechanism_own finds the real number of one that the masked module knows; false if it knows none. */
bool mechanism_own(ul shown, ul *own) {
	*own = shown;
	if (mask.hmac && shown == mask.hmac_keygen) {
		*own = CKM_GENERIC_SECRET_KEY_GEN;
		return true;
	}
	for (int i = 0; i < mask.numbers; i++) {
		if (mask.number[i].shown == shown) {
			*own = mask.number[i].own;
			return true;
		}
		if (mask.number[i].own == shown)
			return false;
	}
	return !lacking(shown);
}

/* mechanism_used: the second argument of the function is a mechanism. */
bool mechanism_used(int f) {
	static const unsigned char with[] = {29, 33, 37, 42, 46, 48, 52, 58, 59, 60, 61, 62};
	return memchr(with, f, sizeof with) != NULL;
}

/* mechanism_check puts the real number into the arguments of a call. own is room for the mechanism. */
ul mechanism_check(int f, ul *args, struct mechanism *own) {
	if (f == F_GET_MECHANISM_INFO)
		return mechanism_own(args[1], &args[1]) ? CKR_OK : CKR_MECHANISM_INVALID;
	if (!mechanism_used(f) || args[1] == 0)
		return CKR_OK;
	memcpy(own, (const void *)args[1], sizeof *own);
	args[1] = (ul)own;
	return mechanism_own(own->type, &own->type) ? CKR_OK : CKR_MECHANISM_INVALID;
}

/* listed collects what the masked module lists. */
static ul listed(ul slot, ul *list, ul *count) {
	ul all[MAX_MECHANISMS], found = MAX_MECHANISMS, args[MAX_ARGS] = {slot, (ul)all, (ul)&found};
	ul rv = real_call(F_GET_MECHANISM_LIST, args);
	if (rv != CKR_OK)
		return rv;
	*count = 0;
	for (ul i = 0; i < found; i++)
		if (!lacking(all[i]))
			list[(*count)++] = mechanism_shown(all[i]);
	if (mask.hmac && !among(list, (int)*count, mask.hmac_keygen) && *count < MAX_MECHANISMS)
		list[(*count)++] = mask.hmac_keygen;
	return CKR_OK;
}

ul mechanism_list(const ul *args) {
	ul list[MAX_MECHANISMS], count, *out = (ul *)args[1], *size = (ul *)args[2];
	ul rv = listed(args[0], list, &count);
	if (rv != CKR_OK || size == NULL)
		return rv != CKR_OK ? rv : CKR_ARGUMENTS_BAD;
	bool fits = out == NULL || *size >= count;
	if (out != NULL && fits)
		memcpy(out, list, count * sizeof *list);
	*size = count;
	return fits ? CKR_OK : CKR_BUFFER_TOO_SMALL;
}
