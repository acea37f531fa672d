"""How adapters are brought together."""
