"""The HTTP API: routes, authentication, bodies, errors. Knows the contract and the store; never runs a job."""
