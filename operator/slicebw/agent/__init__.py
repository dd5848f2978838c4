"""The agent: the reconciler that runs on every node, and the ports through which it reaches the rest of the world."""
