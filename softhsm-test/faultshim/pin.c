/*
 * A token that locks, which SoftHSM never does. Wrong PINs in a row are counted in
 * <control file>.pin, a decimal number and a newline, under flock(2).
 */
#include "faultshim.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { USER = 1 }; /* CKU_USER; the security officer's PIN is another */

/* Flags of CK_TOKEN_INFO. */
enum { COUNT_LOW = 0x10000, FINAL_TRY = 0x20000, LOCKED = 0x40000 };

static int open_count(void) {
	char path[4200];
	snprintf(path, sizeof path, "%s.pin", control_file());
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || flock(fd, LOCK_EX) != 0)
		give_up("cannot count wrong PINs", path);
	return fd;
}

static long read_count(int fd) {
	char text[32] = "";
	return pread(fd, text, sizeof text - 1, 0) > 0 ? atol(text) : 0;
}

static long wrong_so_far(void) {
	int fd = open_count();
	long n = read_count(fd);
	close(fd); /* and the lock */
	return n;
}

/* count_pin counts one wrong PIN, or resets the count. */
static void count_pin(bool wrong) {
	int fd = open_count();
	char text[32];
	int len = snprintf(text, sizeof text, "%ld\n", wrong ? read_count(fd) + 1 : 0);
	if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)len, 0) != len)
		give_up("cannot count wrong PINs", control_file());
	close(fd);
}

bool pin_locked(const struct rules *t, int f, const ul *args) {
	return t->pin_tries > 0 && f == F_LOGIN && args[1] == USER && wrong_so_far() >= t->pin_tries;
}

void pin_done(const struct rules *t, int f, const ul *args, ul rv) {
	if (t->pin_tries == 0)
		return;
	if (f == F_LOGIN && args[1] == USER && (rv == CKR_OK || rv == CKR_PIN_INCORRECT))
		count_pin(rv == CKR_PIN_INCORRECT);
	else if (f == F_INIT_PIN && rv == CKR_OK)
		count_pin(false);
}

ul pin_flags(const struct rules *t) {
	long wrong = t->pin_tries > 0 ? wrong_so_far() : 0;
	if (wrong == 0)
		return 0;
	if (wrong >= t->pin_tries)
		return LOCKED;
	return wrong == t->pin_tries - 1 ? COUNT_LOW | FINAL_TRY : COUNT_LOW;
}
