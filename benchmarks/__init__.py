"""How fast and how large Millrace is on this machine: `python -m benchmarks.NAME [--quick] [--json]`, each by itself,
or all of them one after the other with `python -m benchmarks`. Every figure names the machine."""
