# The page and the REST endpoint of `ovseg serve`: docs/web_page.md. Nothing is downloaded when a container runs: the
# weights of the model `photo` are in packages of the index, and others are mounted.
#   docker build -t ovseg .                        # for the CPU
#   docker build -t ovseg --build-arg TORCH=cu128 . # for CUDA: a build of PyTorch, as uv's --torch-backend names it
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH=cpu
RUN pip install --no-cache-dir uv==0.13.8
WORKDIR /source
COPY . .
RUN uv venv /opt/ovseg \
 && uv pip install --no-cache --python /opt/ovseg --torch-backend ${TORCH} --constraint requirements.txt '.[photo,web,demo]' \
 && /opt/ovseg/bin/ovseg install-detectron2

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --no-create-home --home-dir /cache ovseg && mkdir /cache && chown ovseg /cache
COPY --from=build /opt/ovseg /opt/ovseg
# all that is written: /cache (downloads of other models, if any, and text embeddings) and /tmp (uploads above 1 MB)
ENV PATH=/opt/ovseg/bin:$PATH HOME=/cache OVSEG_CACHE=/cache/ovseg HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
USER ovseg
WORKDIR /cache
VOLUME /cache
EXPOSE 7860
HEALTHCHECK --start-period=90s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/health')"]
ENTRYPOINT ["ovseg"]
CMD ["serve", "--host", "0.0.0.0"]
