/*
 * faultshim: a PKCS#11 (v2.40) module that forwards every call to a real module and
 * injects faults. Give faultshim.so to the program instead of the vendor's module.
 *
 * Environment, read once, at the first C_GetFunctionList:
 *
 *   FAULTSHIM_MODULE  real module, default /usr/lib/softhsm/libsofthsm2.so
 *   FAULTSHIM_FILE    control file, default <path of this .so>.ctl, so that copies of
 *                     the .so can be controlled separately
 *   FAULTSHIM_RULES   rules, separated by ';' or newline, used without a control file
 *   FAULTSHIM_LOG     append a line "SECONDS PID FUNCTION ACTION ARG" per injected fault
 *   FAULTSHIM_STATS   write this process's counters there at C_Finalize
 *   FAULTSHIM_COUNTS  file of counters that all processes which name it share; it
 *                     survives them, even SIGKILL (see counts.c)
 *   FAULTSHIM_MASK    file of facts that make the module look like another vendor's (see
 *                     mask.h); faults apply in front of the mask
 *
 * The shim checks the control file before each call; replace it with rename(2). When it
 * changes, all rules and their counts start again. Without it there are no rules, or
 * those of FAULTSHIM_RULES.
 *
 * Control file: one rule or setting per line, '#' starts a comment. A malformed line
 * ends the process: a fault that is not injected shows nothing.
 *
 *   FUNC ACTION [ARG] [size=N] [skip=N] [every=N] [p=0..1] [each=N] [n=N] [keep=1]
 *
 *   FUNC is a shell pattern over function names (C_Sign, C_*Init, C_*), or a class:
 *     @op       functions that cost a network HSM a round trip
 *     @crypto   Sign, Verify, Encrypt, Decrypt, Digest, their *Final, DeriveKey
 *     @session  functions with a session handle as first argument
 *
 *   ACTION    before the call
 *     latency US   add US microseconds                      a network HSM
 *     jitter US    add 0 to US microseconds, uniform
 *     sleep MS     hang for MS milliseconds, then continue  a stuck HSM
 *     rv CODE      do not call the module, return CODE      a name or a number
 *     segv | abort | exit [STATUS]                          the module crashes
 *     closeall     C_CloseAllSessions behind the program's back
 *     logout       C_Logout behind the program's back
 *     wrongkey     C_Sign, C_SignFinal: sign something else. The result is well
 *                  formed; for ECDSA it is the signature of the input by
 *                  another key, which public key recovery yields
 *             after the call
 *     rvafter CODE return CODE after the call               the reply was lost
 *     garbage      fill the output with junk of the right length
 *     zeros        fill it with zeros
 *     bitflip      flip one bit of it
 *     short        halve its length
 *
 *   All rules that match apply, in order. size=N: only calls that give room for N bytes
 *   of output, which distinguishes a P-256 signature (64) from a MAC (32) if the program
 *   knows the length; skip=N: not the first N matching calls; every=N: each Nth only; p=:
 *   with this probability; each=N: at most N times in one process; n=N: at most N times
 *   in all processes that share FAULTSHIM_COUNTS, or in this one without it. skip and
 *   every count in the same places as n.
 *   Output is that of C_Sign, C_SignFinal, C_Encrypt*, C_Decrypt*, C_Digest*, C_WrapKey
 *   and C_GenerateRandom; a call that asks only for its length is not changed. On
 *   C_Verify and C_VerifyFinal each of these actions inverts the result.
 *   keep=1, with rv and rvafter: as PKCS#11 requires, an error of C_Sign and similar calls ends
 *   the active operation, and the shim ends it in the real module too; keep=1 leaves it
 *   active, as bad modules do, so that the next C_SignInit is CKR_OPERATION_ACTIVE.
 *
 *   set max_sessions N   C_OpenSession beyond N is CKR_SESSION_COUNT; C_GetTokenInfo
 *                        reports it
 *   set hide_max 1       C_GetTokenInfo does not report it
 *   set parallel N       at most N @crypto calls inside the "device" at once in each
 *                        process, latency included
 *   set pin_tries N      after N wrong PINs of the user C_Login is CKR_PIN_LOCKED, for the
 *                        right one too. The count is in <control file>.pin and survives
 *                        the processes; a right PIN or C_InitPIN sets it back, and
 *                        C_GetTokenInfo has the flags for it
 *   set env NAME=VALUE   setenv before the real module is loaded
 *   set module PATH      as FAULTSHIM_MODULE, before it is loaded
 *
 *   echo '@op latency 3000'                    3 ms for each round trip
 *   echo 'C_* rv CKR_DEVICE_REMOVED'           the HSM was pulled
 *   echo 'C_Sign closeall n=2 each=1'          it rebooted, under two workers
 *   echo 'C_Sign bitflip p=0.01'               faulty arithmetic
 */
#ifndef FAULTSHIM_H
#define FAULTSHIM_H

#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef unsigned long ul; /* CK_ULONG, CK_RV, handles; and pointers, as arguments */
_Static_assert(sizeof(ul) == sizeof(void *), "LP64 only");

enum { FUNCTIONS = 68, MAX_ARGS = 8, MAX_RULES = 64 };

/* Places in CK_FUNCTION_LIST that the code names. */
enum {
	F_FINALIZE = 1, F_GET_FUNCTION_LIST = 3, F_GET_TOKEN_INFO = 6, F_INIT_PIN = 10,
	F_OPEN_SESSION = 12, F_CLOSE_SESSION = 13, F_CLOSE_ALL = 14, F_LOGIN = 18, F_LOGOUT = 19,
	F_SIGN = 43, F_SIGN_UPDATE = 44, F_SIGN_FINAL = 45, F_VERIFY = 49, F_VERIFY_FINAL = 51,
	F_DERIVE_KEY = 62, F_GENERATE_RANDOM = 64
};

/* Return codes that the shim returns or checks, PKCS#11 v2.40 §5.1. */
enum {
	CKR_OK = 0, CKR_GENERAL_ERROR = 5, CKR_ARGUMENTS_BAD = 7, CKR_FUNCTION_NOT_SUPPORTED = 0x54,
	CKR_PIN_INCORRECT = 0xA0, CKR_PIN_LOCKED = 0xA4, CKR_SESSION_COUNT = 0xB1,
	CKR_SIGNATURE_INVALID = 0xC0, CKR_BUFFER_TOO_SMALL = 0x150
};

/* table.c: the functions and codes of PKCS#11. */
enum { OP = 1, CRYPTO = 2, SESSION = 4 }; /* classes */
struct function {
	const char *name;
	int args;   /* how many */
	int out;    /* which one is the output buffer, from 1; 0: none */
	int outlen; /* which one points to its length */
	int classes;
};
extern const struct function functions[FUNCTIONS];
bool parse_code(const char *text, ul *code);

/* real.c: the real module. */
bool real_load(void);
void real_version(unsigned char version[2]);
void real_path(const char *path);
ul real_call(int f, const ul *args);

/* rules.c: the control file. */
enum action {
	LATENCY, JITTER, SLEEP, RV, RVAFTER, SEGV, ABORT, EXIT, GARBAGE, ZEROS, BITFLIP, SHORT,
	WRONGKEY, CLOSEALL, LOGOUT, ACTIONS
};
extern const char *const action_names[ACTIONS];
struct tally { /* of one rule; in shared memory, if there is some */
	_Atomic int64_t seen, fired;
};
struct rule {
	bool match[FUNCTIONS];
	enum action action;
	ul arg;
	int64_t size, skip, every, each, n; /* size, each, n: -1 for any number */
	bool keep;
	double p;
	_Atomic int64_t fired_here; /* in this process */
	struct tally *tally;
};
struct rules { /* never changed once they are in force, and never freed: calls may use them still */
	int count;
	struct rule rule[MAX_RULES];
	long max_sessions, pin_tries;
	bool hide_max;
	int parallel;
	sem_t device; /* with parallel: places inside it */
};
void rules_open(void);
struct rules *rules_now(void);
bool rule_fires(struct rule *r);
const char *control_file(void);

/* act.c: one call. */
ul dispatch(int f, const ul *args);

/* sessions.c: session limits. */
bool session_refused(const struct rules *t, int f, const ul *args);
void session_done(const struct rules *t, int f, const ul *args, ul rv);
ul last_slot(void);
void sessions_closed(void);

/* pin.c: a PIN that locks. */
bool pin_locked(const struct rules *t, int f, const ul *args);
void pin_done(const struct rules *t, int f, const ul *args, ul rv);
ul pin_flags(const struct rules *t);

/* counts.c: counts of this process and of all. */
struct entered { /* a call under way */
	int f;
	int64_t at; /* monotonic, nanoseconds */
};
void counts_open(void);
struct entered count_enter(int f);
void count_leave(struct entered e, ul rv);
void count_fault(int f, const struct rule *r);
struct tally *shared_tallies(uint64_t generation);

/* util.c */
int64_t now_ns(void);
void nap(int64_t ns);
double random_unit(void); /* 0 <= x < 1 */
_Noreturn void give_up(const char *what, const char *about);

#endif
