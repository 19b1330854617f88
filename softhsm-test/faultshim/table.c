#include "faultshim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* In the order of CK_FUNCTION_LIST, PKCS#11 v2.40 §3.6. */
const struct function functions[FUNCTIONS] = {
	{"C_Initialize", 1, 0, 0, 0},
	{"C_Finalize", 1, 0, 0, 0},
	{"C_GetInfo", 1, 0, 0, 0},
	{"C_GetFunctionList", 1, 0, 0, 0},
	{"C_GetSlotList", 3, 0, 0, 0},
	{"C_GetSlotInfo", 2, 0, 0, 0},
	{"C_GetTokenInfo", 2, 0, 0, 0},
	{"C_GetMechanismList", 3, 0, 0, 0},
	{"C_GetMechanismInfo", 3, 0, 0, 0},
	{"C_InitToken", 4, 0, 0, OP},
	{"C_InitPIN", 3, 0, 0, OP | SESSION},
	{"C_SetPIN", 5, 0, 0, OP | SESSION},
	{"C_OpenSession", 5, 0, 0, OP},
	{"C_CloseSession", 1, 0, 0, SESSION},
	{"C_CloseAllSessions", 1, 0, 0, 0},
	{"C_GetSessionInfo", 2, 0, 0, SESSION},
	{"C_GetOperationState", 3, 0, 0, SESSION},
	{"C_SetOperationState", 5, 0, 0, SESSION},
	{"C_Login", 4, 0, 0, OP | SESSION},
	{"C_Logout", 1, 0, 0, SESSION},
	{"C_CreateObject", 4, 0, 0, OP | SESSION},
	{"C_CopyObject", 5, 0, 0, OP | SESSION},
	{"C_DestroyObject", 2, 0, 0, OP | SESSION},
	{"C_GetObjectSize", 3, 0, 0, SESSION},
	{"C_GetAttributeValue", 4, 0, 0, OP | SESSION},
	{"C_SetAttributeValue", 4, 0, 0, OP | SESSION},
	{"C_FindObjectsInit", 3, 0, 0, SESSION},
	{"C_FindObjects", 4, 0, 0, OP | SESSION},
	{"C_FindObjectsFinal", 1, 0, 0, SESSION},
	{"C_EncryptInit", 3, 0, 0, SESSION},
	{"C_Encrypt", 5, 4, 5, OP | CRYPTO | SESSION},
	{"C_EncryptUpdate", 5, 4, 5, SESSION},
	{"C_EncryptFinal", 3, 2, 3, OP | CRYPTO | SESSION},
	{"C_DecryptInit", 3, 0, 0, SESSION},
	{"C_Decrypt", 5, 4, 5, OP | CRYPTO | SESSION},
	{"C_DecryptUpdate", 5, 4, 5, SESSION},
	{"C_DecryptFinal", 3, 2, 3, OP | CRYPTO | SESSION},
	{"C_DigestInit", 2, 0, 0, SESSION},
	{"C_Digest", 5, 4, 5, CRYPTO | SESSION},
	{"C_DigestUpdate", 3, 0, 0, SESSION},
	{"C_DigestKey", 2, 0, 0, SESSION},
	{"C_DigestFinal", 3, 2, 3, CRYPTO | SESSION},
	{"C_SignInit", 3, 0, 0, SESSION},
	{"C_Sign", 5, 4, 5, OP | CRYPTO | SESSION},
	{"C_SignUpdate", 3, 0, 0, SESSION},
	{"C_SignFinal", 3, 2, 3, OP | CRYPTO | SESSION},
	{"C_SignRecoverInit", 3, 0, 0, SESSION},
	{"C_SignRecover", 5, 4, 5, OP | CRYPTO | SESSION},
	{"C_VerifyInit", 3, 0, 0, SESSION},
	{"C_Verify", 5, 0, 0, OP | CRYPTO | SESSION},
	{"C_VerifyUpdate", 3, 0, 0, SESSION},
	{"C_VerifyFinal", 3, 0, 0, OP | CRYPTO | SESSION},
	{"C_VerifyRecoverInit", 3, 0, 0, SESSION},
	{"C_VerifyRecover", 5, 4, 5, OP | CRYPTO | SESSION},
	{"C_DigestEncryptUpdate", 5, 4, 5, SESSION},
	{"C_DecryptDigestUpdate", 5, 4, 5, SESSION},
	{"C_SignEncryptUpdate", 5, 4, 5, SESSION},
	{"C_DecryptVerifyUpdate", 5, 4, 5, SESSION},
	{"C_GenerateKey", 5, 0, 0, OP | SESSION},
	{"C_GenerateKeyPair", 8, 0, 0, OP | SESSION},
	{"C_WrapKey", 6, 5, 6, OP | SESSION},
	{"C_UnwrapKey", 8, 0, 0, OP | SESSION},
	{"C_DeriveKey", 6, 0, 0, OP | CRYPTO | SESSION},
	{"C_SeedRandom", 3, 0, 0, SESSION},
	{"C_GenerateRandom", 3, 2, 0, OP | SESSION}, /* its length is the argument itself */
	{"C_GetFunctionStatus", 1, 0, 0, SESSION},
	{"C_CancelFunction", 1, 0, 0, SESSION},
	{"C_WaitForSlotEvent", 3, 0, 0, 0},
};

static const struct {
	const char *name;
	ul code;
} codes[] = {
	{"CKR_OK", 0},
	{"CKR_HOST_MEMORY", 0x02},
	{"CKR_SLOT_ID_INVALID", 0x03},
	{"CKR_GENERAL_ERROR", 0x05},
	{"CKR_FUNCTION_FAILED", 0x06},
	{"CKR_ARGUMENTS_BAD", 0x07},
	{"CKR_ATTRIBUTE_READ_ONLY", 0x10},
	{"CKR_ATTRIBUTE_SENSITIVE", 0x11},
	{"CKR_ATTRIBUTE_TYPE_INVALID", 0x12},
	{"CKR_ATTRIBUTE_VALUE_INVALID", 0x13},
	{"CKR_ACTION_PROHIBITED", 0x1B},
	{"CKR_DATA_INVALID", 0x20},
	{"CKR_DATA_LEN_RANGE", 0x21},
	{"CKR_DEVICE_ERROR", 0x30},
	{"CKR_DEVICE_MEMORY", 0x31},
	{"CKR_DEVICE_REMOVED", 0x32},
	{"CKR_FUNCTION_CANCELED", 0x50},
	{"CKR_FUNCTION_NOT_SUPPORTED", 0x54},
	{"CKR_KEY_HANDLE_INVALID", 0x60},
	{"CKR_KEY_FUNCTION_NOT_PERMITTED", 0x68},
	{"CKR_MECHANISM_INVALID", 0x70},
	{"CKR_MECHANISM_PARAM_INVALID", 0x71},
	{"CKR_OBJECT_HANDLE_INVALID", 0x82},
	{"CKR_OPERATION_ACTIVE", 0x90},
	{"CKR_OPERATION_NOT_INITIALIZED", 0x91},
	{"CKR_PIN_INCORRECT", 0xA0},
	{"CKR_PIN_EXPIRED", 0xA3},
	{"CKR_PIN_LOCKED", 0xA4},
	{"CKR_SESSION_CLOSED", 0xB0},
	{"CKR_SESSION_COUNT", 0xB1},
	{"CKR_SESSION_HANDLE_INVALID", 0xB3},
	{"CKR_SIGNATURE_INVALID", 0xC0},
	{"CKR_SIGNATURE_LEN_RANGE", 0xC1},
	{"CKR_TEMPLATE_INCOMPLETE", 0xD0},
	{"CKR_TEMPLATE_INCONSISTENT", 0xD1},
	{"CKR_TOKEN_NOT_PRESENT", 0xE0},
	{"CKR_TOKEN_NOT_RECOGNIZED", 0xE1},
	{"CKR_USER_ALREADY_LOGGED_IN", 0x100},
	{"CKR_USER_NOT_LOGGED_IN", 0x101},
	{"CKR_WRAPPED_KEY_INVALID", 0x110},
	{"CKR_BUFFER_TOO_SMALL", 0x150},
	{"CKR_CRYPTOKI_NOT_INITIALIZED", 0x190},
	{"CKR_CRYPTOKI_ALREADY_INITIALIZED", 0x191},
	{"CKR_FUNCTION_REJECTED", 0x200},
};

bool parse_code(const char *text, ul *code) {
	for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
		if (strcmp(text, codes[i].name) == 0) {
			*code = codes[i].code;
			return true;
		}
	char *end;
	errno = 0;
	*code = strtoul(text, &end, 0);
	return end != text && *end == 0 && errno == 0;
}
