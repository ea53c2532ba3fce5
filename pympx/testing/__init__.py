"""Testing tools: a pytest plugin that runs a test on n ranks, and a runner that dumps the stacks of ranks that hang."""
