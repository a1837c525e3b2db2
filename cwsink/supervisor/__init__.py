"""A command, and beside it one flusher for all that it logs: what `cwsink run -- COMMAND ...` does.

```text
start the command, then the flusher --> forward signals, reap, restart the flusher --> the command ends
   --> the flusher drains, for --drain-timeout at most --> say what stays --> the command's exit code
```

This process, the supervisor, holds no spool and loads neither botocore nor fapilog. It takes signals from a queue
(cwsink.supervisor.signals) and reaps all its children. As process 1 it is also the parent of every orphan of the
container, elsewhere on Linux of those that the command leaves behind (PR_SET_CHILD_SUBREAPER).

A terminal or a service manager may signal all processes at once, while the command still logs. So the flusher has a
session of its own, and ignores such signals. The supervisor tells it to end over a pipe. If the pipe closes, the
supervisor is gone (`ParentPipe` in cwsink.cli.serve).
"""
