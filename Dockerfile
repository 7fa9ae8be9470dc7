# The service with the shipped checkpoint.
#
#   on CPUs, by OpenVINO:   docker build -t cma-clip:cpu .
#   on GPUs, by PyTorch:    docker build -t cma-clip:gpu --build-arg VARIANT=gpu .
#
# The image for GPUs has both, and is ten times as large: PyPI's build of PyTorch brings its CUDA libraries along, so the
# base needs none. Where it finds no GPU, it serves on the CPU.
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


# What to install, as files that change at different paces: PyTorch's pins, the other dependencies, our own code.
FROM base AS requirements
WORKDIR /src
COPY pyproject.toml ./
RUN python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['optional-dependencies']['gpu'], sep='\n', file=open('gpu.txt', 'w')); \
print(*project['dependencies'], *project['optional-dependencies']['postgresql'], sep='\n', file=open('cpu.txt', 'w'))"


FROM requirements AS wheel
COPY README.md LICENSE ./
COPY service service
COPY model model
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip wheel --no-deps --wheel-dir /wheel .


FROM base AS runtime
ARG VARIANT=cpu
RUN python -m venv --without-pip /opt/venv
COPY deploy/constraints.txt /opt/

# The large layer: it is built again only when PyTorch's pins or the constraints change.
COPY --from=requirements /src/gpu.txt /opt/
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$VARIANT" in \
        cpu) ;; \
        gpu) python -m pip --python /opt/venv/bin/python install \
                --constraint /opt/constraints.txt --requirement /opt/gpu.txt ;; \
        *) echo "VARIANT is cpu or gpu, not $VARIANT" >&2; exit 1 ;; \
    esac

COPY --from=requirements /src/cpu.txt /opt/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/venv/bin/python install \
        --constraint /opt/constraints.txt --requirement /opt/cpu.txt \
    # OpenVINO's plugins for other devices, its readers of other formats and its headers: half of its size.
    && find /opt/venv/lib/python3*/site-packages/openvino -type f \( -path '*/openvino/include/*' -o -name cache.json \
        -o -name 'libopenvino_intel_[gn]pu_plugin.so' \
        -o -name 'libopenvino_*_frontend.so*' -not -name 'libopenvino_ir_*' \) -delete \
    # What packages are tested with, dialects of other databases, and a bridge to Fortran.
    && find /opt/venv/lib/python3*/site-packages -type d \( -name tests -o -path '*/alembic/testing' \
        -o -path '*/sqlalchemy/testing' -o -path '*/sqlalchemy/dialects/m[sy]*sql' -o -path '*/sqlalchemy/dialects/oracle' \
        -o -path '*/numpy/f2py' \) -prune -exec rm -r {} + \
    # Stubs for type checkers, and what highlights languages.
    && find /opt/venv/lib/python3*/site-packages -type f \( -name '*.pyi' -o -path '*/pygments/lexers/[!_]*' \
        -o -path '*/pygments/lexers/__pycache__/[!_]*' \) -delete

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
