"""Which clients behave alike, which are trusted, and which edge each belongs to."""
