# Adds the Python module of the image's own TensorRT. What was tried is install_tensorrt.py, as far as it goes without
# NVIDIA's package.
FROM serve AS build
USER root
COPY install_tensorrt.py /usr/local/share/dfer-deploy/
RUN python3 /usr/local/share/dfer-deploy/install_tensorrt.py
USER 1000:1000

# The bundle is mounted on /bundle, writable: the engines are written into it.
CMD ["python3", "/bundle/build_engines.py"]
HEALTHCHECK NONE
