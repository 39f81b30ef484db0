"""Measurements that are too slow for the tests. `python -m scripts.benchmarks NAME` runs one."""
