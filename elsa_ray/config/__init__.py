"""What a config file may say: one file a section, strict, with units."""
