# docker build -t travelling .            docker run -v "$PWD":/data travelling control -fn_train training_set.csv ...
# For an NVIDIA GPU: docker build --build-arg TENSORFLOW='tensorflow[and-cuda]' ..., and docker run --gpus all
FROM python:3.12-slim
ARG TENSORFLOW=tensorflow
WORKDIR /opt/travelling
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt "$TENSORFLOW"
COPY . .
RUN pip install --no-cache-dir --no-deps .
WORKDIR /data
ENTRYPOINT ["travelling"]
