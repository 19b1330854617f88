/* Names in masks, with their numbers in PKCS#11 v2.40 and v3.0. */
#include "mask.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	ul value;
} names[] = {
	{"false", 0},
	{"true", 1},
	{"CKA_TOKEN", 0x01},
	{"CKA_PRIVATE", 0x02},
	{"CKA_LABEL", 0x03},
	{"CKA_VALUE", 0x11},
	{"CKA_KEY_TYPE", 0x100},
	{"CKA_ID", 0x102},
	{"CKA_SENSITIVE", 0x103},
	{"CKA_ENCRYPT", 0x104},
	{"CKA_DECRYPT", 0x105},
	{"CKA_WRAP", 0x106},
	{"CKA_UNWRAP", 0x107},
	{"CKA_SIGN", 0x108},
	{"CKA_SIGN_RECOVER", 0x109},
	{"CKA_VERIFY", 0x10A},
	{"CKA_VERIFY_RECOVER", 0x10B},
	{"CKA_DERIVE", 0x10C},
	{"CKA_VALUE_LEN", 0x161},
	{"CKA_EXTRACTABLE", 0x162},
	{"CKA_MODIFIABLE", 0x170},
	{"CKA_COPYABLE", 0x171},
	{"CKA_UNWRAP_TEMPLATE", 0x40000212},
	{"CKA_ALLOWED_MECHANISMS", 0x40000600},
	{"CKD_NULL", 1},
	{"CKD_SHA256_KDF", 6},
	{"CKK_GENERIC_SECRET", 0x10},
	{"CKK_AES", 0x1F},
	{"CKK_SHA256_HMAC", 0x2B},
	{"CKM_RSA_PKCS_KEY_PAIR_GEN", 0x00},
	{"CKM_RSA_PKCS", 0x01},
	{"CKM_RSA_PKCS_PSS", 0x0D},
	{"CKM_SHA256", 0x250},
	{"CKM_SHA256_HMAC", 0x251},
	{"CKM_GENERIC_SECRET_KEY_GEN", 0x350},
	{"CKM_EC_KEY_PAIR_GEN", 0x1040},
	{"CKM_ECDSA", 0x1041},
	{"CKM_ECDH1_DERIVE", 0x1050},
	{"CKM_EC_EDWARDS_KEY_PAIR_GEN", 0x1055},
	{"CKM_EDDSA", 0x1057},
	{"CKM_AES_KEY_GEN", 0x1080},
	{"CKM_AES_ECB", 0x1081},
	{"CKM_AES_CBC", 0x1082},
	{"CKM_AES_CBC_PAD", 0x1085},
	{"CKM_AES_GCM", 0x1087},
	{"CKM_AES_ECB_ENCRYPT_DATA", 0x1104},
	{"CKM_AES_CBC_ENCRYPT_DATA", 0x1105},
	{"CKM_AES_KEY_WRAP", 0x2109},
	{"CKM_AES_KEY_WRAP_PAD", 0x210A},
	{"CKM_AES_KEY_WRAP_KWP", 0x210B},
};

bool parse_name(const char *text, ul *value) {
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (strcmp(text, names[i].name) == 0) {
			*value = names[i].value;
			return true;
		}
	char *end;
	errno = 0;
	*value = strtoul(text, &end, 0);
	return end != text && *end == 0 && errno == 0;
}
