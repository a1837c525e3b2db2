"""What `cwsink COMMAND --help` says below the options: examples, states, exit codes. It is written for 80 columns."""

from __future__ import annotations

PATH = """\
a spool (the directory with the file FORMAT), or a directory that holds several. The default is where a
worker would put its spool: CWSINK_SPOOL_DIRECTORY, FAPILOG_CLOUDWATCH__SPOOL_DIRECTORY, or the first of
/var/lib/cwsink, ~/.local/state/cwsink, /var/tmp/cwsink-<uid>"""

EXIT_CODES = """\
Exit codes: 0 done, 1 not done (stderr says why), 2 usage"""

MAIN = f"""\
examples:
  cwsink status                    is everything delivered? if not, why?
  cwsink check --max-age 2m        one line and an exit code, for monitoring
  cwsink top                       all spools on one screen
  cwsink doctor                    why do my logs not arrive?
  cwsink tail -f --level WARNING   what the workers log, as they log it
  cwsink flush --once              deliver what is there, then exit
  cwsink run -- gunicorn app:app   a command, and one flusher for its workers
  cwsink replay --all              send what other hosts left behind
  cwsink replay --dead-letters     a second chance for what was refused
  cwsink verify --since 24h        has CloudWatch all that was delivered?
  cwsink export --since 2h         records as JSON, delivered ones as well
  cwsink alarms                    a template of alarms and a dashboard
  cwsink metrics --listen          OpenMetrics for Prometheus
  cwsink manual settings           a page of the manual
  cwsink demo                      see it survive kills and outages
  python -m cwsink.testing         a CloudWatch of your own, to try it with

cwsink COMMAND --help tells more.
{EXIT_CODES}
"""

STATUS = f"""\
states:
  idle          nothing is pending: all is delivered or settled otherwise
  delivering    records are pending, and the leader is sending them
  retrying      the last send failed; the leader tries again until it succeeds
  circuit_open  many sends failed in a row; one try every 15 to 30 s
  stalled       a process leads, but is stopped or has not moved for 30 s
  no_leader     records are pending and no process leads. They are sent when a
                worker logs again, or by `cwsink flush --once PATH`

The books add up, in records:
  appended = delivered + dead_lettered + evicted + pending

This command only looks. It writes nothing, needs no leader, and as root works
on another user's spool.

examples:
  cwsink status
  cwsink status /var/lib/cwsink --watch
  cwsink status --json | jq '.spools[] | {{path, state, pending}}'

{EXIT_CODES};
1 also if there is no spool, or if one cannot be read.
"""

CHECK = """\
It reads files only, so it answers while everything else is stuck. Losses are
those since the spool was made: records that were refused or evicted. Let a
readiness probe, a cron job or Nagios call it, and never a liveness probe: a
restart does not bring CloudWatch back.

examples:
  cwsink check --max-age 2m --no-losses
  exec: {command: [cwsink, check, --max-age, 5m]}      a probe of Kubernetes

Exit codes: 0 all is well, 1 warning, 2 critical (records are lost, or will be;
a PATH of no spools; or wrong usage)
"""

DOCTOR = """\
It asks each question behind "my logs do not arrive", and prints a line for
each: OK, WARN, WRONG, or ? for what cannot be told from here. It changes
nothing. What is tried in AWS has no effect: an event of 1970 is offered, which
CloudWatch refuses for its time. Run it as the workers' user, in their
container, with their variables. With a COMMAND it sees what that would: `env`,
`sudo -u` and their like before the server are followed. COMMAND is not run.

examples:
  cwsink doctor
  cwsink doctor --probe                        send one record, read it back
  cwsink doctor -- env CWSINK_REGION=eu-west-1 gunicorn app:app
  cwsink doctor --json |
      jq -r '.findings[] | select(.verdict == "wrong") | .advice'

Exit codes: 0 nothing is wrong, 1 something is wrong, 2 usage
"""

TOP = f"""\
Keys: q quit, s sort, j k or the arrows choose a spool, t or Enter shows its
records, Esc goes back, h help.
Without a terminal it prints one picture, as with --once.

{EXIT_CODES};
1 also if there is no spool, or if one cannot be read.
"""

METRICS = f"""\
It reads files only, so it works while everything else is stuck. It needs the
extra: pip install 'cwsink[metrics]'.

examples:
  each minute by cron:
    cwsink metrics --textfile /var/lib/node_exporter/cwsink.prom
  a service that Prometheus asks:
    cwsink metrics --listen 127.0.0.1:9464

{EXIT_CODES}
"""

ALARMS = f"""\
The template wants metrics of cwsink itself, which the setting self_metrics=emf
has the leader send. Its five alarms: behind, losing, no data, dead letters,
throttled.

examples:
  cwsink alarms > cwsink.yaml
  aws cloudformation deploy --template-file cwsink.yaml \\
      --stack-name cwsink-shop \\
      --parameter-overrides Group=/shop/prod App=shop Topic=arn:aws:sns:...
  cwsink alarms --prometheus > /etc/prometheus/cwsink.yaml

{EXIT_CODES}
"""

TAIL = f"""\
Without -n it prints the records that are not delivered yet. With --since, also
the delivered ones, oldest first: those that are still on disk (see
keep_delivered). With --level, records that have no level (plain text) are left
out.

examples:
  cwsink tail -f                             all spools, as records are appended
  cwsink tail -n 50 --level error            the last 50 errors on disk
  cwsink tail --since 2h --logger 'shop.*'   what was logged there
  cwsink tail -f --grep order_id=17 /var/lib/cwsink
  cwsink tail --json | jq -r .message        {{"id", "timestamp_ms", "message"}}

{EXIT_CODES}
"""

MANUAL = f"""\
examples:
  cwsink manual                      which pages there are
  cwsink manual settings             a page
  cwsink manual behaviour | less     as it is, without colours

{EXIT_CODES}
"""

FLUSH = f"""\
It delivers as a sidecar or as a unit of systemd. While it leads, workers start
no flusher. With CWSINK_FLUSHER=external they never start one. The spool's
FORMAT says where to send, its settings.json says how, and credentials are found
as boto3 finds them.

TERM: a process manager sends it to a sidecar and to the application at once. So
wait until no process is left that has logged (at most 20 s), and deliver
meanwhile. Then deliver the rest (at most drain_timeout_seconds), and exit.
Ctrl-C: deliver what is there, and exit. A second TERM or Ctrl-C: exit now. No
record is lost by that.

examples:
  cwsink flush /var/lib/cwsink             every spool there, until TERM
  cwsink flush --once                      what crashed workers left
  cwsink flush --once --timeout 30 SPOOL   exit 1 if it takes longer

{EXIT_CODES}
"""

RUN = """\
It is meant as the entry point of a container, and works as process 1. The
flusher is a process of its own, and is started again if it dies. The processes
of the command only append: they start a flusher only if this one stays away for
5 s, and do not wait for delivery at their end. stdin, stdout, stderr, working
directory, signals and inherited descriptors are as if the command was started
without cwsink.

Signals forwarded to the command: TERM INT HUP QUIT USR1 USR2 WINCH TTIN TTOU.
After its end, the flusher delivers what is left for at most --drain-timeout. A
second TERM or Ctrl-C cuts that short. stderr says what stays in the spool. If a
gunicorn is upgraded by USR2, the new master is the command from then on
(Linux). Other processes that the command leaves behind are not waited for.

examples:
  cwsink run -- gunicorn app:app --workers 4
  cwsink run --drain-timeout 3 -- celery -A tasks worker
  cwsink run --spool /data/spool -- python -m myapp
  CMD ["cwsink", "run", "--", ...]                        in a Dockerfile

Exit codes: the command's; 128 + N if it died of signal N; 127 not found, 126
not executable, 2 usage
"""

REPLAY = f"""\
An orphan is a spool with pending records, without a leader, and without any
process left that has logged there. Its host or container may have another name
now, or the configuration was changed. A replay sends the records to the log
group and stream in the spool's FORMAT. It leaves a spool alone that has a
leader. It remembers at once what was sent, so an interrupted replay goes on
where it was. Records keep their own times. The emptied spool takes a few KiB.

dead letters:
What CloudWatch refused is kept in dead_letters.jsonl of its spool. A replay
appends these records to the spool again, and takes them out of that file. Then
the leader sends them, or `cwsink flush --once`. A replay that is killed in
between may send some of them twice, and loses none.

reasons:
  too_old    more than 14 days: only with --restamp
  too_new    more than 2 hours ahead of CloudWatch's clock
  expired    older than the group's retention
  oversize   if it is short enough by now; or if named, which helps with
             oversize=truncate or split
  poison     CloudWatch found it invalid
  corrupt    damage, which holds no record: never

--restamp sends too_old, too_new and expired with the present time. Their own
time goes inside, before plain text as [2023-11-14T22:13:20.000Z], in a JSON
object as
  {{"_cwsink": {{"original_timestamp_ms": 1700000000000,
               "original_time": "2023-11-14T22:13:20.000Z"}}}}

examples:
  cwsink replay --all --dry-run            which orphans there are
  cwsink replay --all --rate 500           send at most 500 records a second
  cwsink replay SPOOL                      as `flush --once SPOOL`, but not what
                                           another process leads
  cwsink replay --dead-letters --dry-run   how many, and why
  cwsink replay --dead-letters --restamp   also what is too old by now
  cwsink replay --dead-letters --reason poison SPOOL     nothing but these
  cwsink replay --dead-letters --clear SPOOL             throw away what is left

{EXIT_CODES};
1 also if a spool is full. Live records come first, and the rest of the letters
stays.
"""

VERIFY = f"""\
It reads the log streams back, and compares each event, by its time and a hash
of its message, with what was delivered according to the history of the spool
(keep_delivered). Events that were delivered in the last 10 minutes may be shown
late: it waits. It needs one more IAM action, logs:GetLogEvents. Interrupted,
the same command goes on. It never runs by itself.

examples:
  cwsink verify --since 24h
  cwsink verify --since 26h --until 2h --json

{EXIT_CODES};
0 only if nothing is missing, and each spool at PATH has a history. 1 also if
nothing of what was delivered then is in the history any more
"""

EXPORT = f"""\
A record is in its place if it is less than 10,000 records out of order. Times
are those of the events. A line is {{"id", "timestamp_ms", "message"}}.

examples:
  cwsink export --since 2h > events.jsonl
  cwsink export --since 26h --until 2h -o yesterday.jsonl.gz

{EXIT_CODES}
"""
