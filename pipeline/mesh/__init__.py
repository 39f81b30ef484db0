"""Triangle meshes on the CPU: the type, cleaning, simplifying, unwrapping, baking. No torch, no files, no engines."""
