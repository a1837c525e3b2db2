"""Parts of `benchmarks.losses` and `benchmarks.fleet`: what they put on stage, and what they compute."""
