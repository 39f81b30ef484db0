"""The released TripoSR model: one image to a triplane in one forward pass; then surface, colours and turntable."""
