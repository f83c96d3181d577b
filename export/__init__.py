"""Turn a checkpoint into a bundle: ONNX graphs, a Triton model repository and a manifest."""

if __name__ == "export":
    raise ImportError("import this package as dfer_deploy.export")
