"""An engine of your own, run through the pipeline: `python own_engine.py robot.png out/`.

It makes a flat card with the image on both sides. An engine returns a mesh and a source of colours; cleaning,
simplification, unwrapping, baking and encoding are the same for every engine.
"""

import sys

import numpy as np

from pipeline import ColourSource, Generation, TriMesh, generate

# The corners of a box, and two triangles for each of its six sides, counter-clockwise seen from outside.
CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.05, 0.05)], np.float32)
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
FACES = np.array([face for a, b, c, d in SIDES for face in ((a, b, c), (a, c, d))], np.int32)


class Projection(ColourSource):
    """Looks at the image from the front: the colour of a point is that of the pixel in front of it."""

    def __init__(self, image):  # (H, W, 4) uint8
        self.image = image

    def colours_at(self, points, normals):  # (P, 3) float32 each -> (P, 3) float32 sRGB in 0 to 1
        height, width = self.image.shape[:2]
        column = np.clip((points[:, 0] + 0.5) * width, 0, width - 1).astype(int)
        row = np.clip((0.5 - points[:, 1]) * height, 0, height - 1).astype(int)
        return (self.image[row, column, :3] / 255).astype(np.float32)


class CardEngine:
    """The `Engine` protocol: a name, `is_on_accelerator`, `load` and `generate`."""

    name = "card"
    is_on_accelerator = False

    def load(self):
        pass

    def generate(self, views, options, *, on_step=lambda share: None):
        on_step(0.5)  # called often: it reports progress, and raises when the caller cancels
        mesh = TriMesh(vertices=CORNERS, faces=FACES)
        return Generation(mesh=mesh, attribute_source=Projection(views[0]), engine=self.name, seed=options.seed)


result = generate(sys.argv[1], engine=CardEngine(), seed=1, texture_size=512)
print(*result.save(sys.argv[2]), sep="\n")
