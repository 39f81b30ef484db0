"""An engine that runs in a container of its own: the caller's side, the container's side, and the line between them."""
