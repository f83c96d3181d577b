"""Train on videos of your own, sorted into a folder for each expression: FOLDER/joy/1.mp4, FOLDER/anger/2.mp4, …

    python train_on_a_folder.py FOLDER OUTPUT

Every fifth clip of a class is a test clip. The model is a small one from scratch, for a first try; real recipes start
from CLIP's weights (``model.pretrained=openai``).
"""

import subprocess
import sys
from pathlib import Path


def main(folder: str, output: str, *settings: str) -> None:
    classes = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(classes):
        for number, clip in enumerate(sorted((Path(folder) / name).iterdir())):
            # A path, its number of frames (0 for a video, which is counted when it is read) and the label.
            lines["test" if number % 5 == 4 else "train"].append(f"{clip.absolute()} 0 {label}")
    for part, clips in lines.items():
        Path(folder, f"{part}.txt").write_text("\n".join(clips) + "\n", encoding="utf-8")
    names = ", ".join(f'"{name}"' for name in classes)
    texts = ", ".join(f'"an expression of {name}."' for name in classes)
    chosen = (f"model.prompts.class_names=[{names}]", f"model.prompts.class_texts=[{texts}]", *settings)
    command = [sys.executable, "-m", "dfer_deploy", "train", "synthetic", "--data", folder, "-o", output]
    subprocess.run([*command, *(word for setting in chosen for word in ("--set", setting))], check=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) >= 3 else __doc__)
