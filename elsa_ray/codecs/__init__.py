"""What touches a payload: codecs, their chain, and the wire format."""
