"""The front ends: what the application touches, and what of ours runs in its processes.

There are three ways in, and one thing behind them. `Writer.append` takes a text, `SpoolHandler` a record of the
logging module, `CloudWatchSpoolSink` an entry of fapilog. All end in one `write()` to the spool, in the thread that
logs. The words are explained in `cwsink`, the files in `cwsink.spool`.

Write-through
-------------

* **The append is done by the thread that logs.** There is no queue, no thread and no lock of ours. So a record is
  safe when the call returns, a signal handler or `__del__` may log in the middle of an append, and a fork may come at
  any moment.
* **`Writer.append` never raises.** True: the record is in the spool. False: it was refused, and counted by reason in
  memory, until a loss marker can be written (`losses`). The common case is spelled out in one function; whatever is
  odd (bytes, a time that is none, a look that is due, a fork) goes the long way.
* **fapilog's pipeline runs inline** (`inline`). fapilog would put each entry into a queue, and a thread would take it
  out a quarter of a second later: a kill loses what is in between. So the pipeline of a logger that has our sink (its
  filters, enrichers, redactors, processors) runs in the call. Each of its coroutines is driven by one `send(None)`:
  one that never waits is at its end then. Whether a plugin might wait is read in its code before it is called. If it
  might, the logger keeps fapilog's queue, and one line says what that costs. `pipeline="queue"` is the same for all.
* **Other sinks of such a logger** get the finished entry through fapilog's queue. A full queue never delays the
  caller.
* **`on_full="block"`** waits in the thread that logs. In an event loop the async facade awaits room instead, and the
  sync one hands the entry to fapilog's queue, since it may not stop the loop.
* What is ugly: the hook is in fapilog's private names. All of them are in `inline`, `fapilog_repairs` and
  `fapilog_names`, and each is looked for first. A fapilog that lacks one keeps its queue.

For loggers that keep the queue, `fapilog_repairs` mends what fapilog loses by itself: records at an exit, and all
that a forked child logs.

Starting the flusher
--------------------

At its first append a process attaches: it takes a shared flock on attached.lock, once for each spool (`presence`).
Then it looks, and looks again at an append once a second:

```text
does anybody lead this spool? --yes--> done
   | no
is the root's flusher lock free? --no--> one is about to, or serves another spool here and will see this one
   | yes, and now it is ours
posix_spawn of /bin/sh, which starts the guard and ends; the guard inherits the lock, and we close ours
```

This takes some 2 ms, and happens in an append. The guard is a child of nobody here, so the application never sees a
SIGCHLD of its end. It is a fresh Python with the application's `sys.path`, but without its `site`, tracers and PYTHON
variables. If none can be started, one line says so, records wait in the spool, and it is tried again after 10 s.

`flusher="external"` starts none. Below `cwsink run` one is started only if that one's flusher stays away for 5 s.

The same look may offer another flusher: if ours is of a newer version, or has other credentials than the one that
fails. It asks itself that every 5 s; each offer doubles the time to the next one, up to 600 s.

Fork
----

A child has its parent's descriptors closed by a hook (`cwsink.spool`). Then its writers become other producers, count
no refusals but their own, and attach at their next append. A child that never logs is attached to nothing.

Exit
----

`process_exit` is called by `atexit`, by the finalizers of multiprocessing and billiard, and by Celery's signal, since
none of them runs in every kind of process. In this order: fapilog's queues are emptied, the last loss markers are
written, each spool is let go of.

* A process that is not the last one attached leaves at once. The kernel tells, by an exclusive flock on
  attached.lock.
* The last one waits until what is there is delivered, for at most `drain_timeout_seconds` for all spools together. It
  does not wait if the leader says that it cannot deliver (no credentials, denied, out of reach), with
  `flusher="external"`, or below `cwsink run`, which waits itself.
* What is left is said in one line. The flusher tries for as long again.

Nothing depends on any of this. If a process is killed, or ends by `os._exit`, the kernel drops its flock; the flusher
sees that nobody is left, and delivers.

Being a guest
-------------

* No thread, no child that stays, no signal handler, no botocore, filelock or rich: the application looks as without
  us.
* What changes all the same: there are hooks of `os.register_at_fork` and `atexit`, a few modules of ours with
  msgspec, and, with fapilog, FAPILOG_CORE__SIGNAL_HANDLER_ENABLED=false unless it is set.
* Only constructors raise, `ConfigError` and `SpoolError`, before anything was logged. After that, trouble is a
  counter with a reason, and one line a minute on stderr (`cwsink.diagnostics`). It is never a log record: that would
  come back to us.
* AWS Lambda is refused: it freezes the process between two calls, and throws the disk away.
"""
