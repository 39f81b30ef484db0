"""The TRELLIS-text engine: the released text-to-3D models, which differ from the image model in the encoder and sizes.

Source: Xiang et al. 2024, arXiv 2412.01506; CLIP: Radford et al. 2021, arXiv 2103.00020.
"""
