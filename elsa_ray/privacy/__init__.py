"""What a curious edge or an eavesdropper can learn from the payloads that a config sends."""
