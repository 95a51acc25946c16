#include "stats.h"

void stats_add(struct stats *stats, double value)
{
    double before = value - stats->mean;

    if (stats->count == 0 || value < stats->least)
        stats->least = value;
    if (stats->count == 0 || value > stats->most)
        stats->most = value;
    stats->count += 1;
    stats->mean += before / stats->count;
    stats->squares += before * (value - stats->mean);
}

double stats_variance(const struct stats *stats)
{
    return stats->count < 2 ? 0.0 : stats->squares / (stats->count - 1);
}
