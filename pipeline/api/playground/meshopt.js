// Empty on purpose: viewer.js says why model-viewer loads it.
