"""The service on one machine: a web process, worker processes and their supervisor."""
