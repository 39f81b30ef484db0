"""Triangle meshes on the CPU: the type, repair, simplification, unwrapping, baking. No torch, no files, no engines."""
