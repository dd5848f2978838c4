"""The agent's two API ports over a folder of YAML: wishes are files in it, reports are files under its ``status``."""
