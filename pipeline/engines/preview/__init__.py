"""The weight-free engine: silhouettes to solids with numpy and scipy, on any CPU, without torch."""
