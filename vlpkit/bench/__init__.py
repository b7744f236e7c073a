"""What scripts/bench_data.py measures: shards made on the spot, contestants that read them, and what the start of a run costs.
In the package so that the tests can run it; nothing that trains imports it."""
