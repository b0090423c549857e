# docker build --file launch/tpu.Dockerfile --tag mmclip:tpu .
# Not yet built on a machine with TPUs; requirements.txt holds the versions that are tested on CPUs.
FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/mmclip-jax
COPY requirements.txt requirements-gcs.txt ./
RUN pip install -r requirements.txt
COPY LICENSE pyproject.toml setup.py README.md ./
COPY mmclip_jax ./mmclip_jax
COPY configs ./configs
# Editable: the package stays where it was copied to.
RUN pip install -c requirements.txt -c requirements-gcs.txt -e ".[tpu,gcs]" && useradd --create-home --uid 1000 mmclip
USER mmclip
ENTRYPOINT ["mmclip"]
