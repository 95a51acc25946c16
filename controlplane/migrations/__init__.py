"""Schema migrations; ``Store.migrate`` runs them on the connection it passes in."""
