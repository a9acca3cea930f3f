# CPU image of the pipeline and of its servers (compose.yaml): packages are installed in the first
# stage; the second has them, the code and no development tools.
#   docker build -t efficientllava . && docker run --rm -v efficientllava:/workspace efficientllava
# Checked by hadolint, and by running its commands in a folder (docs/servers.md says which); it has
# not been built where it was written, for want of an engine.
FROM python:3.11-slim-bookworm AS packages

# the CPU build of torch (2.13.0+cpu) instead of several GB of CUDA packages
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY efficientllava/__init__.py efficientllava/__init__.py
# not editable: the code is copied over it in the second stage
RUN python -m venv /venv \
    && /venv/bin/python -m pip install -c constraints.txt '.[pipeline,dask,gguf,servers]' \
    && /venv/bin/python -m pip uninstall --yes efficientllava

FROM python:3.11-slim-bookworm

# libgomp1: torch's threads
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 runner \
    && install -d -o runner -g runner /workspace /app

COPY --from=packages /venv /venv
COPY . /app
# the package itself, with its commands, from /app: changes no dependency
RUN /venv/bin/python -m pip install --no-cache-dir --no-deps --editable /app

USER 1000
ENV PATH=/venv/bin:$PATH \
    WORKSPACE=/workspace \
    DO_NOT_TRACK=true
WORKDIR /workspace
VOLUME /workspace
ENTRYPOINT ["/app/deploy/entrypoint"]
CMD ["python", "-m", "flows.pipeline"]
