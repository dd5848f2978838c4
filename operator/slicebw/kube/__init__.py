"""The Kubernetes edge: watches in, server-side applies and Events out. Knows no kernel."""
