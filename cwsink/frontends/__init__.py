"""The front ends: the code of cwsink that runs in the application's processes.

`Writer.append` takes a text, `SpoolHandler` a record of the logging module, `CloudWatchSpoolSink` an entry of fapilog,
`cwsink.structlog` and `cwsink.loguru` what their libraries give them. All end in one `write()` to the spool, in the
thread that logs. The words are explained in `cwsink`, the files in `cwsink.spool`.

Write-through
-------------

* **The append is done by the thread that logs.** There is no queue, no thread and no lock of ours. Therefore a record
  is safe when the call returns, a signal handler or `__del__` may log in the middle of an append, and a fork may come
  at any moment.
* **`Writer.append` never raises**, but lets pass what a signal handler raises in the middle of it: a soft time limit
  is meant for the task (`interruption`). True: the record is in the spool. False: the writer refused the record, and
  counts it by reason in the spool before it answers (`losses`). The common case is spelled out in one function.
  Everything else (a message in bytes, a time that is not valid, a check of the segment that is due, a fork) takes a
  longer way.
* **fapilog's pipeline runs inline** (`inline`). fapilog would put each entry into a queue, and a thread would take it
  out a quarter of a second later: a kill loses the entries in between. Therefore the pipeline of a logger that has
  our sink (its filters, enrichers, redactors, processors) runs in the call. Each of its coroutines is driven by one
  `send(None)`, after which a coroutine that never waits has ended. Before a plugin is called, its code is read: might
  it wait? If it might, the logger keeps fapilog's queue, and one line says what that costs. `pipeline="queue"` keeps
  the queue for every logger.
* **Other sinks of such a logger** get the finished entry through fapilog's queue. A full queue never delays the
  caller.
* **`on_full="block"`** waits in the thread that logs. In an event loop the async facade awaits room instead. The sync
  facade may not stop the loop, and hands the entry to fapilog's queue.
* **One thing is ugly**: the hook uses fapilog's private names. All of them are in `inline`, `fapilog_repairs` and
  `fapilog_names`, and each is looked for first. A fapilog that lacks one keeps its queue.

For loggers that keep the queue, `fapilog_repairs` mends two losses of fapilog: the records at an exit, and all
records of a forked child.

Starting the flusher
--------------------

At its first append a process attaches: it takes a shared flock on attached.lock, once for each spool (`presence`).
Then it looks for a leader. Later appends look again, with each check of the ring (every 0.8 s):

```text
does anybody lead this spool? --yes--> done
   | no
is the root's flusher lock free? --no--> a flusher starts now, or serves another spool here and will see this one
   | yes, and now it is ours
posix_spawn of /bin/sh, which starts the guard and ends; the guard inherits the lock, and we close ours
```

The start takes some 2 ms, and happens in an append. The guard is no child of the application, which therefore never
sees a SIGCHLD of its end. The guard is a fresh Python with the application's `sys.path`, but without its `site`,
tracers and PYTHON variables. If no flusher can be started, one line says so, the records wait in the spool, and the
process tries again after 10 s.

With `flusher="external"` a process starts no flusher. Below a living `cwsink run` it starts one only if the
flusher of that stays away for 5 s.

The same look may offer another flusher in the place of the leader: if ours is of a newer version, or if the leader
fails with credentials that differ from ours. The process asks itself that every 5 s. Each offer doubles the time to
the next one, up to 600 s.

Fork
----

In a forked child a hook closes the descriptors of the parent (`cwsink.spool`). Then the child's writers become new
producers. They count only their own refusals, and attach at their next append. A child that never logs is attached to
nothing.

Another user
------------

A server may start as root, and have its workers change to another user. What root has made is closed to them. A
descriptor that is open would do until the segment is full, and then no more. So each check of the ring compares the
process's user with the one that opened the spool. If they differ, the writer opens a spool of the new user: in the
same root if that user may use it, else in the first default root that it may use. One line says where. Root's own
flusher delivers what root has logged; the user's flusher delivers the rest.

Exit
----

No exit hook runs in every kind of process. Therefore `process_exit` is called by `atexit`, by the finalizers of
multiprocessing and billiard, and by Celery's signal. It empties fapilog's queues, then lets go
of each spool, then writes down the last counts of refused records.

* A process asks the kernel for an exclusive flock on attached.lock. If another process is still attached it gets
  none, and leaves at once.
* The last process waits until the pending records are delivered, for at most `drain_timeout_seconds` for all spools
  together. It does not wait with `flusher="external"`, or below a living `cwsink run`, which waits itself.
* It does not wait for what cannot be delivered now (no credentials, denied, out of reach), either. The leader says so,
  or a leader a moment ago, or the process sees it itself before the flusher can (`parting`, `outlook`).
* If records are left, the process says so in one line. The flusher tries for as long again, if one could be started.

No record's safety depends on this. If a process is killed, or ends by `os._exit`, the kernel drops its flock. The
flusher sees that no process is left, and delivers.

Being a guest
-------------

* The application gets no thread, no child that stays, no signal handler, no botocore, filelock or rich from us.
* It does get hooks of `os.register_at_fork` and `atexit`, a few modules of ours with msgspec, and, with fapilog,
  FAPILOG_CORE__SIGNAL_HANDLER_ENABLED=false unless that variable is set.
* Our descriptors have high numbers, never those of stdin, stdout or stderr. An application that closes or replaces one
  loses no record and no byte of its own files: each use after a second, and each close, compares the file.
* Only constructors raise, `ConfigError` and `SpoolError`, before anything was logged. After that, trouble is a
  counter with a reason, and one line a minute on stderr (`cwsink.diagnostics`). It is never a log record, because
  that record would come back to us.
* AWS Lambda is refused: it freezes the process between two calls, and throws the disk away.
"""
