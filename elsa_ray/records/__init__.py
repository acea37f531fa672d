"""What a run leaves behind: its folder, summary, tables, adapter and report."""
