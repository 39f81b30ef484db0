"""Writers of one file format each: bytes out of arrays. They decide nothing about the mesh."""
