"""Datasets, their partition over clients, tokenisation, and where a backbone comes from."""
