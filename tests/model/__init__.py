"""Model-based tests: one set of rules, a dict-only reference, several drivers."""
