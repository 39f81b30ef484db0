"""The network as the service meets it: guarded requests out, signatures."""
