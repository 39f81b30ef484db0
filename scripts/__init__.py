"""Tools for developers and operators: checks, benchmarks, the cost model, generated assets. Not part of the product."""
