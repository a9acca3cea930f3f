# CPU image of the whole pipeline; the steps are those of `make demo`. Checked by hadolint and by
# reading; it has not been built where it was written, for want of an engine.
#   docker build -t efficientllava . && docker run --rm -v efficientllava:/home/runner/app/artifacts efficientllava
FROM python:3.11-slim-bookworm

# make: the commands; git: DVC's history; libgomp1: torch's threads
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y git libgomp1 make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 runner

USER 1000
WORKDIR /home/runner/app

# the CPU build of torch (2.13.0+cpu) instead of several GB of CUDA packages
ENV PIP_NO_CACHE_DIR=1 \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    UV_CACHE_DIR=/tmp/uv

# packages first: they change less often than the code
COPY --chown=1000:1000 pyproject.toml constraints.txt Makefile README.md LICENSE ./
COPY --chown=1000:1000 efficientllava/__init__.py efficientllava/__init__.py
RUN make install

COPY --chown=1000:1000 . .
# a copy has no .git: DVC works without one
RUN make install && .venv/bin/dvc config --local core.no_scm true && mkdir artifacts

CMD ["make", "demo"]
