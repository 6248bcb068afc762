"""Rules timed beside what users would otherwise call, training steps of networks, and random convolutions."""

from vjplib.bench.reasons import Measurement as Measurement
from vjplib.bench.reasons import measure_reason as measure_reason
from vjplib.bench.rules import Growth as Growth
from vjplib.bench.rules import Row as Row
from vjplib.bench.rules import bench_growth as bench_growth
from vjplib.bench.rules import bench_rule as bench_rule
from vjplib.bench.timing import Cost as Cost
