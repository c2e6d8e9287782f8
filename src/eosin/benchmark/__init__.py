"""Encoders x tasks x protocols x label fractions x seeds: cached, resumable result records."""

from eosin.benchmark.config import BenchmarkConfig
from eosin.benchmark.reading import read_failures, read_results
from eosin.benchmark.record import Comparison, Failure, Record, Standing
from eosin.benchmark.run import run_benchmark
from eosin.benchmark.table import print_table

__all__ = [
    "BenchmarkConfig",
    "Comparison",
    "Failure",
    "Record",
    "Standing",
    "print_table",
    "read_failures",
    "read_results",
    "run_benchmark",
]
