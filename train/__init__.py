"""Train a model: recipes, drawn demonstration data, augmentation, the loop, evaluation."""

if __name__ == "train":
    raise ImportError("import this package as dfer_deploy.train")
