# docker build --file launch/cuda.Dockerfile --tag mmclip:cuda .
# Not yet built on a machine with GPUs; the CUDA libraries come as wheels, the driver from the host (--gpus all).
FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/mmclip-jax
COPY requirements.txt ./
RUN pip install -r requirements.txt
COPY LICENSE pyproject.toml setup.py README.md ./
COPY mmclip_jax ./mmclip_jax
COPY configs ./configs
# Editable: the package stays where it was copied to.
RUN pip install -c requirements.txt -e ".[cuda12]" && useradd --create-home --uid 1000 mmclip
USER mmclip
ENTRYPOINT ["mmclip"]
