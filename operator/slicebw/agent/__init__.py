"""The agent: the reconciler on every node, and the ports it needs of the world."""
