/* A check proves one promise of the configuration by using it. */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stddef.h>

struct check {
	const char *name;
	/* NULL if it holds, otherwise the reason; run() is called in a process of its own. */
	const char *(*run)(const void *argument);
	const void *argument;
};

/* Each ends with an entry without a name. */
extern const struct check system_checks[];
extern const struct check container_checks[];
extern const struct check file_checks[];
extern const struct check device_checks[];
extern const struct check network_checks[];
extern const struct check netfilter_checks[];

/* Formats a reason. */
const char *fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* "what: error text of errno". */
const char *fail_errno(const char *what);

/* True for success, after which run() goes on; the failing call is the reason otherwise. */
#define TRY(call)                                   \
	do {                                        \
		if ((long)(call) < 0)               \
			return fail_errno(#call);   \
	} while (0)

/* Files of a few bytes, as /proc, /sys and cgroups have them. A reason or NULL. */
const char *write_file(const char *path, const char *text);
const char *read_file(const char *path, char *text, size_t size);
bool file_has_word(const char *path, const char *word);

/* Checks of their own: the file named by the argument exists; it holds a word. */
struct word {
	const char *path, *word;
};
#define WORD(file, text) &(const struct word){ file, text }
const char *exists(const void *path);
const char *holds(const void *word);

/* Runs body in a child and returns its wait status, or -1. */
int in_child(int (*body)(void));

#endif
