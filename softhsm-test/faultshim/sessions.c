#include "faultshim.h"

enum { FLAGS_AT = 96, SESSIONS_AT = 104 }; /* in CK_TOKEN_INFO, after label, maker, model, serial */

static atomic_long open_sessions, slot;

ul last_slot(void) { return (ul)atomic_load(&slot); }

void sessions_closed(void) { atomic_store(&open_sessions, 0); }

/* session_refused: f opens one session too many. */
bool session_refused(const struct rules *t, int f, const ul *args) {
	if (f != F_OPEN_SESSION)
		return false;
	atomic_store(&slot, (long)args[0]);
	return t->max_sessions > 0 && atomic_load(&open_sessions) >= t->max_sessions;
}

/* tell changes a CK_TOKEN_INFO: max, count, max rw, rw count are four CK_ULONG. */
static void tell(const struct rules *t, char *info) {
	*(ul *)(info + FLAGS_AT) |= pin_flags(t);
	if (t->max_sessions == 0 || t->hide_max)
		return;
	ul *sessions = (ul *)(info + SESSIONS_AT);
	sessions[0] = sessions[2] = (ul)t->max_sessions;
	sessions[1] = sessions[3] = (ul)atomic_load(&open_sessions);
}

/* session_done: the module did f. */
void session_done(const struct rules *t, int f, const ul *args, ul rv) {
	if (rv != CKR_OK)
		return;
	switch (f) {
	case F_OPEN_SESSION: atomic_fetch_add(&open_sessions, 1); break;
	case F_CLOSE_SESSION: atomic_fetch_sub(&open_sessions, 1); break;
	case F_CLOSE_ALL:
	case F_FINALIZE: sessions_closed(); break;
	case F_GET_TOKEN_INFO: tell(t, (char *)args[1]); break;
	}
}
