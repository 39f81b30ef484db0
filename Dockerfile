# The service as containers: `docker build --target web|worker|all-in-one .` (docs/deploy-docker.md).
# Everything comes from PyPI wheels in the versions of constraints.txt; nothing is built from source, and no secret is baked in.

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ONLY_BINARY=:all: \
    PIP_CONSTRAINT=/app/constraints.txt \
    IMAGE_TO_3D_DATA_DIR=/data \
    IMAGE_TO_3D_WEIGHTS=/weights \
    IMAGE_TO_3D_HOST=0.0.0.0
WORKDIR /app
RUN useradd --create-home --uid 10001 image-to-3d && mkdir /data /weights && chown image-to-3d /data /weights
COPY pyproject.toml constraints.txt ./
COPY pipeline/on_modal/requirements.py ./

# The API alone: no numpy, no torch.
FROM base AS web
RUN python -c "import pathlib, requirements; print(*requirements.requirements(pathlib.Path('pyproject.toml'), 'postgres', 'tracing'), sep='\n')" >requirements.txt && pip install -r requirements.txt
COPY README.md LICENSE ./
COPY schemas ./schemas
COPY pipeline ./pipeline
RUN pip install --no-deps .
USER image-to-3d
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('IMAGE_TO_3D_PORT', '8000') + '/health')"]
CMD ["python", "-m", "pipeline.local.web"]

# Runs jobs. EXTRAS chooses the engines: `local` is the preview engine; for a GPU, `--build-arg EXTRAS=trellis,matting,usd`.
# `usd` is the format USDZ, 217 MB.
FROM base AS worker
ARG EXTRAS=local,usd
# With its C compiler Triton builds bindings to the driver at its first kernel; without one, PyTorch takes the place of the
# GPU kernels.
RUN case ",$EXTRAS," in *,trellis,*) apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* ;; esac
RUN python -c "import pathlib, requirements, sys; print(*requirements.requirements(pathlib.Path('pyproject.toml'), 'postgres', 'tracing', *sys.argv[1].split(',')), sep='\n')" "$EXTRAS" >requirements.txt && pip install -r requirements.txt
COPY README.md LICENSE ./
COPY schemas ./schemas
COPY pipeline ./pipeline
RUN pip install --no-deps .
USER image-to-3d
VOLUME /data
# A worker that hangs ends itself after IMAGE_TO_3D_CALL_TIMEOUT_S; the restart policy starts the next one.
HEALTHCHECK NONE
CMD ["python", "-m", "pipeline.local.worker"]

# One container: the web process, workers and their supervisor.
FROM worker AS all-in-one
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('IMAGE_TO_3D_PORT', '8000') + '/health')"]
CMD ["image-to-3d", "serve"]
