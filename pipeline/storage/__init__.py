"""Where finished files live: a local folder with signed links, or an S3 bucket. Knows nothing of jobs or meshes."""
