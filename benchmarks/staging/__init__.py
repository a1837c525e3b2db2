"""What the benchmarks of whole applications put on stage: ways to log, applications, processes, a fleet."""
