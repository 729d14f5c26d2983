/*
 * Prints the frequency of this machine's time stamp counter, which QEMU's software CPU passes to the
 * guest. The shortest of many readings of clock and counter together bounds the error.
 */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct reading {
	double nanoseconds;
	unsigned long long ticks, width;
};

static struct reading read_both(void)
{
	struct reading best = { .width = -1 };

	for (int i = 0; i < 100; i++) {
		unsigned long long before = __rdtsc(), after;
		struct timespec now;

		clock_gettime(CLOCK_MONOTONIC_RAW, &now);
		after = __rdtsc();
		if (after - before < best.width) {
			best.width = after - before;
			best.ticks = before + best.width / 2;
			best.nanoseconds = now.tv_sec * 1e9 + now.tv_nsec;
		}
	}
	return best;
}

int main(void)
{
	struct reading first = read_both(), last;

	nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
	last = read_both();
	printf("%.0f\n", (last.ticks - first.ticks) * 1e6 / (last.nanoseconds - first.nanoseconds));
	return 0;
}
