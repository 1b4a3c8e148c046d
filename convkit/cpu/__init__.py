"""The CPU backend. Each module registers its implementations when the registry first looks here."""
