/* Reads the facts of a mask. */
#include "mask.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_WORDS = 16, LONGEST_LINE = 1024, MAX_NAME = 128 };

struct mask mask;

struct line {
	char *word[MAX_WORDS];
	int words;
};

static ul name(const char *word) {
	ul value;
	if (!parse_name(word, &value))
		give_up("mask: unknown name", word);
	return value;
}

/* code is the last word if there are more than `before` words, else the usual one. */
static ul code(const struct line *l, int before, ul usual) {
	ul value = usual;
	if (l->words > before + 1)
		give_up("mask: too many words", l->word[before + 1]);
	if (l->words > before && !parse_code(l->word[before], &value))
		give_up("mask: unknown return code", l->word[before]);
	return value;
}

static void need(const struct line *l, int words) {
	if (l->words < words)
		give_up("mask: too few words", l->word[0]);
}

static void room(int count) {
	if (count == MAX_FACTS)
		give_up("mask", "too many facts");
}

static void parse_absent(const struct line *l) {
	need(l, 2);
	ul rv = code(l, 2, CKR_FUNCTION_NOT_SUPPORTED);
	bool any = false;
	for (int f = 0; f < FUNCTIONS; f++)
		if (fnmatch(l->word[1], functions[f].name, 0) == 0) {
			mask.absent[f] = rv;
			any = true;
		}
	if (!any)
		give_up("mask: no such function", l->word[1]);
}

static void parse_mechanisms(const struct line *l, ul *list, int *count) {
	need(l, 2);
	for (int i = 1; i < l->words; i++) {
		room(*count);
		list[(*count)++] = name(l->word[i]);
	}
}

static void parse_number(const struct line *l) {
	need(l, 3);
	room(mask.numbers);
	mask.number[mask.numbers++] = (struct number){name(l->word[1]), name(l->word[2])};
}

static void parse_kdf(const struct line *l) {
	need(l, 3);
	room(mask.kdfs);
	struct kdf *k = &mask.kdf[mask.kdfs++];
	*k = (struct kdf){.kdf = name(l->word[1]), .compute = strcmp(l->word[2], "compute") == 0};
	if (k->compute ? k->kdf != CKD_SHA256_KDF : strcmp(l->word[2], "refuse") != 0)
		give_up("mask: neither refuse nor compute CKD_SHA256_KDF", l->word[2]);
	k->code = code(l, 3, CKR_MECHANISM_PARAM_INVALID);
}

static int parse_call(const char *word) {
	static const struct {
		const char *name;
		int calls;
	} calls[] = {
		{"generate", GENERATE}, {"hmac", HMAC}, {"public", PUBLIC}, {"private", PRIVATE}, {"derive", DERIVE},
		{"unwrap", UNWRAP}, {"create", CREATE}, {"copy", COPY}, {"set", SET}, {"key", KEY},
	};
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		if (strcmp(word, calls[i].name) == 0)
			return calls[i].calls;
	give_up("mask: unknown call", word);
}

static enum verb parse_verb(const char *word, bool read) {
	if (strcmp(word, "refuse") == 0)
		return REFUSE;
	if (!read && strcmp(word, "only") == 0)
		return ONLY;
	if (!read && strcmp(word, "force") == 0)
		return FORCE;
	if (read && strcmp(word, "as") == 0)
		return AS;
	give_up("mask: unknown verb", word);
}

/* parse_attribute reads ATTR VERB [VALUE] [CODE], which begin at one word. */
static void parse_attribute(const struct line *l, int calls, int begin) {
	need(l, begin + 2);
	room(mask.facts);
	struct fact *fact = &mask.fact[mask.facts++];
	*fact = (struct fact){.calls = calls, .type = name(l->word[begin])};
	fact->verb = parse_verb(l->word[begin + 1], calls == READ);
	if (fact->verb == REFUSE) {
		fact->code = code(l, begin + 2, CKR_ATTRIBUTE_TYPE_INVALID);
		return;
	}
	need(l, begin + 3);
	fact->value = name(l->word[begin + 2]);
	fact->code = code(l, begin + 3, CKR_ATTRIBUTE_VALUE_INVALID);
}

static void parse_longest(const struct line *l) {
	need(l, 3);
	bool any = false;
	for (int f = F_SIGN; f <= F_SIGN_UPDATE; f++)
		if (fnmatch(l->word[1], functions[f].name, 0) == 0) {
			mask.longest[f] = name(l->word[2]);
			mask.too_long[f] = code(l, 3, CKR_DATA_LEN_RANGE);
			any = true;
		}
	if (!any)
		give_up("mask: neither C_Sign nor C_SignUpdate", l->word[1]);
}

static void parse_hmac(const struct line *l) {
	need(l, 2);
	mask.hmac = true;
	mask.hmac_keygen = name(l->word[1]);
}

static void parse_login(const struct line *l) {
	need(l, 2);
	if (strcmp(l->word[1], "user:password") != 0)
		give_up("mask: unknown form of PINs", l->word[1]);
	mask.user_password = true;
}

static void parse_hidden(const struct line *l) {
	need(l, 2);
	const char *value = strchr(l->word[1], '=');
	if (value == NULL)
		give_up("mask: not NAME=VALUE", l->word[1]);
	char name[MAX_NAME] = "";
	snprintf(name, sizeof name, "%.*s", (int)(value - l->word[1]), l->word[1]);
	const char *set = getenv(name);
	mask.hidden = set == NULL || strcmp(set, value + 1) != 0;
}

static void parse_fact(const struct line *l) {
	const char *kind = l->word[0];
	if (strcmp(kind, "absent") == 0)
		parse_absent(l);
	else if (strcmp(kind, "lacks") == 0)
		parse_mechanisms(l, mask.lacks, &mask.lacking);
	else if (strcmp(kind, "knows") == 0)
		parse_mechanisms(l, mask.knows, &mask.known);
	else if (strcmp(kind, "number") == 0)
		parse_number(l);
	else if (strcmp(kind, "hmac") == 0)
		parse_hmac(l);
	else if (strcmp(kind, "kdf") == 0)
		parse_kdf(l);
	else if (strcmp(kind, "in") == 0 && l->words > 1)
		parse_attribute(l, parse_call(l->word[1]), 2);
	else if (strcmp(kind, "read") == 0)
		parse_attribute(l, READ, 1);
	else if (strcmp(kind, "longest") == 0)
		parse_longest(l);
	else if (strcmp(kind, "hidden") == 0)
		parse_hidden(l);
	else if (strcmp(kind, "login") == 0)
		parse_login(l);
	else
		give_up("mask: unknown kind of fact", kind);
}

void mask_open(void) {
	const char *path = getenv("FAULTSHIM_MASK");
	if (path == NULL)
		return;
	FILE *file = fopen(path, "re");
	if (file == NULL)
		give_up("cannot open the mask", path);
	char text[LONGEST_LINE];
	while (fgets(text, sizeof text, file) != NULL) {
		struct line l = {.words = 0};
		char *save;
		text[strcspn(text, "#")] = 0;
		for (char *w = strtok_r(text, " \t\r\n", &save); w != NULL; w = strtok_r(NULL, " \t\r\n", &save)) {
			if (l.words == MAX_WORDS)
				give_up("mask: too many words", w);
			l.word[l.words++] = w;
		}
		if (l.words > 0)
			parse_fact(&l);
	}
	fclose(file);
	mask.any = true;
}
