"""Images on the CPU: decoding, background removal, splitting a sheet into views. No network, no meshes."""
