"""The Kubernetes side: watches, lists, server-side applies and Events. Knows nothing of the kernel."""
