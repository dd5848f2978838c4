"""The node's kernel: HTB classes over netlink, an nftables table, the uplink. Knows no Kubernetes."""
