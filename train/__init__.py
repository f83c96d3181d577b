"""Training: recipes, drawn demonstration data, augmentation, the loop, evaluation."""

if __name__ == "train":
    raise ImportError("this folder is a part of the package: import dfer_deploy.train instead of train")
