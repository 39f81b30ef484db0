"""The released TripoSR model: a image to a triplane in one pass, and from it a surface, colours and a turntable."""
