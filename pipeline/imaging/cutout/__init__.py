"""Background removal without weights: grounds, hypotheses about the subject, its parts, and a confidence.

`separate` is the entry. Knows nothing of files or of how the result is used.
"""

from pipeline.imaging.cutout.separate import Separation, separate

__all__ = ["Separation", "separate"]
