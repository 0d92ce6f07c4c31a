"""Kubernetes: Secrets of the local overlay (`make k8s-secrets`), and the test on a real cluster (`make test-k8s`)."""
