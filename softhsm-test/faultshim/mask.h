/*
 * A mask makes the real module look like another vendor's: it takes away what that vendor does
 * not have, renumbers what the vendor numbers in another way, and computes what the vendor has
 * and the real module lacks. It is a file, named by FAULTSHIM_MASK and read once. One fact per
 * line; '#' starts a comment. A malformed line ends the process.
 *
 *   absent FUNC [CODE]       functions by shell pattern return CODE, without it
 *                            CKR_FUNCTION_NOT_SUPPORTED
 *   lacks MECH...            the mechanisms are not listed, and a use is
 *                            CKR_MECHANISM_INVALID
 *   knows MECH...            with such lines, all other mechanisms are lacking
 *   number MECH VALUE        the mechanism has VALUE in place of its own number, also in
 *                            CKA_ALLOWED_MECHANISMS
 *   hmac MECH                a key with CKA_SIGN is CKK_SHA256_HMAC, made by MECH; as a
 *                            CKK_GENERIC_SECRET it is CKR_TEMPLATE_INCONSISTENT
 *   kdf KDF refuse [CODE]    CKM_ECDH1_DERIVE with this KDF, without CODE
 *                            CKR_MECHANISM_PARAM_INVALID
 *   kdf CKD_SHA256_KDF compute
 *                            the shim derives Z, hashes it as ANSI X9.63 §5.6.3 says, and
 *                            creates the key
 *   in CALL ATTR refuse [CODE]
 *                            an attribute in a template, without CODE
 *                            CKR_ATTRIBUTE_TYPE_INVALID
 *   in CALL ATTR only VALUE [CODE]
 *                            another value is CODE, without it CKR_ATTRIBUTE_VALUE_INVALID
 *   in CALL ATTR force VALUE the object gets VALUE for any that the template has
 *   read ATTR refuse [CODE]  C_GetAttributeValue of a private or secret key, without CODE
 *                            CKR_ATTRIBUTE_TYPE_INVALID
 *   read ATTR as VALUE       the value of a private or secret key reads so
 *   longest FUNC BYTES [CODE]
 *                            more input to C_Sign or C_SignUpdate is CODE, without it
 *                            CKR_DATA_LEN_RANGE
 *   hidden NAME=VALUE        the process does not find objects that another process puts on the
 *                            token after its login, unless the environment has NAME=VALUE
 *   login user:password      the PIN of a user has a name before its first colon; without one
 *                            it is CKR_PIN_INCORRECT
 *
 * CALL is generate, hmac (generate with CKK_SHA256_HMAC), public, private (the halves of a pair),
 * derive, unwrap, create (of keys), copy, set, or key: generate, private, derive, unwrap, create and
 * copy. Mechanisms, attributes, key types, KDFs and codes have their names of PKCS#11, or a number.
 * VALUE is true, false, a name or a number.
 */
#ifndef MASK_H
#define MASK_H

#include "faultshim.h"

/* Places in CK_FUNCTION_LIST with a template or a mechanism. */
enum {
	F_GET_MECHANISM_LIST = 7, F_GET_MECHANISM_INFO = 8, F_CREATE_OBJECT = 20, F_COPY_OBJECT = 21,
	F_DESTROY_OBJECT = 22, F_GET_ATTRIBUTE_VALUE = 24, F_SET_ATTRIBUTE_VALUE = 25, F_FIND_INIT = 26, F_FIND = 27,
	F_FIND_FINAL = 28,
	F_GENERATE_KEY = 58, F_GENERATE_KEY_PAIR = 59, F_UNWRAP_KEY = 61
};

/* Values that the masks compare, PKCS#11 v2.40 §A. */
enum {
	CKO_PRIVATE_KEY = 3, CKO_SECRET_KEY = 4, CKK_GENERIC_SECRET = 0x10, CKK_SHA256_HMAC = 0x2B,
	CKA_CLASS = 0, CKA_TOKEN = 1, CKA_PRIVATE = 2, CKA_VALUE = 0x11, CKA_KEY_TYPE = 0x100, CKA_SENSITIVE = 0x103,
	CKA_SIGN = 0x108, CKA_VALUE_LEN = 0x161, CKA_EXTRACTABLE = 0x162, CKA_ALLOWED_MECHANISMS = 0x40000600,
	CKM_GENERIC_SECRET_KEY_GEN = 0x350, CKM_ECDH1_DERIVE = 0x1050, CKD_NULL = 1, CKD_SHA256_KDF = 6,
	CKR_ATTRIBUTE_TYPE_INVALID = 0x12, CKR_ATTRIBUTE_VALUE_INVALID = 0x13, CKR_DATA_LEN_RANGE = 0x21,
	CKR_MECHANISM_INVALID = 0x70, CKR_MECHANISM_PARAM_INVALID = 0x71, CKR_TEMPLATE_INCOMPLETE = 0xD0,
	CKR_TEMPLATE_INCONSISTENT = 0xD1
};

struct attribute { /* CK_ATTRIBUTE */
	ul type;
	void *value;
	ul len;
};

struct mechanism { /* CK_MECHANISM */
	ul type;
	void *parameter;
	ul len;
};

/* Sets of calls with a template. */
enum call {
	GENERATE = 1, PUBLIC = 2, PRIVATE = 4, DERIVE = 8, UNWRAP = 16, CREATE = 32, COPY = 64, SET = 128, READ = 256,
	FIND = 512, HMAC = 1024,
	KEY = GENERATE | PRIVATE | DERIVE | UNWRAP | CREATE | COPY
};

enum { MAX_FACTS = 96, MAX_MECHANISMS = 512, MAX_OBJECTS = 4096 };

enum verb { REFUSE, ONLY, FORCE, AS };
struct fact { /* of an attribute */
	int calls;
	ul type, value, code;
	enum verb verb;
};
struct number { ul own, shown; };
struct kdf {
	ul kdf, code;
	bool compute;
};
struct mask {
	bool any; /* there is one */
	ul absent[FUNCTIONS]; /* code; 0: present */
	ul lacks[MAX_FACTS], knows[MAX_FACTS];
	struct number number[MAX_FACTS];
	struct kdf kdf[MAX_FACTS];
	struct fact fact[MAX_FACTS];
	int lacking, known, numbers, kdfs, facts;
	bool hmac; /* HMAC keys have a type of their own */
	ul hmac_keygen;
	ul longest[FUNCTIONS], too_long[FUNCTIONS]; /* bytes, code */
	bool user_password, hidden;
};
extern struct mask mask;

/* maskfile.c reads FAULTSHIM_MASK. */
void mask_open(void);

/* mask.c: one call, as the masked module does it. */
ul masked_call(int f, const ul *args);

/* masktemplate.c */
struct template { /* of a call, in its arguments; changed in a copy */
	int at; /* argument */
	int call; /* enum call; with HMAC, also that */
	struct attribute *own;
	void *copied[MAX_FACTS]; /* to be freed */
	int copies;
};
ul template_check(struct template *t, ul *args);
void template_free(struct template *t);
ul masked_read(const ul *args);
struct attribute *template_find(const ul *args, int at, ul type);
ul ulong_of(const struct attribute *a);

/* maskmechanism.c */
ul mechanism_check(int f, ul *args, struct mechanism *own);
ul mechanism_list(const ul *args);
ul mechanism_shown(ul own);
bool mechanism_own(ul shown, ul *own);
bool mechanism_used(int f);

/* maskkdf.c */
bool kdf_computes(int f, const ul *args);
ul kdf_refuses(int f, const ul *args);
ul kdf_derive(const ul *args);

/* maskobjects.c: which objects a process may find. */
void objects_seen(ul session);
void object_made(int f, const ul *args);
ul objects_found(const ul *args);

/* sha256.c: SHA-256 of the concatenation of some parts, FIPS 180-4. */
struct part { const void *data; size_t len; };
void sha256(const struct part *parts, int count, unsigned char digest[32]);

/* names.c */
bool parse_name(const char *text, ul *value);

#endif
