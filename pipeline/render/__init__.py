"""ImageList of 3D things: cameras, the mesh rasteriser on the CPU, radiance fields and Gaussians."""
