"""Turn an image into a GLB on this machine, and say what came out: `python generate.py robot.png out/`."""

import sys

from pipeline import generate, inspect

result = generate(sys.argv[1], output_format="glb", seed=1)
for path in result.save(sys.argv[2]):
    print(path)
report = inspect(result.files[result.model_name])
print(f"{report.faces} faces, watertight: {report.is_watertight}, took {sum(result.stage_seconds.values()):.1f} s")
