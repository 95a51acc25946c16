#include <stdio.h>

#include "stats.h"

static int failed, passed;

static void check(const char *name, double got, double expected)
{
    double distance = got > expected ? got - expected : expected - got;

    if (distance < 1e-9) {
        passed += 1;
        printf("ok   %s\n", name);
    } else {
        failed += 1;
        printf("FAIL %s: %g, not %g\n", name, got, expected);
    }
}

int main(void)
{
    const double values[] = {2, 4, 4, 4, 5, 5, 7, 9};
    struct stats stats = {0};
    struct stats far = {0};

    check("variance of nothing", stats_variance(&stats), 0);
    for (unsigned at = 0; at < sizeof values / sizeof *values; at++)
        stats_add(&stats, values[at]);
    check("count", stats.count, 8);
    check("mean", stats.mean, 5);
    check("variance", stats_variance(&stats), 32.0 / 7);
    check("least", stats.least, 2);
    check("most", stats.most, 9);
    for (int at = 0; at < 3; at++)
        stats_add(&far, 1e9 + at); /* the textbook formula loses these */
    check("variance far from zero", stats_variance(&far), 1);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
