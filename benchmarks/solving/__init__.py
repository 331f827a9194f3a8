"""Solvers with a stopping rule, beside pymanopt's, on problems with an answer: `python -m benchmarks.solving`."""
