"""Runs fapilog's pipeline in the thread that logs: a record is in the spool when the call returns.

fapilog puts each record into a queue, and a thread with an event loop takes it out a quarter of a
second later. A process that is killed in between loses the record. Here the thread that logs does
the work of that thread:

| module        | what it is                                                          |
|---------------|---------------------------------------------------------------------|
| `seam`        | whether this fapilog can be written through, and the hook into it   |
| `takeover`    | puts a pipeline into a logger that has our sink                     |
| `pipeline`    | one logger's stages, from the prepared payload to the sinks         |
| `stages`      | filters, enrichers, redactors and processors, each as fapilog's own |
| `harmless`    | makes a record safe to encode in C                                  |
| `measuring`   | fapilog's metrics, without a thread for each call                   |
| `outlets`     | which sinks get a record, now or from fapilog's queue               |
| `handover`    | a record on its way through fapilog's queue, and its worker there   |
| `giving_back` | gives a logger back to fapilog's queue, and says why                |
| `waiting`     | tells whether a plugin could suspend                                |
| `enrichers`   | fapilog's two default enrichers, mended and made cheap              |

Together with `fapilog_repairs`, these are the only users of fapilog's private names.
"""
