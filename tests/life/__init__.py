"""Constrained models live like ordinary models: each thing that is done to a module, for each kind and engine."""
