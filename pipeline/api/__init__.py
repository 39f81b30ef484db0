"""The HTTP side: routes, keys, bodies, problems. Knows the contract and the store; never runs a call."""
