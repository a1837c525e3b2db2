"""fapilog's pipeline in the thread that logs: a record is in the spool when the call returns.

fapilog puts each record into a queue, and a thread with an event loop takes it out a quarter of a
second later. Who is killed in between loses it. Here the thread that logs does that work:

| module      | what it is                                                          |
|-------------|---------------------------------------------------------------------|
| `takeover`  | finds the loggers that have our sink, and puts a pipeline into them |
| `pipeline`  | one logger's stages, from the prepared payload to the sinks         |
| `stages`    | filters, enrichers, redactors and processors, each as fapilog's own |
| `outlets`   | which sinks get a record, now or from fapilog's queue               |
| `handover`  | a record on its way through fapilog's queue, and who reads it there |
| `waiting`   | tells whether a plugin could suspend                                |
| `enrichers` | fapilog's two default enrichers, mended and made cheap              |

Together with `fapilog_repairs`, these are the only users of fapilog's private names.
"""
