"""The agent's feed and sink without a cluster: reads manifests from a folder, writes reports below its ``status``."""
