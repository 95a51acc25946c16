/* Running statistics over numbers that come one by one. */
#ifndef STATS_H
#define STATS_H

struct stats {
    long count;
    double mean;
    double squares; /* sum of squared distances to the mean */
    double least;
    double most;
};

void stats_add(struct stats *stats, double value);
double stats_variance(const struct stats *stats);

#endif
