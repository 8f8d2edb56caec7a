"""Chaos: a job runs through a whole Millrace while its processes are killed and paused, and every row is compared at
the end. `schedule` and `check` are pure; `stack` owns the processes, `load` what they are asked to do, `facts` reads
what became of it, and `harness` puts them together."""
