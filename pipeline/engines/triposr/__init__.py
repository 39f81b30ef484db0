"""The released TripoSR model: a picture to a triplane in one pass, and from it a surface, colours and a turntable."""
