"""The agent: the cycle on every node, and the ports it needs of the world."""
