"""Where the work is done: one orchestration, in this process or on Ray actors. Only this package imports ray."""
