"""The spool: what all processes of a host share, and how they do it without waiting for each other.

Think of the ring as a notebook whose pages are files. All writers write at the end of the newest page. The leader
reads from the oldest page on. It tears a page out when all of it is settled and no writer can write on it any more. The
words are explained in `cwsink`; the bytes are drawn in `frame`, `record`, `segment` and `cursor`.

Constraints
-----------

All the rest follows from these:

* A record is one frame, and a frame is written by one `os.write` to a descriptor that was opened O_APPEND. The kernel
  puts the writes of all processes one after the other: this is the order of the ring, and the only one there is.
* A frame's payload is at most 16 MiB. A segment begins with 576 bytes of header; frames begin at offset 576.
* Numbers of segments begin at 1, grow by 1, and are not used again. The newest segment is never removed, because the
  next number is counted from it. A spool that was made anew begins at 1 once more, so a segment is known by its number
  and its salt.
* A byte that was written is not changed or moved until it is settled. When a write was cut, the part that was written
  is never truncated away: others have appended since.
* A segment is full at `segment_bytes`: as set (up to 16 MiB), else an eighth of `spool_max_bytes`, but 4 KiB to 8 MiB.
  On a small disk it is full earlier: at a sixteenth of what the ring can have of the disk.
* The writer that needs a new segment decides whether there is room, and what is evicted for it. No leader needs to be
  alive for that.
* O_APPEND, flock and `link` are promises of one kernel. So the disk must be local.

Rejected: a memory map under a lock (a stopped holder stops every worker, and a full or cut file is a SIGBUS), a lock
file around each append (some 40 times as slow), SQLite (a stopped transaction stops all), a queue of multiprocessing
(hangs after a few kills, and lives in memory).

The files
---------

| file                   | what it is                               | who writes it, and under which lock             |
|------------------------|------------------------------------------|-------------------------------------------------|
| FORMAT                 | version, spool id, target; no secret     | the writer that makes the spool; never changed  |
| settings.json          | how to send: batches, oversize, role ... | writers, replaced whole; the newest counts      |
| capacity.json          | budget, policy and segment size          | writers, replaced whole (`capacity`)            |
| ring/0000000001.seg    | a segment                                | writers, flock shared for as long as it is open |
| ring/*.tmp             | a segment that is being made             | a writer; a leader removes one that is 60 s old |
| history/               | what is delivered, and by which requests | the leader; a writer removes the oldest         |
| cursor                 | offsets, epoch, ledger; two slots        | the leader, under an flock on it                |
| leader.lock            | the lease                                | the leader, flock exclusive                     |
| leader.json            | what the leader does, what hinders it    | the leader; a writer makes it, with its block   |
| leader.host            | which boot of which host leads           | the leader; it touches the file now and then    |
| leader.next            | asks a leader that fails to give way     | whoever stands for the lease touches it         |
| attached.lock          | who has appended and lives               | each process that appended, flock shared        |
| budget.lock            | who may evict                            | a writer, flock exclusive, tried once           |
| evictions              | totals, and which segment went last      | a writer that has budget.lock                   |
| refusals, told         | totals of refused records; what was said | writers (told: the leader, too), flock on it    |
| dead_letters.jsonl, .1 | what CloudWatch can never take           | leader and `replay`, flock on the spool itself  |
| letters.json           | how many of these were replayed          | `replay --dead-letters`, flock on FORMAT        |
| hurry                  | says that a process waits for delivery   | writers touch it; the leader looks 10 times/s   |

A FORMAT that is damaged is kept as FORMAT.damaged and made anew: the directory's name says which target it was for.
Beside the spools, in the root: `flusher-<user>.lock` (the one flusher that starts by itself) and
`flusher-<user>.next` (a process that wants to take its place), and `host-<user>.json` (what the host is called, if a
stream's name asks for it). `directory` has all the paths.

Lease and cursor decide which process sends, commits and unlinks. leader.json only advises: a process that ends reads
there whether it makes sense to wait, and a writer whether to offer another flusher.

Append
------

1. Encode the record with this writer's producer and next sequence, and the frame with the salt of the open segment.
2. One `os.write`. All of it written: the record is safe, answer True.
3. Written in part, or an error: do what can be done about it, and write once more (a table is in `ring`). If that
   fails too, the answer is FULL (no room) or FAILED (said once a minute). A part that was written stays, and readers
   skip it.

To ask for the file's size at each append would cost a second system call. So a writer *checks* its segment every
0.8 s, or after about 1/32 of a segment in small records (1/64 in large ones). A check asks: does the segment's name
still lead to it, was it cut, is it full, is there a newer one? One thread of a process checks at a time; the others
append on. `Writer.append` has all this once more, spelled out for speed.

If a check finds that the name is gone, somebody has removed the spool, and the answer is GONE. The writer makes the
spool anew, and appends once more what it had written to the removed segment in the last second or two. Some of that may
have been delivered, and then arrives twice: the cursor, which would tell, went with the spool.

Rotate
------

1. Write a header into a temporary file, and `link` that to the next number. `link` fails if the name is there: of
   several writers that rotate at once one wins, and the others find its segment.
2. Reserve the blocks of the segment (`fallocate`), so that a full disk shows here, and not in the middle of a record.
3. Open the newest segment, take its flock shared, and check that its name leads to it. If not, look again: it was
   being removed.
4. Close the old descriptor with its last reference: a thread that has chosen the old segment, and has not written yet,
   still holds one. (Rejected: `dup2` onto the old number. Such a thread would write a frame with the wrong salt.)

A writer never goes back to an older segment. One that was idle finds newer segments at its next check. So it may write
one more record to an old segment, hours after the others have left that.

Read
----

The leader reads each segment that exists, oldest first, each from its own committed offset, a block of 1 MiB at a
time.

* A thread may have written to an older segment after the leader read that, and then gone on to this one. So before the
  leader hands over a block of one segment, it reads the older ones once more, and hands over first what it finds there.
* An evictor locks a segment while it counts, and may be stopped or killed then. So newer ones wait for it, for 2 s at
  most. The lane does not wait.
* A tail that does not parse may be a write that is under way. The leader leaves it for later, and reads newer segments
  meanwhile.
* A range that does not parse and has a valid frame behind it is damage. It is torn if it looks like the beginning of
  a frame, or is zeros; else it is corrupt, and kept in the dead letters. Its bytes are counted either way.
* No writer can append to a final segment, so a tail that does not parse is damage there, too.
* A page that the disk cannot read for 10 s (EIO) is corrupt; what is intact around it is delivered (`disk.read`).
* A segment's header stands in it twice, in two sectors of the disk: if one copy is damaged, the other one gives the
  salt. If both are, nothing in the segment can be proven. It counts as one corrupt range, once writers have gone on to
  the next segment.
* A segment with a newer layout, and the rest of one from a frame on that is newer and not optional, is left for a
  newer cwsink.

Each look at a segment advances or goes on to the next segment, so a reader cannot spin.

**The fresh lane.** After an outage with 8 MiB or more to send, live records must not wait for all of that. So a writer
that starts behind such a backlog, and finds nobody attached, begins a segment, if the newest one holds 64 KiB that is
not settled, and there is room. A leader that is reading an older segment then reads the newest segments, the lane, in
turn with the backlog. But one thread's records must stay in order. So a record leaves the lane early only if all
earlier sequences of its producer were seen in the lane. To have seen sequence 0 is not enough: another thread of that
producer may have drawn 1, been quicker, and written it to the backlog. At a record that may not leave the lane yet, the
leader waits for one look. If an earlier record is still missing then, the lane ends: the rest of it is read in the
order of the ring.

Reclaim, and hollow
-------------------

After a commit, and never before it, the leader unlinks a segment if it is not the newest, is committed to its end, and
is final: the leader has its exclusive flock, so the segment cannot grow while the leader looks at its size. To convert
a shared flock may drop it for a moment, and in that moment a writer may evict the segment. So the leader tries that
only if nothing of the segment is in flight.

If an idle writer has the segment open, the leader *hollows* it instead: it gives the disk blocks back (a hole from the
second page on, where the file system can), and goes on looking into it. The budget counts blocks, so then even 64
idle workers, each with a segment of its own, fill nothing.

With `keep_delivered` it moves into `history/` instead: in no book, in no budget, and the first to go (`history`).

When the ring is full
---------------------

Budget, policy and segment size belong to the spool, not to the writer (`capacity`).

There is room if the blocks of all segments, and one segment more, are within `spool_max_bytes`. If there is none:

* `drop_oldest`: evict the oldest segments that nobody reads or writes, never the newest. `drop_newest`: refuse.
  `block`: refuse, and the front end waits and tries again. A refusal stands for 20 ms (1 ms where something may be
  evicted) before this writer looks for room again.
* Only one process evicts at a time: it has budget.lock, and it may be stopped. So the others append on to the segment
  they have, up to twice `segment_bytes`. Beyond that they refuse.
* An append may not take long, so each counts for 10 ms what is to be evicted, and the next one goes on.
* So the ring can take somewhat more than `spool_max_bytes`, by what is appended to the newest segment between two
  checks, or while an evictor is stopped. For 64 busy writers that is about one segment.

An evictor may be killed at any point, and the totals are exact all the same. First it replaces `evictions` by new
totals, with the number of the segment that they now include; then it unlinks the segment. If it is killed in between,
the segment counts as evicted although it exists: readers pass it by, and the next evictor unlinks it before it counts
another one. On a disk that is full to the last block nothing can be replaced, so it overwrites the totals in the block
that they have. The leader tells the stream how many records were evicted.

If the disk is full before the ring is, that shows when a segment is made (or, on ZFS, in a write): history goes for it,
or under `drop_oldest` a segment. Where nothing can go, as much is reserved as there is. A leader needs a cursor to free
any of it, so the cursor's blocks are reserved before the first segment is made.

What is lost is said once a host (`alerts`).

A refused record is counted in `refusals` before the answer is given. That file has its block, so neither a full disk
nor a kill costs a count. Only there a process may wait for another, for 40 ms.

Fork
----

A flock belongs to the open file, which a forked child shares. If the child kept its parent's locks, no segment would
ever become final. So each descriptor that a writer or a leader keeps is opened by `descriptors.opened`, and a hook of
`os.register_at_fork` closes them all in the child. The child is another producer, and opens its own at its next
append. A fork waits for no thread: what one was just opening the child finds by its file.

C code may fork without running hooks (uWSGI). The kernel then empties a page of memory in the child (MADV_WIPEONFORK,
Linux 4.14), and the child's next append finds it empty. Without such a page the child's records are safe, but their ids
repeat.

Power loss
----------

`durability="process"` (the default): records that the kernel had not written yet are lost, up to about 30 s of them.
`"host"`: the leader syncs segments, their directory and the cursor every 0.5 s, also while it waits for an answer.
leader.json says whether one does. If not, each append syncs its segment before it returns. After a power loss,

* a segment may be shorter than its committed offset. Records appended to it would count as settled, so the first
  writer begins a new segment;
* a segment that was evicted may be back. It counts as evicted, as above, also if it is the newest;
* a segment may end inside its header. It counts as damaged, and the next writer begins a new one;
* the cursor may be an older one: duplicates. With both slots lost reading begins at the oldest segment.

Who may open what
-----------------

* Directories are 0700, files 0600, no symbolic link is followed. A spool of another user, one that others may write
  to, or a root in which another user could put something in a spool's place (`root`) is refused. So two users cannot
  share a spool.
* A root may be given to somebody else later, who exchanges directories under a running process. So what is done by
  name is done from the spool's directory as it was opened, and that must be this user's, as its files must
  (`open_directory`).
* On Linux network and FUSE file systems are refused (`allow_unsafe_filesystem`). If two hosts share one, each may get
  "the" lease. A process that gets it, and finds the fresh mark of another boot in leader.host, gives the lease back.
  Its writers append all the same.
* Each process that may read the files may look (`survey`, `cursor.read`), root at those of all users. That takes no
  lock, so it works while everything else is stuck.
* Another process of this user may keep any lock. Records are appended and delivered all the same, or one line names the
  file (`held_lock`).
* No process is known by its pid, because a pid in one container says nothing in another one. The kernel's locks tell
  which process leads and which are attached.

Not promised
------------

* Anything about a disk on which two hosts append: the kernel of one host does not know of the other one's appends.
* That a lock file may be removed without cost. If leader.lock is removed, a second leader begins soon. The first one
  notices before its next step, but it may have a request under way, and the records of that then arrive twice.
* The count of refusals, if the process is killed while it has no descriptor to write it down, or another one was
  stopped while it wrote its own.
* `durability="host"` in the 3 s after leader and guard were killed, or stopped, and the 0.1 s after a leader has left:
  these records wait for the next append, or for a leader.
* That a dead letter is kept if the disk has no block for it. The loss is counted, and said on stderr.
* That a copy of a spool is noticed. Each machine that starts from an image with a spool delivers what is pending.
* The offsets of more than some 4,000 segments at once: the cursor then keeps those of the oldest 1,000 (duplicates).

A worked example
----------------

`segment_bytes` is 4,096, `max_batch_events` is 50, and each frame has 100 bytes. With segments as small as that a
writer checks before each append. It leaves a segment that has 4,096 bytes or more: after 36 frames, at 576 + 36 * 100 =
4,176.

```text
90 appends       1.seg  576..4176  records 0 to 35     cursor: none
                 2.seg  576..4176  records 36 to 71
                 3.seg  576..2376  records 72 to 89
first request    records 0 to 49 are all of 1.seg, and 14 of 2.seg
commit           cursor: 1.seg 4176, 2.seg 1976        ledger: delivered 50
reclaim          1.seg is final, and committed to its end: unlinked
second request   records 50 to 89
commit           cursor: 2.seg 4176, 3.seg 2376        ledger: delivered 90
reclaim          2.seg is unlinked; 3.seg is the newest, and stays
a kill           a writer is killed 30 bytes into a frame: 3.seg ends at 2406
1 append         of another writer: its frame is 2406..2506
next leader      2376..2406 is torn; the record is delivered
commit           cursor: 3.seg 2506                    ledger: delivered 91, corrupt_bytes 30
```

If the leader had been killed between the first request and its commit, the next leader would have sent records 0 to 49
again, and no others.
"""
