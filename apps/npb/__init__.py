"""NAS Parallel Benchmarks EP, CG and IS."""
