"""What people and machines are shown of spools, read from their files alone.

`screen` is `cwsink status`, `reasons` says why records wait, `openmetrics` has the numbers for Prometheus, and `output`
writes the files that a user names. `cloudformation.yaml` and `prometheus.yaml` are the alarms that `cwsink alarms`
prints. All of it goes by `cwsink.spool.stats`, so it works while everything else is stuck. What stderr is told of
losses is in `cwsink.spool.alerts`, because an application says that.
"""
