"""ImageList on the CPU: decoding, matting, framing, splitting a sheet into views. No network, no meshes."""
