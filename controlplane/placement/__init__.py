"""The leader loop: snapshot → scheduler.plan → policy → assignments; explains what waits."""
