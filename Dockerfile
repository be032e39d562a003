# The image of the jobs: the project with JAX for GPUs or TPUs.
#
#   docker build --tag=REGISTRY/unimix_jax:cuda12 .
#   docker build --tag=REGISTRY/unimix_jax:tpu --build-arg=JAX_EXTRA=tpu .
#   docker run --rm --init --gpus=all --ipc=host --volume=$PWD/runs:/home/unimix/runs IMAGE --config=digits_lt.py --workdir=runs/digits
#
# JAX_EXTRA: an extra of jax, or several ("cuda12", "cuda13", "tpu"). EXTRAS: extras of the project.

FROM python:3.12-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY launch launch
COPY unimix_jax unimix_jax
RUN pip wheel --no-cache-dir --no-deps --wheel-dir=/wheel .

FROM python:3.12-slim-bookworm
ARG JAX_EXTRA=cuda12
ARG EXTRAS=fast
# Lines reach the log as they are printed.
ENV PYTHONUNBUFFERED=1
COPY --from=build /wheel /wheel
# One call, so that the project's bounds hold for jax; CUDA's libraries come as packages, the driver is the host's.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "$(echo /wheel/*.whl)[${EXTRAS}]" "jax[${JAX_EXTRA}]" \
    && useradd --uid=1000 --create-home unimix
USER 1000
WORKDIR /home/unimix
# No shell around it: the signal that asks a run to save reaches Python itself.
ENTRYPOINT ["python", "-m", "unimix_jax.main"]
