"""The agent's two API ports over a folder of YAML: it reads the desired state, and writes reports under ``status``."""
