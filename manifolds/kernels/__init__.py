"""Private numerics: functions of tensors with derivatives of their own. They know of no manifold."""
