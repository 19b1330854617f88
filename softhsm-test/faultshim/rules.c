#include "faultshim.h"

#include <dlfcn.h>
#include <errno.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_WORDS = 12, MAX_TEXT = 65536 };

const char *const action_names[ACTIONS] = {
	"latency", "jitter", "sleep", "rv", "rvafter", "segv", "abort", "exit", "garbage", "zeros",
	"bitflip", "short", "wrongkey", "closeall", "logout",
};

static struct rules *_Atomic current;
static char control[4096];
static const char *initial = ""; /* FAULTSHIM_RULES */
static _Atomic uint64_t seen; /* identity of the control file whose rules are in force */

const char *control_file(void) { return control; }

/* A line is words. An unknown word ends the process. */

static int64_t number(const char *text, const char *word) {
	char *end;
	errno = 0;
	long v = strtol(text, &end, 0);
	if (end == text || *end != 0 || errno != 0 || v < 0)
		give_up("not a number", word);
	return v;
}

static bool matches(const char *pattern, int f) {
	int classes = functions[f].classes;
	if (strcmp(pattern, "@op") == 0)
		return classes & OP;
	if (strcmp(pattern, "@crypto") == 0)
		return classes & CRYPTO;
	if (strcmp(pattern, "@session") == 0)
		return classes & SESSION;
	return fnmatch(pattern, functions[f].name, 0) == 0;
}

static enum action parse_action(const char *word) {
	for (int a = 0; a < ACTIONS; a++)
		if (strcmp(word, action_names[a]) == 0)
			return (enum action)a;
	give_up("unknown action", word);
}

static bool named(const char *word, size_t length, const char *name) {
	return strlen(name) == length && memcmp(word, name, length) == 0;
}

/* option reads name=value; false for another word. */
static bool option(struct rule *r, const char *word) {
	const char *value = strchr(word, '=');
	if (value == NULL)
		return false;
	size_t name = (size_t)(value++ - word);
	if (named(word, name, "n"))
		r->n = number(value, word);
	else if (named(word, name, "each"))
		r->each = number(value, word);
	else if (named(word, name, "size"))
		r->size = number(value, word);
	else if (named(word, name, "skip"))
		r->skip = number(value, word);
	else if (named(word, name, "every"))
		r->every = number(value, word);
	else if (named(word, name, "keep"))
		r->keep = number(value, word) != 0;
	else if (named(word, name, "p"))
		r->p = atof(value);
	else
		give_up("unknown option", word);
	return true;
}

static void argument(struct rule *r, const char *word) {
	if (r->action != RV && r->action != RVAFTER)
		r->arg = (ul)number(word, word);
	else if (!parse_code(word, &r->arg))
		give_up("unknown return code", word);
}

static void parse_rule(struct rules *t, char **word, int words) {
	if (t->count == MAX_RULES)
		give_up("too many rules", word[0]);
	struct rule *r = &t->rule[t->count++];
	*r = (struct rule){.n = -1, .each = -1, .size = -1, .p = 1, .action = parse_action(word[1])};
	bool any = false;
	for (int f = 0; f < FUNCTIONS; f++)
		any |= r->match[f] = matches(word[0], f);
	if (!any)
		give_up("no such function", word[0]);
	for (int i = 2; i < words; i++)
		if (!option(r, word[i]))
			argument(r, word[i]);
}

static void set_env(char *assignment) {
	char *value = strchr(assignment, '=');
	if (value == NULL)
		give_up("not NAME=VALUE", assignment);
	*value++ = 0;
	setenv(assignment, value, 1);
}

static void parse_setting(struct rules *t, char **word, int words) {
	if (words != 3)
		give_up("a setting has a name and a value", words > 1 ? word[1] : word[0]);
	const char *name = word[1];
	if (strcmp(name, "max_sessions") == 0)
		t->max_sessions = number(word[2], name);
	else if (strcmp(name, "hide_max") == 0)
		t->hide_max = number(word[2], name) != 0;
	else if (strcmp(name, "parallel") == 0)
		t->parallel = (int)number(word[2], name);
	else if (strcmp(name, "pin_tries") == 0)
		t->pin_tries = number(word[2], name);
	else if (strcmp(name, "module") == 0)
		real_path(word[2]);
	else if (strcmp(name, "env") == 0)
		set_env(word[2]);
	else
		give_up("unknown setting", name);
}

static void parse_line(struct rules *t, char *line) {
	char *save, *word[MAX_WORDS];
	int words = 0;
	line[strcspn(line, "#")] = 0;
	for (char *w = strtok_r(line, " \t\r", &save); w != NULL; w = strtok_r(NULL, " \t\r", &save)) {
		if (words == MAX_WORDS)
			give_up("too many words", w);
		word[words++] = w;
	}
	if (words == 0)
		return;
	if (strcmp(word[0], "set") == 0)
		parse_setting(t, word, words);
	else if (words > 1)
		parse_rule(t, word, words);
	else
		give_up("no action", word[0]);
}

static uint64_t mix(uint64_t h, const void *bytes, size_t n) { /* FNV-1a */
	for (size_t i = 0; i < n; i++)
		h = (h ^ ((const unsigned char *)bytes)[i]) * UINT64_C(0x100000001b3);
	return h;
}

static uint64_t start(void) { return UINT64_C(0xcbf29ce484222325); }

/* identity differs for each new control file; 0 is none. */
static uint64_t identity(const struct stat *st) {
	uint64_t h = mix(start(), &st->st_ino, sizeof st->st_ino);
	h = mix(h, &st->st_size, sizeof st->st_size);
	return mix(h, &st->st_mtim, sizeof st->st_mtim) | 1;
}

/* generation identifies one version of the rules in every process. */
static uint64_t generation(const char *text, uint64_t file) {
	return mix(mix(start(), text, strlen(text)), &file, sizeof file);
}

static void put_in_force(const char *text, uint64_t file) {
	struct rules *t = calloc(1, sizeof *t);
	char *copy = strdup(text), *save;
	if (t == NULL || copy == NULL)
		give_up("no memory", control);
	for (char *l = strtok_r(copy, "\n;", &save); l != NULL; l = strtok_r(NULL, "\n;", &save))
		parse_line(t, l);
	free(copy);
	if (t->parallel > 0)
		sem_init(&t->device, 0, (unsigned)t->parallel);
	struct tally *tallies = shared_tallies(generation(text, file));
	for (int i = 0; i < t->count; i++)
		t->rule[i].tally = &tallies[i];
	atomic_store(&current, t);
}

/* look reads the control file. It must not run concurrently. */
static void look(void) {
	static char text[MAX_TEXT];
	struct stat st;
	FILE *file = fopen(control, "re");
	uint64_t now = file != NULL && fstat(fileno(file), &st) == 0 ? identity(&st) : 0;
	if (now != 0)
		text[fread(text, 1, sizeof text - 1, file)] = 0;
	put_in_force(now != 0 ? text : initial, now);
	atomic_store(&seen, now);
	if (file != NULL)
		fclose(file);
}

/* changed costs one stat(2), a fiftieth of a SoftHSM signature: a change applies to
 * every call that begins after it. */
static bool changed(void) {
	struct stat st;
	uint64_t now = stat(control, &st) == 0 ? identity(&st) : 0;
	return now != atomic_load(&seen);
}

struct rules *rules_now(void) {
	static pthread_mutex_t looking = PTHREAD_MUTEX_INITIALIZER;
	if (changed()) {
		pthread_mutex_lock(&looking);
		if (changed())
			look();
		pthread_mutex_unlock(&looking);
	}
	return atomic_load(&current);
}

void rules_open(void) {
	const char *named = getenv("FAULTSHIM_FILE"), *rules = getenv("FAULTSHIM_RULES");
	Dl_info self;
	if (named != NULL)
		snprintf(control, sizeof control, "%s", named);
	else if (dladdr((const void *)&action_names, &self) != 0 && self.dli_fname != NULL)
		snprintf(control, sizeof control, "%s.ctl", self.dli_fname);
	if (rules != NULL)
		initial = rules;
	look();
}

bool rule_fires(struct rule *r) {
	int64_t k = atomic_fetch_add(&r->tally->seen, 1);
	if (k < r->skip || (r->every > 0 && (k + 1) % r->every != 0))
		return false;
	if (r->p < 1 && random_unit() >= r->p)
		return false;
	if (r->each >= 0 && atomic_fetch_add(&r->fired_here, 1) >= r->each)
		return false;
	return r->n < 0 || atomic_fetch_add(&r->tally->fired, 1) < r->n;
}
