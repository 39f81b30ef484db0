"""Images of 3D results: cameras, a mesh rasteriser on the CPU, and a volume renderer for radiance fields."""
