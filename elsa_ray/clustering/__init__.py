"""Which client belongs to which edge."""
