"""The preview engine: silhouettes to solids with numpy and scipy, on any CPU, without weights or torch."""
