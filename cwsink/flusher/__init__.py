"""The flusher: it reads spools and sends their records, in a process of its own.

Think of it as three things, one within the other. A *process* looks after the spools of one root. In it an *election*
for each spool, a thread, tries to get that spool's lease. With the lease it *leads*: it reads, delivers, commits and
reclaims. The words are explained in `cwsink`, the files in `cwsink.spool`.

Nothing is remembered that the spool does not hold. A leader that takes over reads the cursor, and goes on behind it.

Chunk, request, outcome, commit
-------------------------------

```text
take over: epoch + 1 in the cursor
  gather a chunk --> cut it into requests --> send each until it is settled --> commit --> reclaim
       ^                                                                                      |
       '--------------------------------------------------------------------------------------'
```

1. **Gather** (`collector`). Frames become events until the next one would not fit into one call: `max_batch_events`,
   1,048,576 bytes with 26 for each event. Events that are too long are set aside, cut or split, as `oversize` says.
   Damage is noted. A loss marker becomes a notice. The chunk also knows up to where it settles each segment.
2. **Wait for more**, until `batch_size` events are there, or the chunk is full, or the first has waited
   `batch_timeout_seconds`. Records that a new leader finds have waited long enough. A writer may ask to hurry.
3. **Cut** (`chunk`, pure). A request holds one stream, spans less than 24 hours, and is in order of time, then of
   arrival. Nearly always there is one. The cut depends on the records and settings only, so the next leader makes the
   same, and goes on behind the last event that is committed. A checksum of their sizes, the cursor's `shape`, proves
   that they are the same; if they are not, it sends the chunk from its beginning.
4. **Send** (`delivery`). Before each call the leader proves that it still leads. A request is not changed while it is
   tried, and there is no last try. An outcome is one row of one table in flusher/outcome.py: what it means, what the
   leader does, what the operator is told. No outcome drops a record: the worst that can happen to one is a dead
   letter. CloudWatch refuses a request as a whole, and does not say for which event, so the leader sends its halves,
   and their halves. An event that is refused alone becomes a dead letter only if CloudWatch has taken something else:
   an earlier piece, or the *canary*, a line of our own. If it refuses the canary too, a setting is wrong: all stays
   in the spool until somebody has corrected it.
5. **Commit**. Offsets, epoch and ledger go into one slot of the cursor, in one write. A chunk of several requests is
   committed after each of them, and a refused request after each piece that is settled. The slot then says how many
   requests are done, and how many events of the next one. A commit that fails (a full disk, an I/O error) is
   repeated, and nothing is sent before it succeeds.
6. **Reclaim** what is final and committed to its end.

A call is believed to have succeeded only with a 200 and AWS's request id. It ends within `connect_timeout_seconds` +
`read_timeout_seconds` in all, and at most 1 MiB of its answer is read (`deadline`): a server that answers a byte a
second, or without end, is a lost answer. A helper that gives credentials gets 13 s (`helper`). What is told of an
answer has no secret in it (`confidential`). botocore does not retry for us: it would send where the lease cannot be
checked. After a failure a leader waits a random share of a time that doubles up to 20 s; for credentials and
permissions 5 to 10 s; with the circuit open 15 to 30 s. Once throttled it also sends less often.

Beside this it looks for losses to say (`spool.alerts`), may send metrics of itself (`self_metrics`), and syncs the
spool under `durability="host"`, by a thread while it waits for an answer (`durability`).

Fenced
------

The lease can be lost without a death: somebody removes its file, or puts another one in its place. So before each
call, commit and unlink the leader looks: is it the process that took the lock, is the lock's file still the one it
locked, is the cursor's epoch its own? If not, it is fenced. It drops everything and stands for election again. An I/O
error proves nothing (`proof`): before a commit the leader looks again. A commit compares the epoch once more, under the
cursor's lock. So a request that was under way when the leader was superseded may still arrive, and is repeated by the
next leader; nothing else can be.

Election
--------

`Election` is the only way to lead a spool, for every host of it: the flusher that starts by itself (kind `own`), the
one of `cwsink run` (`run`), `cwsink flush` (`service`), and `flush --once` and `replay` (`once`). A leader that adopts
orphans has an election for each of them, one after the other.

* It tries the lease every 0.25 s, and up to half as long again. The kernel frees it the moment its holder dies.
* It reads how to send from the spool (settings.json and FORMAT). Its environment is that of the process that happened
  to start it, and gives credentials only. (A spool without settings.json is sent as the environment says.)
* If a writer leaves other settings, it ends after the request under way, and leads again with these, in a new epoch
  and under the same lease.
* What goes wrong is said, with the spool's name, and tried again after 1 s. A damaged spool, or one of a newer cwsink,
  keeps nobody from serving its neighbours. If the spool was removed and made anew, it leads the new one.

A process may look after hundreds of spools. So at most 32 elections run at once, by turns (`turns`). The other spools
*rest*: they take no thread and no client, and keep their lease. As soon as one has grown it is led again.

The guard, and the flusher that starts by itself
------------------------------------------------

```text
a writer --/bin/sh--> guard --fork--> flusher      both hold the root's flusher lock, which the writer has handed over
```

The guard loads all that delivering needs, and forks. So a flusher that is killed is followed within moments by one
that has all of it. The guard has no thread, holds no spool and sends nothing. Flushers that die within a second are
forked again after 0.1 s, then twice that, up to 30 s. If the guard is killed the flusher goes on; if both are, the
next append starts both.

Ten times a second (with more than 12 spools less often) the flusher looks at the root. It has an election for each
spool of its user in which a process is attached, or to which one has appended since the guard began. A spool that was
left behind before that is an orphan, and is not touched, unless `adopt_orphans` says so.

Giving way, and handing over
----------------------------

* **To a newer version.** A writer of a newer cwsink starts a guard that waits for the lock, and says so in
  `flusher-<user>.next`. The flusher looks there once a second, leaves its spools, and ends. Any writer asks for the
  same if the flusher's own files were removed, or if its lines reach nobody any more.
* **To whoever stands.** A leader that cannot deliver gives its lease to a process that stands for it (`election`).
* **To a writer with other credentials or another network.** If the leader cannot deliver, such a writer starts a guard
  that waits for the flusher's lock, with the reason `trouble`, and the flusher ends. If it can deliver other spools, it
  only gives up the leases of those that fail, as `cwsink run` and `cwsink flush` do, and the new one is its guest.
* **To itself.** If its own files were replaced, the guard begins anew with the new ones (`execve`), with the same pid,
  and keeps the lock meanwhile.
* **To the workers of an orphan.** An adopter sends at most 1,000 records a second, for at most 60 s at a time. It looks
  every 0.25 s whether a process is attached again, and leaves then.
* **To another host.** A process that gets the lease, and finds the fresh mark of another boot, gives it back.

The end
-------

A signal does not end the flusher, because workers may still log when a whole unit is told to end. The signal only
skips the 2 s below. The flusher ends when it is not needed any more.

* Nobody is attached to a spool any more: send what is there at once. All is delivered: wait 2 s for the next program,
  then leave the spool. Not delivered in `drain_timeout_seconds`: say how many records stay, and leave it.
* No spool is left: free the lock, look once more (a writer may have found it taken, and started nobody), end.
* The lock's file or the root is gone: end at once.

A request that is under way when it has to leave is waited for, for 3 s. Then the process ends without it. It lets go
of a stderr that is a pipe, as soon as a reader might wait for its end. It holds no other file of the application, and
no directory.

What a leader's death repeats
-----------------------------

* Killed before the call: nothing.
* Killed between the call and the commit: the events of that request, once.
* Killed in the middle of a commit: the slot is torn, the other slot counts. The same request, once.
* Killed between commit and unlink: nothing. The next leader unlinks.
* Killed between a dead letter and the commit: the letter is there twice, and counted once.
* Killed while it looks for the event that CloudWatch refuses, by halves: only the half that was under way, and
  perhaps the canary. Each half that CloudWatch takes is committed at once.

Also a lost answer repeats its request. If a commit fails, its request is repeated only if the leader has to leave
before the commit succeeds. `resent` in the ledger counts what a leader has sent again although it may have
arrived already.
"""
