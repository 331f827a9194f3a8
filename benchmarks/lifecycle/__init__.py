"""What people do with a module, tried on a constrained one: ours by both engines, and the peers, by the same script."""
