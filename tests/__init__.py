"""The tests of cwsink. How to run them, and where a change belongs, is in tests/README.md.

`unit` has one module at a time; in `property` Hypothesis draws the input or the whole story; `integration` has real
files, servers and processes; in `faults` something is killed, stopped, starved or damaged at each place where that can
happen; `faults/zoo` has real servers, ended in every way. What they stand on is in `harness`, `conftest` and `faults`:

* a real child process: the fixture `spawn`, with `support.program_calling` and `support.finish`;
* many processes, each there in 10 ms: `warm_forker.WarmForker`; the guard and flusher: `faults/own_processes.py`;
* a CloudWatch behind a socket: the fixture `server`; one in this process, for thousands of leaders: `fake_cloudwatch`;
  moto and LocalStack: `emulator_contract`;
* threads or leaders in an order that the test chooses: `interleave`; loggers of fapilog with plugins: `pipelines`;
* a host whose disk, power and clock the test commands: `simulation`, on which the state machine runs;
* thousands of faults on one small spool: `faults/victim.py`; a death at a call or a bytecode: `faults/failpoints.py`;
* a world of processes with identities, and faults of all kinds upon them: `faults/world`;
* proof that a test notices when a safeguard is missing: a row of `faults/test_mutants.py`.
"""
