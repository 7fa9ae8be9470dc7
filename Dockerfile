# The service with the shipped checkpoint.
#
#   GPU (and CPU where there is none):  docker build -t cma-clip .
#   CPU alone, a fifth of the size:     docker build -t cma-clip:cpu --build-arg VARIANT=cpu \
#                                           --build-arg TORCH_INDEX_URL=<PyTorch's index of CPU wheels> .
#
# PyPI's torch for Linux on x86_64 is the CUDA build and brings its CUDA libraries along, so the base needs none; the CPU
# build of the same release lies on an index of the PyTorch project ("Start locally" on its site, or your own mirror of
# it). Its releases are marked +cpu, which pip prefers to the same release without a mark. VARIANT is checked against what
# was really installed.
#
#   docker run --read-only --tmpfs /tmp -p 8000:8000 [--gpus 1] cma-clip
#   another checkpoint: add  --volume ./weights/mine:/checkpoint:ro

# The tag is for readers: the digest (of the index of all platforms) alone decides. For another version, change both;
# `docker buildx imagetools inspect python:VERSION-slim-bookworm` shows its digest.
ARG BASE_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${BASE_IMAGE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore


# What to install, as three files that change at different paces: PyTorch's pins, the other dependencies, our own code.
FROM base AS requirements
WORKDIR /src
COPY pyproject.toml ./
RUN python -c "import tomllib; \
print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\\n')" >dependencies.txt \
    && grep -E '^torch(vision)?==' dependencies.txt >torch.txt


FROM requirements AS wheel
COPY README.md LICENSE ./
COPY service service
COPY model model
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip wheel --no-deps --wheel-dir /wheel .


FROM base AS runtime
ARG VARIANT=gpu
ARG TORCH_INDEX_URL=
RUN python -m venv --without-pip /opt/venv
COPY deploy/constraints.txt /opt/

# The large layer: it is built again only when PyTorch's pins or the constraints change.
COPY --from=requirements /src/torch.txt /opt/
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "$VARIANT" = cpu ] && [ -z "$TORCH_INDEX_URL" ]; then \
        echo "VARIANT=cpu also needs TORCH_INDEX_URL, the address of PyTorch's index of CPU wheels" >&2; exit 1; \
    fi \
    && python -m pip --python /opt/venv/bin/python install \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
        --constraint /opt/constraints.txt --requirement /opt/torch.txt \
    && /opt/venv/bin/python -c 'import sys, torch; \
built, wanted = "cpu" if torch.version.cuda is None else "gpu", sys.argv[1]; \
sys.exit(None if built == wanted else f"VARIANT={wanted}, but the index gave the {built} build of torch")' "$VARIANT"

COPY --from=requirements /src/dependencies.txt /opt/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/venv/bin/python install \
        --constraint /opt/constraints.txt --requirement /opt/dependencies.txt

COPY weights/fashion /checkpoint

RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    python -m pip --python /opt/venv/bin/python install --no-deps /wheel/*.whl

ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    CMA_CLIP_CHECKPOINT=/checkpoint \
    CMA_CLIP_HOST=0.0.0.0 \
    CMA_CLIP_PORT=8000 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Late, since a new value invalidates what follows.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="cma-clip" \
      org.opencontainers.image.description="Reads product attributes off a listing's image and title, with certified precision" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# A number, so that Kubernetes can verify that it is not root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['CMA_CLIP_PORT'] + '/readyz', timeout=4)"]
ENTRYPOINT ["cma-clip"]
CMD ["serve"]
